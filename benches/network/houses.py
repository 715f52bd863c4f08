"""Machines that send through one uplink: by our plane, and by a bridge of Linux with htb.

A machine is a network namespace whose tap `vub tap` carries, with offloads as a guest has them: to a port of
our plane, or to a tap of the bridge. So senders, receivers and their kernel are the same. All is in
namespaces of the bench's own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nagaya import _core
from nagaya.abi import tun
from nagaya.plane import worker
from nagaya.testing.netns import Namespace

WORLD = "10.9.0.1"
_OFFLOADS = tun.TUN_F_CSUM | tun.TUN_F_TSO4 | tun.TUN_F_TSO6 | tun.TUN_F_TSO_ECN
_BACKLOG_S = 0.02  # what may wait in the peer's queue without fq_codel, at the uplink's rate: as in ours


def _mac(number: int) -> str:
    return f"52:54:00:00:09:{number:02x}"


def _tap(place: Namespace, name: str) -> int:
    """A tap in `place` that is up, with all offloads."""
    with place.entered():
        fd = tun.open_tap(name)
    tun.set_header_size(fd, 12)
    tun.set_offloads(fd, _OFFLOADS)
    place.run(f"ip link set {name} up")
    return fd


class House:
    """What both have: a world, a namespace and a tap for each machine, and who carries its frames."""

    def __init__(self, stack: ExitStack, vub: Path, names: Sequence[str]) -> None:
        self._stack = stack
        self._vub = vub
        self.numbers = {name: number for number, name in enumerate(names, 1)}
        self.world = stack.enter_context(Namespace())
        self.machines = {name: stack.enter_context(Namespace()) for name in names}

    def address_of(self, name: str) -> str:
        """IPv4 of a machine."""
        return f"10.9.0.{self.numbers[name] + 10}"

    def share(self, name: str, **knobs: int) -> None:
        """Give a machine other knobs."""
        raise NotImplementedError

    def tap_of(self, name: str) -> int:
        """The other end of a machine's interface."""
        place, number = self.machines[name], self.numbers[name]
        fd = _tap(place, "eth0")
        place.run(
            f"ip link set eth0 address {_mac(number)} && ip address add {self.address_of(name)}/24 dev eth0"
        )
        return fd

    def carry(self, fd: int, *way: str, fds: Sequence[int] = ()) -> None:
        """Pass on the frames of the tap `fd` until the bench is over; takes the descriptors."""
        command = [str(self._vub), "tap", "--fd", str(fd), *way]
        carrier = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[fd, *fds]
        )
        for one in (fd, *fds):
            os.close(one)

        def end() -> None:
            assert carrier.stdin is not None
            carrier.stdin.close()
            carrier.wait()

        self._stack.callback(end)


class Ours(House):
    """A network of the plane with an uplink of `rate` bytes a second; None: it is not said."""

    def __init__(
        self, stack: ExitStack, vub: Path, directory: Path, names: Sequence[str], rate: int | None
    ) -> None:
        super().__init__(stack, vub, names)
        self._directory = directory
        self._plane = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])
        stack.callback(self._plane.close)
        fd = _tap(self.world, "eth0")
        self.world.run(f"ip address add {WORLD}/24 dev eth0")
        self._add({"driver": "uplink", "id": "%bench/uplink", "kind": "tap", "rate": rate}, fd)
        for name in names:
            path = directory / f"{name}.sock"
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen(1)
                mac = _mac(self.numbers[name])
                self._add({"driver": "net", "id": f"{name}/net0", "mac": mac}, listener.detach())
            stack.callback(path.unlink)
            self.carry(self.tap_of(name), "--socket", str(path))

    def _add(self, device: Mapping[str, Any], fd: int) -> None:
        self._plane.device_add(json.dumps({"worker": "net-bench", "network": "bench", **device}), [fd])
        os.close(fd)

    def share(self, name: str, **knobs: int) -> None:
        """Give a machine other knobs: `weight`, `reservation`, `limit` (bytes a second)."""
        self._plane.set_network_shares(json.dumps([{"id": name, **knobs}]))


class Bridge(House):
    """A bridge, and htb at its uplink: a class for each machine, with fq_codel where the kernel has it.

    An htb class has a rate that it is given first, and a ceiling; what is left is lent by the classes' rates.
    So weights are rates that add up to the link's, a reservation is a rate, and a limit a ceiling.
    """

    def __init__(self, stack: ExitStack, vub: Path, names: Sequence[str], rate: int) -> None:
        super().__init__(stack, vub, names)
        self._rate = rate
        self._bridge = stack.enter_context(Namespace())
        self._bridge.run("ip link add br0 type bridge && ip link set br0 up")
        self._bridge.wire("up0", self.world, "eth0")
        self.world.run(f"ip address add {WORLD}/24 dev eth0")
        self._bridge.run("ip link set up0 master br0")
        for name in names:
            number = self.numbers[name]
            port = _tap(self._bridge, f"port{number}")
            self._bridge.run(f"ip link set port{number} master br0")
            self.carry(self.tap_of(name), "--to-fd", str(port), fds=[port])
        self.queue = self._shape()

    def _shape(self) -> str:
        """Classes of equal weight; the name of the queue in each."""
        root = f"tc qdisc add dev up0 root handle 1: htb && {self._class('add', '1:', '1:1', self._rate)}"
        self._bridge.run(root)
        queue = "fq_codel"
        for name, number in self.numbers.items():
            rate = self._rate // len(self.numbers)
            self._bridge.run(self._class("add", "1:1", f"1:{number + 10}", rate))
            leaf = f"tc qdisc add dev up0 parent 1:{number + 10} "
            if not self._bridge.run(f"{leaf} fq_codel 2>/dev/null && echo yes || true"):
                queue = "bfifo"
                self._bridge.run(f"{leaf} bfifo limit {int(self._rate * _BACKLOG_S)}")
            match = f"match ip src {self.address_of(name)}/32 flowid 1:{number + 10}"
            self._bridge.run(f"tc filter add dev up0 parent 1: protocol ip u32 {match}")
        return queue

    def _class(self, what: str, parent: str, name: str, rate: int, ceiling: int = 0) -> str:
        rates = f"rate {rate * 8}bit ceil {(ceiling or self._rate) * 8}bit"
        # A largest frame at once, and by turns what passes in 1 ms.
        burst = f"burst {64 << 10} cburst {64 << 10} quantum {max(1514, min(200_000, rate // 1000))}"
        return f"tc class {what} dev up0 parent {parent} classid {name} htb {rates} {burst}"

    def share(self, name: str, **knobs: int) -> None:
        """Give a machine other knobs: `rate`, `ceiling` (bytes a second)."""
        number = self.numbers[name] + 10
        self._bridge.run(self._class("change", "1:1", f"1:{number}", knobs["rate"], knobs.get("ceiling", 0)))
