"""A host without networks: it remembers in a file what it was asked for."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any

from nagaya.errors import ConflictError, UnavailableError
from nagaya.networks.config import Forward, Reservation, Uplink
from nagaya.paths import Paths
from nagaya.spec import NetworkMode, NetworkSpec


class FakePrivateUplinks:
    """Ways out that start at once; `there` are those that run, with their forwards."""

    def __init__(self) -> None:
        self.restarted: Callable[[str], Awaitable[None]] | None = None
        self.there: dict[str, tuple[Forward, ...]] = {}

    async def ensure(
        self, spec: NetworkSpec, reservation: Reservation, forwards: Sequence[Forward]
    ) -> tuple[Uplink, bool]:
        """Remember it."""
        fresh = self.there.get(reservation.mac) != tuple(forwards)
        self.there[reservation.mac] = tuple(forwards)
        path = f"/fake/passt/{reservation.mac.replace(':', '')}"
        return Uplink("stream", path=path, mtu=spec.mtu, rate=spec.rate), fresh

    async def remove(self, mac: str) -> None:
        """Forget it."""
        self.there.pop(mac, None)

    async def sweep(self, keep: Collection[str]) -> None:
        """Forget all others."""
        self.there = {mac: forwards for mac, forwards in self.there.items() if mac in keep}

    def pids(self) -> dict[str, int]:
        """No process has to run for that."""
        return {}


class FakeNetworks:
    """Networks outlive the daemon, as on a real host. Those in `refuse` cannot be brought up.

    Ports in `taken` are another program's.
    """

    default = "default"
    default_mode: NetworkMode = "nat"

    def __init__(self, paths: Paths) -> None:
        self.private = FakePrivateUplinks()
        self.refuse: set[str] = set()
        self.taken: set[int] = set()
        self.used = ["192.0.2.0/24"]
        self._file = paths.run / "fake-networks.json"

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """What is on the host, by name."""
        try:
            found: dict[str, dict[str, Any]] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        return found

    def refusal(self, spec: NetworkSpec) -> str:
        """There is no macvtap here."""
        return "this host has no macvtap" if spec.mode == "macvtap" else ""

    def ranges(self) -> Sequence[str]:
        """What a test put into `used`."""
        return self.used

    def macs(self) -> frozenset[str]:
        """None."""
        return frozenset()

    async def check_ports(self, forwards: Sequence[Forward]) -> None:
        """Those in `taken` are another program's."""
        for forward in forwards:
            if forward.host_port in self.taken:
                raise ConflictError(f"port {forward.host_port}/{forward.protocol} of the host is in use")

    async def ensure(
        self, spec: NetworkSpec, reservations: Sequence[Reservation], forwards: Sequence[Forward]
    ) -> Uplink:
        """Remember it."""
        if spec.name in self.refuse:
            raise UnavailableError(f"the fake host was told to refuse network {spec.name}")
        entry = {
            "spec": spec.to_json(),
            "reservations": [asdict(one) for one in reservations],
            "forwards": [asdict(one) for one in forwards],
        }
        self._file.write_text(json.dumps(self.networks | {spec.name: entry}))
        if spec.mode in ("isolated", "user"):
            return Uplink("none", mtu=spec.mtu)
        return Uplink("tap", interface=f"ngy-{spec.name}"[:15], mtu=spec.mtu, rate=spec.rate)

    async def sweep(self, keep: Collection[str]) -> Sequence[str]:
        """Forget all others."""
        gone = sorted(set(self.networks) - set(keep))
        for name in gone:
            await self.remove(name)
        return gone

    async def remove(self, name: str) -> None:
        """Forget it."""
        kept = {key: entry for key, entry in self.networks.items() if key != name}
        self._file.write_text(json.dumps(kept))

    async def close(self) -> None:
        """Nothing watches."""
