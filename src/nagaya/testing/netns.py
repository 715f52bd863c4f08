"""Network namespaces for tests: a host of their own, guests on its taps, a world outside.

Only the thread that made it is inside, and what it starts; with the last process and descriptor a namespace
goes away, and with it all that is in it, however a test ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from nagaya.abi import linux, tun
from nagaya.closing import Closing

_FRAME = 65536  # bytes, of the largest frame
_TURN_S = 0.05


class Namespace(Closing):
    """A network namespace with its loopback interface up."""

    def __init__(self) -> None:
        with _kept():
            linux.unshare(linux.CLONE_NEWNET)
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    @property
    def fd(self) -> int:
        """Its descriptor."""
        return self._fd

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts meanwhile, is inside."""
        with _kept():
            linux.setns(self._fd, linux.CLONE_NEWNET)
            yield

    def run(self, command: str, *, check: bool = True, timeout: float = 20) -> str:
        """The standard output of a shell command inside. Raises `CalledProcessError`."""
        with self.entered():
            done = subprocess.run(
                ["sh", "-c", command], stdout=subprocess.PIPE, text=True, check=check, timeout=timeout
            )
        return done.stdout

    def wire(self, name: str, other: Namespace, other_name: str) -> None:
        """A cable (veth) from here to `other`, both ends up."""
        peer = f"peer name {other_name} netns /proc/{os.getpid()}/fd/{other.fd}"
        self.run(f"ip link add {name} type veth {peer} && ip link set {name} up")
        other.run(f"ip link set {other_name} up")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Hub(Closing):
    """Stands in for the plane: each frame of a tap goes to all the others.

    The ends are the host's tap of a network, by name, and one interface `eth0` for each guest.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._forward, name="hub", daemon=True)
        self._thread.start()

    def plug(self, place: Namespace, interface: str, mac: str = "") -> None:
        """One more end: the tap `interface` of `place`, made if there is none, with the address `mac`."""
        with place.entered():
            fd = tun.open_tap(interface, tun.IFF_NO_PI)
        if mac:
            place.run(f"ip link set {interface} address {mac} && ip link set {interface} up")
        self._fds = [*self._fds, fd]

    def close(self) -> None:
        self._ends.set()
        self._thread.join()
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def _forward(self) -> None:
        while not self._ends.is_set():
            fds = self._fds
            ready, _, _ = select.select(fds, [], [], _TURN_S)
            for fd in ready:
                try:
                    frame = os.read(fd, _FRAME)
                except OSError:  # its interface is down or gone
                    continue
                for other in fds:
                    if other != fd:
                        with contextlib.suppress(OSError):
                            os.write(other, frame)


def snapshot(place: Namespace) -> str:
    """All that a network could leave behind: interfaces, addresses, routes, packet filter, settings."""
    shown = place.run(
        "ip -details link show; ip address show; ip route show table all;"
        " ip -6 route show table all; ip rule; ip -6 rule; ip neighbour; bridge vlan show; nft list ruleset"
    )
    settings = []
    with place.entered():
        for path in sorted(Path("/proc/sys/net").rglob("*")):
            if path.is_file() and "/conf/" in str(path):
                with contextlib.suppress(OSError):
                    settings.append(f"{path} {path.read_text().strip()}")
        settings.append(Path("/proc/sys/net/ipv4/ip_forward").read_text())
    shown = re.sub(r"_timer +[0-9.]+", "", shown)  # of bridges, which count down
    return shown + "\n".join(settings)


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        linux.setns(before, linux.CLONE_NEWNET)
        os.close(before)
