"""Networks of mode `user`: machines get out through passt, also those of a daemon without root."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.errors import ConflictError
from nagaya.images.store import Image
from nagaya.kernel import Kernel
from nagaya.networks.helper import find
from nagaya.networks.passt import resolvers
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient
from nagaya.sdk import Client, ensure_daemon
from nagaya.testing.boxes import client_of, create, until_it_answers
from nagaya.testing.netns import Namespace

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]
USER = 61234
PAGE = "a page of the world"
SERVE = "mkdir -p /tmp/w && echo a page of $(hostname) > /tmp/w/index.html && httpd -p 80 -h /tmp/w"
FETCH = "timeout 5 wget -q -O -"
SERVER = (
    "import http.server, socket, sys\n"
    "class Page(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    f"        body = {PAGE.encode()!r}\n"
    "        self.send_response(200); self.end_headers(); self.wfile.write(body)\n"
    "    def log_message(self, *_): pass\n"
    "class Server(http.server.ThreadingHTTPServer):\n"
    "    address_family = socket.AF_INET6\n"
    "Server(('::', 8000), Page).serve_forever()\n"
)


@pytest.fixture
def world(directory: Path) -> Iterator[Namespace]:
    """What is outside: a page on port 8000 and, at the addresses of the host's resolvers, a name server."""
    with Namespace() as place, contextlib.ExitStack() as stack:
        place.run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
        for resolver in resolvers():
            place.run(f"ip address add {resolver} dev lo")
        page = [sys.executable, "-c", SERVER]
        names = ["dnsmasq", "-k", "--no-resolv", "--no-hosts", "-A", "/far.example/192.0.2.1"]
        names += ["--conf-file=/dev/null", f"--pid-file={directory}/p", "--user=root", "--log-facility=-"]
        for command in (page, names):
            with place.entered():
                process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield place


@pytest.fixture
def host(world: Namespace) -> Iterator[Namespace]:
    """The namespace that plays the host; a page of its own is at its loopback and metadata addresses."""
    with Namespace() as place, contextlib.ExitStack() as stack:
        place.run("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv4.ping_group_range='0 2147483647'")
        place.wire("up0", world, "down0")
        world.run("ip address add 192.0.2.1/24 dev down0; ip address add 2001:db8::1/64 dev down0 nodad")
        place.run("ip address add 192.0.2.2/24 dev up0; ip address add 2001:db8::2/64 dev up0 nodad")
        place.run("ip route add default via 192.0.2.1; ip route add default via 2001:db8::1")
        place.run("ip address add 169.254.169.254/32 dev lo")
        with place.entered():
            process = subprocess.Popen([sys.executable, "-c", SERVER], stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield place


@pytest.fixture
def inside(host: Namespace, paths: Paths, uml_kernel: Kernel, busybox_image: Image) -> Iterator[Client]:
    """A client of root's daemon there."""
    with host.entered():
        ensure_daemon(paths)
        with client_of(paths, lambda: ensure_daemon(paths)) as client:
            yield client


@pytest.fixture
def rootless(host: Namespace, paths: Paths, uml_kernel: Kernel, busybox_image: Image) -> Iterator[Client]:
    """A client of a user's daemon there. What it has beside a user's rights lets it read the interpreter."""
    for directory in (paths.run, paths.state):
        os.chown(directory, USER, USER)
    environment = {**os.environ, **paths.environment(), "HOME": str(paths.state)}
    del environment["NAGAYA_DEFAULT_NETWORK"]
    may = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    ready, told = os.pipe()
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *may, "--"]
    command += [sys.executable, "-m", "nagaya.daemon", "--ready-fd", str(told)]
    command += ["--log-file", str(paths.state / "daemon.log")]
    with host.entered():
        process = subprocess.Popen(command, pass_fds=[told], env=environment, start_new_session=True)
    os.close(told)
    with os.fdopen(ready) as said:
        assert said.read() == "ready\n", (paths.state / "daemon.log").read_text()
    with client_of(paths) as client:
        yield client
    process.wait()


def passts(paths: Paths, *, uid: int | None = None) -> list[int]:
    """The processes that are ways out of this Nagaya's machines."""
    found: list[int] = []
    for file in (file for file in (paths.run / "passt").iterdir() if not file.suffix):
        found += find(str(file), file.stat().st_uid if uid is None else uid)
    return found


def test_machines_get_out_are_reached_and_talk(
    inside: Client, host: Namespace, world: Namespace, paths: Paths
) -> None:
    inside.networks.create({"name": "mine", "mode": "user"})
    on = [{"network": "mine"}]
    one = create(inside, "one", nics=on, ports=["127.0.0.1:8080:80", "8081:80"])
    two = create(inside, "two", nics=on)
    assert one.exec(["sh", "-c", SERVE]).exit_code == 0
    for url in ("http://192.0.2.1:8000/", "http://[2001:db8::1]:8000/"):
        assert until_it_answers(two, f"{FETCH} {url}") == PAGE
    until_it_answers(two, "ping -c 1 -W 1 192.0.2.1")
    if resolvers():
        assert until_it_answers(two, f"{FETCH} http://far.example:8000/") == PAGE
    here = one.refresh().info.nics[0]
    shown = one.exec(["ip", "address", "show", "dev", "eth0"]).stdout.decode()
    assert f"inet {here['ipv4']}/24" in shown and f"inet6 {here['ipv6']}/" in shown, shown
    for address in (here["ipv4"], f"[{here['ipv6']}]"):
        assert until_it_answers(two, f"{FETCH} http://{address}/").strip() == "a page of one"
    assert host.run("curl -s -m 5 http://127.0.0.1:8080/").strip() == "a page of one"
    assert world.run("curl -s -m 5 http://192.0.2.2:8081/").strip() == "a page of one"
    assert not world.run("curl -s -m 5 http://192.0.2.2:8080/", check=False)
    assert two.exec(["sh", "-c", f"{FETCH} http://169.254.169.254:8000/"]).exit_code
    dropped = {port.id: port.drops for port in inside.networks.ports("mine")}
    assert dropped["two/net0"]["martian"] and "uplink of two/net0" in dropped, dropped
    assert len(passts(paths)) == 2
    one.delete(force=True)
    assert len(passts(paths)) == 1
    with pytest.raises(subprocess.CalledProcessError):
        host.run("curl -s -m 5 http://127.0.0.1:8080/")
    two.delete(force=True)
    assert not list((paths.run / "passt").iterdir())


@pytest.mark.anyio
async def test_connections_are_made_again_whoever_dies(inside: Client, host: Namespace, paths: Paths) -> None:
    inside.networks.create({"name": "mine", "mode": "user"})
    machine = create(inside, "web", nics=[{"network": "mine"}], ports=["8080:80"])
    assert machine.exec(["sh", "-c", SERVE]).exit_code == 0
    fetch = f"{FETCH} http://192.0.2.1:8000/"
    until_it_answers(machine, fetch)
    (passt,) = passts(paths)
    os.kill(passt, signal.SIGKILL)
    until_it_answers(machine, fetch)
    (second,) = passts(paths)
    assert second != passt
    async with await PlaneClient.connect(paths.plane_socket) as plane:
        worker = next(each for each in await plane.query_workers() if each.name == "net-mine")
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    until_it_answers(machine, fetch)
    os.kill(inside.host().daemon_pid, signal.SIGKILL)
    assert host.run("curl -s -m 5 http://127.0.0.1:8080/").strip() == "a page of web", "nobody notices"
    ensure_daemon(paths)
    assert passts(paths) == [second], "it is found again"
    os.kill(inside.host().daemon_pid, signal.SIGKILL)
    os.kill(second, signal.SIGKILL)
    ensure_daemon(paths)
    until_it_answers(inside.machines.get("web"), fetch)
    assert host.run("curl -s -m 5 http://127.0.0.1:8080/").strip() == "a page of web"
    (third,) = passts(paths)
    about = inside.host()
    assert about.plane_pid is not None
    os.kill(about.daemon_pid, signal.SIGKILL)
    os.kill(about.plane_pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(third)], [], [], 10)
    assert not passts(paths), "it ends with the plane, whoever else is there"


def test_a_port_that_is_taken_is_said(inside: Client, host: Namespace) -> None:
    inside.networks.create({"name": "mine", "mode": "user"})
    with pytest.raises(ConflictError, match=r"port 8000/tcp of the host is in use by python"):
        create(inside, "web", nics=[{"network": "mine"}], ports=["8000:80"])


def test_a_user_without_root_has_a_network(rootless: Client, host: Namespace, paths: Paths) -> None:
    machine = create(rootless, "web", ports=["127.0.0.1:8080:80"])
    assert rootless.networks.get("default").mode == "user"
    assert machine.exec(["sh", "-c", SERVE]).exit_code == 0
    assert until_it_answers(machine, f"{FETCH} http://192.0.2.1:8000/") == PAGE
    assert host.run("curl -s -m 5 http://127.0.0.1:8080/").strip() == "a page of web"
    other = create(rootless, "other")
    assert until_it_answers(other, f"{FETCH} http://{machine.info.address}/").strip() == "a page of web"
    assert len(passts(paths, uid=USER)) == 2
    assert "ngy" not in host.run("ip link; nft list tables")
