"""One machine under supervision: its row, its process, and the lock that puts commands in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nagaya.daemon.nics import nic_infos
from nagaya.daemon.state import MachineRow
from nagaya.engines.engine import Engine, Exit, ProcessId
from nagaya.errors import ConflictError
from nagaya.models.machine import MachineInfo, MachineState
from nagaya.paths import Paths
from nagaya.plane.conditions import Conditions
from nagaya.spec import MachineSpec

if TYPE_CHECKING:
    from nagaya.daemon.captures import Capture

ALIVE = frozenset({MachineState.STARTING, MachineState.RUNNING, MachineState.PAUSED, MachineState.STOPPING})
UP = frozenset({MachineState.RUNNING, MachineState.PAUSED})
DOWN = frozenset({MachineState.STOPPED, MachineState.FAILED})


@dataclass(slots=True, eq=False)
class Process:
    """A machine's living process. `ended` is set by the one task that waits for it."""

    id: ProcessId
    engine: Engine
    ended: asyncio.Future[Exit]
    doom: str = ""  # why the daemon had to end it, unasked
    asked: str = ""  # which command ends it without holding the machine's lock


@dataclass(slots=True, eq=False)
class Supervised:
    """A machine the daemon knows. Change `row` and `process` only while holding `lock`."""

    row: MachineRow
    spec: MachineSpec
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    process: Process | None = None
    retry: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    conditions: Conditions = field(
        default_factory=dict
    )  # of disks and NICs that are not well: "disk0", "net0"
    captures: dict[str, Capture] = field(default_factory=dict)  # the last one of each NIC
    returns: bool = False  # it is down for a moment, and keeps what it was promised
    waits: Callable[[], str] = str  # what it waits for to be started, in words

    @property
    def name(self) -> str:
        """What people call it."""
        return self.row.name

    @property
    def booted(self) -> int:
        """Bytes of memory that its guest began with, as far as it plugs none."""
        return self.row.booted or self.spec.memory.size

    @property
    def cause(self) -> str:
        """Why it is not well, in words."""
        faulty = sorted(device for device, one in self.conditions.items() if one.faults)
        faults = f"faults on purpose on {', '.join(faulty)}" if faulty else ""
        return self.waits() or self.row.cause or self.trouble or faults

    @property
    def state(self) -> MachineState:
        """Its state as people see it: one that runs with a disk in trouble is in `io-error`."""
        in_trouble = self.row.state is MachineState.RUNNING and self.trouble
        return MachineState.IO_ERROR if in_trouble else self.row.state

    @property
    def trouble(self) -> str:
        """What is the matter with its disks, in words; "" if nothing is."""
        spaceless = sorted(disk for disk, one in self.conditions.items() if one.spaceless)
        lost = sorted(disk for disk, one in self.conditions.items() if one.flush_failed)
        said = []
        if spaceless:
            said.append(f"no space left on the host: {', '.join(spaceless)} waits for some")
        if lost:
            said.append(
                f"the host failed to write to {', '.join(lost)}, something may be lost:"
                " look at the host's disk, then restart the machine"
            )
        return "; ".join(said)

    @property
    def faults(self) -> dict[int, Mapping[str, Any]]:
        """Faults on purpose, by the number of the disk."""
        return {int(disk): faults for disk, faults in self._faults("disk")}

    @property
    def nic_faults(self) -> dict[str, Mapping[str, Any]]:
        """Faults on purpose, by the name of the NIC."""
        return {f"net{nic}": faults for nic, faults in self._faults("net")}

    def _faults(self, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for device, one in sorted(self.conditions.items()):
            if one.faults and device.startswith(kind):
                yield device.removeprefix(kind), one.faults

    def require(self, states: frozenset[MachineState], verb: str, hint: str = "") -> None:
        """Raise `ConflictError` unless the machine is in one of `states`."""
        if self.row.state not in states:
            raise ConflictError(
                f"{self.name} is {self.row.state}, it cannot be {verb}",
                hint=hint,
                machine=self.name,
                state=str(self.row.state),
            )

    def require_process(self) -> Process:
        """Its living process, or `ConflictError`."""
        if self.process is None:
            raise ConflictError(f"{self.name} has no process", machine=self.name)
        return self.process

    def notify(self) -> None:
        """Wake those who wait for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def info(self, paths: Paths) -> MachineInfo:
        """What the API says of it."""
        row = self.row
        return MachineInfo(
            id=row.id,
            name=row.name,
            state=self.state,
            cause=self.cause,
            engine=self.process.engine.name if self.process else self.spec.engine,
            kernel=row.kernel,
            cpus=self.spec.cpus,
            memory=self.spec.memory.size,
            uid=row.uid,
            pid=row.pid,
            restarts=row.restarts,
            created_at=row.created_at,
            changed_at=row.changed_at,
            started_at=row.started_at,
            console_socket=str(paths.machine(row.id).console_socket),
            spec=self.spec.to_json(),
            source=row.source,
            faults=[
                *({"disk": disk, **faults} for disk, faults in self.faults.items()),
                *({"nic": nic, **faults} for nic, faults in self.nic_faults.items()),
            ],
            nics=[asdict(nic) for nic in nic_infos(self.spec, row.nics)],
        )
