"""Ways out of machines of networks of mode `user`: a passt for each NIC, supervised.

A passt ends with its connection to the plane, so a dead plane leaves none. One that dies is started again,
and whoever set `restarted` is told to connect the plane anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from nagaya.errors import NagayaError
from nagaya.networks.config import Forward, Reservation, Uplink
from nagaya.networks.helper import Helper, Program, arguments, end, find
from nagaya.networks.links import open_links
from nagaya.networks.names import Names
from nagaya.networks.passt import Passt, surroundings
from nagaya.networks.ports import Ports
from nagaya.paths import Paths
from nagaya.spec import NetworkSpec

log = logging.getLogger("nagaya.networks")


class PrivateUplinks:
    """Those of the Nagaya of `paths`, by the NICs' MAC addresses; `uid` is their programs' user."""

    def __init__(self, paths: Paths, uid: int) -> None:
        self.restarted: Callable[[str], Awaitable[None]] | None = None
        self._names = Names(paths.run)
        self._directory = paths.run / "passt"
        self._uid = uid
        self._helpers: dict[str, Helper] = {}
        self._wanted: dict[str, Passt] = {}

    async def ensure(
        self, spec: NetworkSpec, reservation: Reservation, forwards: Sequence[Forward]
    ) -> tuple[Uplink, bool]:
        """The way out of one NIC, and whether its process is new: the plane has to connect then.

        Raises `ConflictError` for a port that is taken, `UnavailableError` with passt's words.
        """
        mac = reservation.mac
        passt = Passt(self._directory, self._uid, spec, replace(reservation, instance=None), tuple(forwards))
        uplink = Uplink("stream", path=str(passt.socket), mtu=spec.mtu, rate=spec.rate)
        helper = self._helpers.get(mac)
        if helper is not None and self._wanted[mac] == passt and helper.pid is not None:
            return uplink, False
        if helper is not None:
            self._forget(mac)
            await helper.stop()
        program, runs = await asyncio.to_thread(self._program, passt)
        if not runs:
            await end(program.mark, self._uid)
            await asyncio.to_thread(self._make_room, passt)
        helper = Helper(program, lambda: self._tell(mac))
        await helper.ensure()
        self._helpers[mac], self._wanted[mac] = helper, passt
        return uplink, not runs

    async def remove(self, mac: str) -> None:
        """The NIC has no way out. Idempotent."""
        if helper := self._forget(mac):
            await helper.stop()
        for file in self._files():
            if file.name.partition(".")[0] == mac.replace(":", ""):
                await end(str(file), self._uid)
                file.unlink(missing_ok=True)

    async def sweep(self, keep: Collection[str]) -> None:
        """Remove what a crash left of NICs that are not in `keep`."""
        kept = {mac.replace(":", "") for mac in keep}
        for name in {file.name.partition(".")[0] for file in self._files()} - kept:
            await self.remove(":".join(name[at : at + 2] for at in range(0, len(name), 2)))

    def pids(self) -> dict[str, int]:
        """The processes that run, by the NIC's MAC address."""
        return {mac: helper.pid for mac, helper in self._helpers.items() if helper.pid is not None}

    def forwards(self) -> list[Forward]:
        """The ports of the host that lead to machines through them."""
        return [forward for passt in self._wanted.values() for forward in passt.forwards]

    async def close(self) -> None:
        """Look after them no more; they stay as they are."""
        for helper in self._helpers.values():
            await helper.close()
        self._helpers.clear()
        self._wanted.clear()

    def _forget(self, mac: str) -> Helper | None:
        self._wanted.pop(mac, None)
        return self._helpers.pop(mac, None)

    def _files(self) -> list[Path]:
        return list(self._directory.iterdir()) if self._directory.is_dir() else []

    def _program(self, passt: Passt) -> tuple[Program, bool]:
        """How it is started, and whether one runs that was started so, be it in other surroundings."""
        with open_links() as links:
            fresh = passt.program(self._names, surroundings(links.routes()))
        fixed = passt.fixed(self._names)
        for pid in find(fresh.mark, self._uid):
            words = arguments(pid)
            if words[: len(fixed)] == fixed:
                before = fresh.argv[: fresh.argv.index(fixed[0])]
                return replace(fresh, argv=(*before, *words)), True
        return fresh, False

    def _make_room(self, passt: Passt) -> None:
        """A directory that only its user enters, and ports that nobody has: passt could not say who."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._directory.chmod(0o700)
        if os.geteuid() == 0:
            os.chown(self._directory, self._uid, self._uid)
        Ports().check(passt.forwards)

    async def _tell(self, mac: str) -> None:
        if self.restarted is None:
            return
        try:
            await self.restarted(mac)
        except NagayaError as error:
            log.error("the plane cannot be connected to the passt of %s: %s", mac, error.message)
