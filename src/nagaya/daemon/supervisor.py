"""The commands on machines. Each holds the machine's lock; every transition is on disk before it is told.

    stopped -> starting -> running <-> paused -> stopping -> stopped | failed

How a machine starts is in `starts`, how it ends in `endings`, what a new daemon does with it in `adoption`.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
import uuid
from dataclasses import replace
from typing import Any

from nagaya.daemon import failpoint
from nagaya.daemon.cabling import Cabling
from nagaya.daemon.capacity import Capacity
from nagaya.daemon.diskfiles import DiskCatalog, keeps_content, keys
from nagaya.daemon.endings import Endings
from nagaya.daemon.events import Events
from nagaya.daemon.groups import Groups
from nagaya.daemon.launch import Launcher, resolve_images
from nagaya.daemon.leases import Leases
from nagaya.daemon.memory import Memory
from nagaya.daemon.networks import Networks
from nagaya.daemon.parts import Parts
from nagaya.daemon.pressure import Pressure
from nagaya.daemon.shares import Shares
from nagaya.daemon.startqueue import StartQueue
from nagaya.daemon.starts import Starts
from nagaya.daemon.state import MachineRow, NicRow, State
from nagaya.daemon.supervised import ALIVE, DOWN, UP, Process, Supervised
from nagaya.daemon.tenants import Tenants
from nagaya.daemon.uids import free_uid
from nagaya.daemon.writer import Writer
from nagaya.engines.engine import Engine, Machine, ProcessId
from nagaya.errors import ConflictError, NagayaError, NotFoundError, TimeoutExpiredError
from nagaya.kernel import Kernel
from nagaya.models.history import JournalEntry
from nagaya.models.machine import MachineState
from nagaya.paths import Paths
from nagaya.plane.config import Device
from nagaya.spec import MachineSpec

STOP_TIME = 30.0  # s that a guest has to shut down

log = logging.getLogger("nagaya.daemon")


class Supervisor:
    """All machines of this daemon."""

    def __init__(self, paths: Paths, writer: Writer, parts: Parts, events: Events) -> None:
        self.paths = paths
        self.parts = parts
        self.events = events
        self.leases = Leases(writer, events)
        self.shares = Shares(self, Tenants(writer))
        self.capacity = Capacity(self, writer)
        self.queue = StartQueue(self, writer)
        self.disks = DiskCatalog(paths, parts)
        self.networks = Networks(self, writer, parts.networks)
        self.groups = Groups(self, writer)
        self.cabling = Cabling(self)
        self.launcher = Launcher(paths, parts, self.leases, self.shares.tenants, self.disks, self.cabling)
        self.starts = Starts(self)
        self.endings = Endings(self)
        self.memory = Memory(self, writer)
        self.pressure = Pressure(self)
        self._writer = writer
        self._machines: dict[str, Supervised] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- looking

    def all(self) -> list[Supervised]:
        """Every machine, by name."""
        return sorted(self._machines.values(), key=lambda one: one.name)

    def get(self, name: str) -> Supervised:
        """The machine with this name or id. Raises `NotFoundError`."""
        for one in self._machines.values():
            if name in (one.name, one.row.id):
                return one
        near = difflib.get_close_matches(name, [one.name for one in self._machines.values()], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`nagaya list` shows them"
        raise NotFoundError(f"there is no machine {name!r}", hint=hint, machine=name)

    def images_in_use(self) -> dict[str, list[str]]:
        """Digest of a base image to the names of the machines on it."""
        uses = [(one.name, self.disks.bases(one.row, one.spec)) for one in self.all()]
        uses += [(f"disk {disk}", bases) for disk, bases in self.disks.bases_of_named().items()]
        users: dict[str, list[str]] = {}
        for user, digests in uses:
            for digest in digests:
                users.setdefault(digest, []).append(user)
        return users

    async def journal(self, name: str, limit: int) -> list[JournalEntry]:
        """The newest `limit` entries of its history, oldest first."""
        return await self._writer.call(State.journal, self.get(name).row.id, limit)

    async def wait(self, name: str, states: frozenset[MachineState], within: float) -> Supervised:
        """Wait until the machine is in one of `states`. Raises `TimeoutExpiredError`."""
        one = self.get(name)
        try:
            async with asyncio.timeout(within):
                while one.row.state not in states:
                    self.get(one.row.id)  # deleted meanwhile?
                    await one.changed.wait()
        except TimeoutError as error:
            raise TimeoutExpiredError(
                f"{one.name} is still {one.row.state} after {within:g} s", machine=one.name
            ) from error
        return one

    # -- commands

    async def create(self, spec: MachineSpec, source: str = "") -> Supervised:
        """Make a machine, stopped. Raises `ConflictError` if the name is taken; a failure leaves nothing."""
        self.parts.engine(spec).check(spec)
        nics = await self.networks.prepare(spec)
        if any(one.name == spec.name for one in self._machines.values()):
            raise ConflictError(
                f"the name {spec.name!r} is taken",
                hint="choose another, or delete that one",
                machine=spec.name,
            )
        self.capacity.admit_autostart(spec.name, spec)
        self.groups.require(spec)
        images = resolve_images(self.disks, spec)
        now, machine_id = time.time(), uuid.uuid4().hex[:12]
        one = Supervised(
            MachineRow(
                id=machine_id,
                name=spec.name,
                spec=spec.to_json(),
                uid=free_uid(self.paths, {other.row.uid for other in self._machines.values()}),
                created_at=now,
                changed_at=now,
                images=images,
                nics=self.networks.allot(machine_id, spec.name, nics),
                source=source,
            ),
            spec,
        )
        self.add(one)
        async with one.lock:
            try:
                await self._writer.call(State.save_machine, one.row, "created")
                failpoint.reach("create:recorded")
                await self.launcher.make_disks(one.row, spec)
                failpoint.reach("create:disks")
            except BaseException:
                await self._forget(one)
                raise
            self.publish(one)
        return one

    async def change(
        self, one: Supervised, spec: MachineSpec, source: str, *, nics: tuple[NicRow, ...] | None = None
    ) -> None:
        """Give a machine that is down another spec. A disk whose entry is the same keeps its content.

        A NIC that is the same at its place in `nics` (the machine's now) keeps its addresses.
        """
        async with one.lock:
            one.require(DOWN, "changed", hint="stop it first")
            self.parts.engine(spec).check(spec)
            self.capacity.admit_autostart(spec.name, spec, one.spec)
            self.disks.require_free(keys(one.row, one.spec))
            fresh = resolve_images(self.disks, spec)
            self.groups.require(spec)
            wanted = await self.networks.prepare(spec)
            kept = [
                index < len(one.spec.disks) and keeps_content(one.spec.disks[index], disk, f"disks[{index}]")
                for index, disk in enumerate(spec.disks)
            ]
            images = tuple(one.row.images[i] if keep else fresh[i] for i, keep in enumerate(kept))
            for index in range(max(len(one.spec.disks), len(spec.disks))):
                if index >= len(kept) or not kept[index]:
                    self.disks.own(one.row, index).remove()
            changes: dict[str, Any] = {"spec": spec.to_json(), "images": images, "source": source}
            rows = self.networks.allot(one.row.id, one.name, wanted, one.row.nics if nics is None else nics)
            one.spec = spec
            await self.move(one, one.row.state, "changed", nics=rows, **changes)
            await self.launcher.make_disks(one.row, spec)

    async def start(self, name: str) -> Supervised:
        """Start a machine. Returns when its process runs."""
        one = self.get(name)
        async with one.lock:
            self.endings.forget_retry(one)
            one.require(DOWN, "started")
            await self.starts.launch(one, restarts=0)
        return one

    async def stop(self, name: str, within: float = STOP_TIME) -> Supervised:
        """Ask the guest to shut down, end it after `within` seconds. A failed machine becomes stopped."""
        one = self.get(name)
        async with one.lock:
            if await self.queue.leave(one, "it was stopped"):
                return one
            if one.row.state is MachineState.FAILED:
                self.endings.forget_retry(one)
                await self.move(one, MachineState.STOPPED, "stopped", cause="", retry_at=None)
                return one
            one.require(UP | {MachineState.STOPPING}, "stopped")
            await self.endings.stop(one, within)
        return one

    async def kill(self, name: str) -> Supervised:
        """End a machine now, whatever else is under way with it."""
        one = self.get(name)
        process = one.process
        if process is None:  # down, or being started: then wait for that
            async with one.lock:
                process = one.process
                one.require(UP | {MachineState.STOPPING}, "killed")
        if process is not None:
            process.asked = "killed"  # the watcher may see the end first
            await process.engine.kill(self.engine_machine(one), process.id)
            await asyncio.shield(process.ended)
            async with one.lock:
                await self.endings.finish(one, process, asked="killed")
        return one

    async def pause(self, name: str) -> Supervised:
        """Stop the guest's CPUs."""
        one = self.get(name)
        async with one.lock:
            one.require(UP, "paused")
            process = one.require_process()
            await process.engine.pause(self.engine_machine(one), process.id)
            await self.move(one, MachineState.PAUSED, "paused")
        return one

    async def resume(self, name: str) -> Supervised:
        """Let the guest's CPUs run again."""
        one = self.get(name)
        async with one.lock:
            one.require(UP, "resumed")
            process = one.require_process()
            await process.engine.resume(self.engine_machine(one), process.id)
            await self.move(one, MachineState.RUNNING, "resumed")
        return one

    async def restart(self, name: str, within: float = STOP_TIME, *, hard: bool = False) -> Supervised:
        """Stop and start again with fresh devices; `hard` is a reset. A machine that is down is started."""
        one = self.get(name)
        async with one.lock:
            self.endings.forget_retry(one)
            one.require(UP | DOWN, "restarted")
            one.returns = one.row.state in UP
            try:
                if one.returns:
                    await self.endings.stop(one, 0 if hard else within)
                await self.starts.launch(one, restarts=0)
            finally:
                one.returns = False
        return one

    async def delete(self, name: str, *, force: bool = False) -> None:
        """Remove a machine and its disks. Refused while it runs, unless `force`."""
        one = self.get(name)
        if force and one.row.state in ALIVE:
            await self.kill(name)
        async with one.lock:
            one.require(DOWN, "deleted", hint=f"nagaya stop {one.name}, or nagaya delete --force {one.name}")
            self.disks.require_free(keys(one.row, one.spec))
            self.endings.forget_retry(one)
            await self.move(one, MachineState.DELETING, "deleting", retry_at=None)
            await self.finish_delete(one)

    # -- what the commands, the endings and the adoption share

    async def finish_delete(self, one: Supervised) -> None:
        """The second half of a delete."""
        failpoint.reach("delete:recorded")
        await self.engine_of(one).cleanup(self.engine_machine(one))
        await self.launcher.remove_devices(one.row, one.spec)
        await self.launcher.remove_files(one.row)
        failpoint.reach("delete:files")
        await self._forget(one)
        self.events.publish({"event": "deleted", "id": one.row.id, "name": one.name})

    def watch(self, one: Supervised, process: ProcessId) -> None:
        """Wait for the end of `process` in a task of its own."""
        one.process = Process(process, self.engine_of(one), asyncio.get_running_loop().create_future())
        self.spawn(self.endings.watch(one, one.process))
        self.memory.look_soon()

    async def move(
        self, one: Supervised, state: MachineState, event: str, detail: str = "", **changes: Any
    ) -> None:
        """A transition: at once in memory, then on disk, then told. Undone in memory if the disk refuses."""
        before = one.row
        one.row = replace(before, state=state, changed_at=time.time(), **changes)
        try:
            await self._writer.call(State.save_machine, one.row, event, detail)
        except NagayaError:
            one.row = before
            raise
        log.info("%s: %s", one.name, event, extra={"machine": one.name, "detail": detail})
        self.publish(one)

    async def note(self, one: Supervised, event: str, detail: str) -> None:
        """Journal what is no transition, if the state's disk has room: the trouble may be that it has not."""
        try:
            await self._writer.call(State.note, one.row.id, time.time(), event, detail)
        except NagayaError as error:
            log.warning("%s: %r could not be recorded: %s", one.name, event, error)

    def engine_of(self, one: Supervised) -> Engine:
        """The engine of its process or leftovers; of one that never started, what its spec asks for."""
        chosen = {"engine": one.row.engine} if one.row.engine else {}
        return self.parts.engine(one.spec.model_copy(update=chosen))

    def engine_machine(self, one: Supervised) -> Machine:
        """The machine as its engine wants it, once it is started: the kernel is only a name by then."""
        return self.launcher.machine(one.row, one.spec, Kernel(one.row.kernel, ""))

    def devices(self, one: Supervised) -> list[Device]:
        """What the plane serves for the machine, or would."""
        return self.launcher.devices(one.row, self.engine_machine(one))

    async def check_devices(self) -> None:
        """End the machines whose devices the plane has lost, and remove devices that no machine could use."""
        devices = await self.parts.plane.device_ids()
        machines = {one.row.id: one for one in self._machines.values() if one.row.state in ALIVE}
        for device in sorted(devices):
            if device.partition("/")[0] not in machines and not self.cabling.owns(device):
                await self.parts.plane.device_del(device)
        for one in machines.values():
            process = one.process
            if (
                process is not None
                and not process.ended.done()
                and not self.launcher.served(one.row, one.spec, devices)
            ):
                process.doom = "the plane ended, and the machine's devices with it"
                log.error("%s: %s", one.name, process.doom)
                await process.engine.kill(self.engine_machine(one), process.id)

    def add(self, one: Supervised) -> None:
        """Know a machine."""
        one.waits = lambda: self.queue.waits(one)
        self._machines[one.row.id] = one

    def spawn(self, work: Any) -> asyncio.Task[None]:
        """Run `work` until it ends or the daemon does."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    async def close(self) -> None:
        """Finish the commands that are under way, then stop watching. The machines run on."""
        for one in self.all():
            async with asyncio.timeout(STOP_TIME):
                async with one.lock:
                    pass
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.leases.close()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the daemon failed", exc_info=task.exception())

    async def _forget(self, one: Supervised) -> None:
        await self.launcher.remove_files(one.row)
        await self._writer.call(State.delete_machine, one.row.id)
        self._machines.pop(one.row.id, None)
        one.notify()
        self.queue.kick()

    def publish(self, one: Supervised) -> None:
        """Tell those who wait for a change of this machine, and those who follow all."""
        one.notify()
        self.queue.kick()
        self.events.publish(
            {
                "event": "machine",
                "id": one.row.id,
                "name": one.name,
                "state": str(one.state),
                "cause": one.cause,
                "at": one.row.changed_at,
            }
        )
