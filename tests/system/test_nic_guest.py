"""NICs of User-mode Linux machines: a network of the plane, machines on it, and the host on its tap."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nagaya import _core
from nagaya.abi import tun
from nagaya.engines.engine import Machine
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.plane import worker
from nagaya.testing.netns import Namespace
from nagaya.testing.yard import Yard, said, write_initrd

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]

HEADER = 12  # bytes of the virtio-net header of a tap
STREAM_MIB = 256

# What a guest does is on its kernel's command line, which gives it its address as well.
INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
exec >/dev/tty0 2>&1
for word in $(cat /proc/cmdline); do
    case $word in do=*) what=${word#do=} ;; peer=*) peer=${word#peer=} ;; esac
done
sum() { md5sum | { read sum rest; echo "GUEST-SUM $sum"; } }
echo GUEST-READY
case $what in
ping) ping -c 20 -i 0.05 -W 5 $peer; echo GUEST-PINGED $? ;;
spoof)
    ip address add 10.77.0.77/24 dev eth0
    ping -c 3 -W 1 -I 10.77.0.77 $peer; echo GUEST-IP $?
    arping -c 3 -w 3 -U -s 10.77.0.1 -I eth0 10.77.0.1
    ip link set eth0 down; ip link set eth0 address 52:54:00:00:00:99; ip link set eth0 up
    ping -c 3 -W 1 -I 10.77.0.2 $peer; echo GUEST-MAC $? ;;
sink) echo GUEST-LISTENS; sleep 1000 | nc -l -p 5000 | sum ;;
source)
    yes 0123456789 | head -c $((MIB * 1048576)) >/data
    sum </data
    nc $peer 5000 </data; echo GUEST-SENT $? ;;
esac
while :; do sleep 1; done
""".replace(b"MIB", b"%d" % STREAM_MIB)


@dataclass
class Network:
    """A network `yard` of the plane, whose uplink is a tap in a namespace: the host, 10.77.0.1."""

    yard: Yard
    core: _core.Plane
    host: Namespace

    def machine(self, number: int, do: str, rules: dict[str, Any] | None = None, **spec: Any) -> Machine:
        """A machine at 10.77.0.`number` with the MAC 52:54:00:00:00:`number`."""
        address = f"10.77.0.{number}"
        made = self.yard.machine(do, **spec)
        boot = made.spec.boot.model_copy(
            update={"cmdline": f"{made.spec.boot.cmdline} ip={address}:::255.255.255.0::eth0:off"}
        )
        made = replace(made, spec=made.spec.model_copy(update={"boot": boot}), devices=("net0",))
        self.yard.keep(made)
        self.serve(
            made,
            {
                "driver": "net",
                "id": f"m{number}/net0",
                "worker": "net-yard",
                "network": "yard",
                "mac": f"52:54:00:00:00:{number:02x}",
                "rules": {"addresses": [address]} if rules is None else rules,
            },
        )
        return made

    def serve(self, machine: Machine, config: dict[str, Any]) -> None:
        """Have the plane listen for it."""
        path = machine.paths.device_socket("net0")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            os.chown(path, machine.uid, machine.gid)
            self.core.device_add(json.dumps(config), [listener.fileno()])

    def worker_pid(self) -> int:
        """0 while none runs."""
        (found,) = json.loads(self.core.query())["workers"]
        return int(found["pid"] or 0)

    def drops(self, number: int) -> dict[str, int]:
        """Frames of a machine that were not passed on, by reason."""
        (port,) = (one for one in json.loads(self.core.query_ports("yard")) if one["id"] == f"m{number}/net0")
        return dict(port["drops"])


@pytest.fixture
def network(
    paths: Paths, uml_kernel: Kernel, tmp_path: Path
) -> Iterator[Callable[[Callable[[Network], Coroutine[Any, Any, None]]], None]]:
    """Runs a coroutine function with a `Network`, and cleans up after it."""
    initrd = tmp_path / "initrd"
    write_initrd(initrd, INIT)

    async def whole(test: Callable[[Network], Coroutine[Any, Any, None]]) -> None:
        yard = Yard(paths, uml_kernel, initrd)
        with contextlib.ExitStack() as stack:
            core = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])
            stack.callback(core.close)
            host = stack.enter_context(Namespace())
            with host.entered():
                fd = tun.open_tap("tap0")
            stack.callback(os.close, fd)
            tun.set_header_size(fd, HEADER)
            host.run("ip address add 10.77.0.1/24 dev tap0 && ip link set tap0 up")
            config = {
                "driver": "uplink",
                "id": "%yard/uplink",
                "worker": "net-yard",
                "network": "yard",
                "kind": "tap",
            }
            core.device_add(json.dumps(config), [fd])
            try:
                await test(Network(yard, core, host))
            finally:
                await yard.close()

    yield lambda test: asyncio.run(whole(test))


Run = Callable[[Callable[[Network], Coroutine[Any, Any, None]]], None]


def test_machines_and_the_host_reach_each_other(network: Run) -> None:
    async def test(network: Network) -> None:
        first, second = network.machine(2, "none"), network.machine(3, "ping peer=10.77.0.2")
        for machine in (first, second):
            await network.yard.engine.start(machine)
        log = await said(second, "GUEST-PINGED")
        assert "GUEST-PINGED 0" in log, log
        assert " 0% packet loss" in log
        for number in (2, 3):
            told = await asyncio.to_thread(
                network.host.run, f"busybox ping -c 3 -i 0.05 -W 5 10.77.0.{number}"
            )
            assert " 0% packet loss" in told

    network(test)


def test_a_stream_goes_on_when_the_worker_is_killed(network: Run) -> None:
    async def test(network: Network) -> None:
        sink = network.machine(2, "sink")
        source = network.machine(3, "source peer=10.77.0.2", memory=f"{STREAM_MIB + 64}MiB")
        await network.yard.engine.start(sink)
        await said(sink, "GUEST-LISTENS")
        await network.yard.engine.start(source)
        await said(source, "GUEST-SUM", 60)
        kills = 0
        while "GUEST-SENT" not in source.paths.engine_log.read_text(errors="replace") and kills < 20:
            await asyncio.sleep(0.05)
            if pid := network.worker_pid():
                os.kill(pid, signal.SIGKILL)
                kills += 1
        assert "GUEST-SENT 0" in await said(source, "GUEST-SENT", 60)
        sums = {
            found
            for machine in (sink, source)
            for found in re.findall(r"GUEST-SUM (\w+)", await said(machine, "GUEST-SUM", 30))
        }
        assert len(sums) == 1
        assert kills >= 2

    network(test)


def test_nobody_hears_a_machine_that_takes_anothers_address(network: Run) -> None:
    async def test(network: Network) -> None:
        victim, liar = network.machine(3, "none"), network.machine(2, "spoof peer=10.77.0.3")
        for machine in (victim, liar):
            await network.yard.engine.start(machine)
        log = await said(liar, "GUEST-MAC", 40)
        assert "GUEST-IP 1" in log and "GUEST-MAC 1" in log, log
        neighbours = await asyncio.to_thread(network.host.run, "ip neighbour")
        assert "10.77.0.77" not in neighbours
        assert "52:54:00:00:00:99" not in neighbours
        assert {"mac-spoof", "arp-spoof"} <= set(network.drops(2))

    network(test)
