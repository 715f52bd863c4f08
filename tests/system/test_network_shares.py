"""Knobs of networks on machines that send: limits live, the uplink's rate, and who waited for whom."""

from __future__ import annotations

import re
import selectors
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from nagaya.models.waits import WhyAnswer
from nagaya.sdk import Client, Machine
from nagaya.testing.netns import Namespace

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]

MIB = 1 << 20
LIMIT = MIB  # bytes/s
RATE = 4 * MIB  # of the uplink
PATIENCE_S = 60  # a busy host may take so long, a quiet one takes a second
LOOK_S = 1.0
LARGEST = 64 << 10  # bytes that a limit is exceeded by in any time, with 0.2%

WORLD = "192.0.2.2"


class Listener:
    """Takes what is sent to WORLD, and counts it by port: 7000 and 7001."""

    def __init__(self, world: Namespace) -> None:
        self.counts = {7000: 0, 7001: 0}
        with world.entered():
            self._servers = [socket.create_server((WORLD, port)) for port in self.counts]
        self._ends, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._end.close()
        self._thread.join()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._ends, selectors.EVENT_READ)
            for server in self._servers:
                selector.register(server, selectors.EVENT_READ)
            connections: list[socket.socket] = []
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._ends:
                        for one in (self._ends, *self._servers, *connections):
                            one.close()
                        return
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    if source in self._servers:
                        connection, _ = source.accept()
                        selector.register(connection, selectors.EVENT_READ)
                        connections.append(connection)
                        continue
                    got = len(source.recv(MIB))
                    self.counts[source.getsockname()[1]] += got
                    if not got:
                        selector.unregister(source)


@pytest.fixture
def listener(host: Namespace) -> Iterator[Listener]:
    """Beyond the host's own interface."""
    with Namespace() as world:
        host.wire("up0", world, "eth0")
        host.run(f"ip address add 192.0.2.1/24 dev up0; ip route add default via {WORLD}")
        world.run(f"ip address add {WORLD}/24 dev eth0")
        found = Listener(world)
        yield found
        found.close()


def machine(client: Client, name: str, **more: object) -> Machine:
    spec = {"name": name, "memory": "96MiB", "disks": [{"image": "busybox"}], **more}
    return client.machines.create(spec, start=True).wait("agent", 60)


def send(one: Machine, host: str, port: int) -> None:
    """As much as goes, from now on; DHCP takes a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while one.exec(["ping", "-c", "1", "-W", "1", host]).exit_code:
        assert time.monotonic() < deadline
    done = one.exec(["sh", "-c", f"nc {host} {port} </dev/zero >/dev/null 2>&1 &"])
    assert done.exit_code == 0, done


def received(client: Client, name: str) -> int:
    """Bytes of frames that a machine got."""
    return sum(port.rx_bytes for port in client.networks.ports_of(name))


def rate(client: Client, name: str) -> float:
    """Bytes a second that it gets, at most: the time is that between the outer ends of two looks."""
    begin = time.monotonic()
    first = received(client, name)
    time.sleep(LOOK_S)
    second = received(client, name)
    return (second - first - LARGEST) / (time.monotonic() - begin)


def until_faster(client: Client, name: str, least: float) -> None:
    """It gets more than `least` bytes a second."""
    deadline = time.monotonic() + PATIENCE_S
    while rate(client, name) <= least:
        assert time.monotonic() < deadline


def why_limited(one: Machine) -> WhyAnswer:
    """What `why` says once it has a row of a limit at a network, which it is told ten times a second."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = one.why(10)
        if ("limit", "network") in {(row.cause, row.resource) for row in answer.rows}:
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def test_a_limit_holds_at_once_for_what_a_machine_sends_and_for_what_it_gets(inside: Client) -> None:
    one, two = machine(inside, "one"), machine(inside, "two")
    # The end of its input would be the end of the connection.
    assert two.exec(["sh", "-c", "(sleep 9999 | nc -l -p 5000) >/dev/null 2>&1 &"]).exit_code == 0
    send(one, str(two.refresh().info.address), 5000)
    until_faster(inside, "two", 4 * LIMIT)
    one.set({"network.limit": f"{LIMIT}B/s"})
    assert 0 < rate(inside, "two") <= LIMIT * 1.01
    answer = why_limited(one)
    assert any("at its limit (one network.limit=1MiB/s)" in line for line in answer.words), answer.words
    assert "nagaya set one network.limit=2MiB/s" in [advice.command for advice in answer.advice]
    one.set({"network.limit": None})
    until_faster(inside, "two", 4 * LIMIT)
    two.set({"network.limit": f"{LIMIT}B/s"})
    assert 0 < rate(inside, "two") <= LIMIT * 1.01
    why_limited(two)
    two.set({"network.limit": None})
    until_faster(inside, "two", 4 * LIMIT)


def test_an_uplink_with_a_rate_is_shared_and_why_names_who_was_served(
    inside: Client, listener: Listener
) -> None:
    inside.networks.create({"name": "lane", "rate": f"{RATE}B/s"})
    one, two = (machine(inside, name, nics=[{"network": "lane"}]) for name in ("one", "two"))
    two.set({"network.weight": 300})
    for number, each in enumerate((one, two)):
        send(each, WORLD, 7000 + number)
    deadline = time.monotonic() + PATIENCE_S
    while not {("one", "two"), ("two", "one")} <= {(row.waiter, row.whom) for row in inside.waits(10)}:
        assert time.monotonic() < deadline, inside.waits(10)
        time.sleep(0.2)
    begin, before = time.monotonic(), dict(listener.counts)
    time.sleep(LOOK_S)
    got = {port: count - before[port] for port, count in listener.counts.items()}
    assert all(got.values()) and sum(got.values()) <= RATE * 1.01 * (time.monotonic() - begin) + LARGEST, got
    answer = one.why(5)
    assert any("because two was served" in line for line in answer.words), answer.words
    assert "nagaya set one network.weight=200" in [advice.command for advice in answer.advice]
    found = re.findall(
        r'nagaya_(\w+)_wait_seconds{cause="machine",waiter="one",whom="two"}', inside.metrics()
    )
    assert "network" in found, inside.metrics()  # on a host with few CPUs they wait for those too
