"""What tests of machines on fakes ask for, and ask."""

from __future__ import annotations

from nagaya.daemon.daemon import Daemon
from nagaya.engines.engine import ProcessId
from nagaya.spec import MachineSpec
from nagaya.testing import FakePlane


def spec(name: str = "web", **parts: object) -> MachineSpec:
    """A small machine."""
    return MachineSpec.model_validate({"name": name, "memory": "64MiB", **parts})


def behaving(how: str, name: str = "web", **parts: object) -> MachineSpec:
    """One whose fake process does what its command line says."""
    return spec(name, boot={"cmdline": how}, **parts)


def plane_of(daemon: Daemon) -> FakePlane:
    """The plane of a daemon on fakes."""
    plane = daemon.parts.plane
    assert isinstance(plane, FakePlane)
    return plane


def process_of(daemon: Daemon, name: str) -> ProcessId:
    """The process of a machine that runs."""
    row = daemon.supervisor.get(name).row
    assert row.pid is not None
    assert row.start_time is not None
    return ProcessId(row.pid, row.start_time)


async def events_of(daemon: Daemon, name: str) -> list[str]:
    """The machine's journal, oldest first."""
    return [one.event for one in await daemon.supervisor.journal(name, 100)]
