"""Control groups of machines, on cgroup v1, v2 and a host that has both. Every facility is probed.

Where machines' groups go (`find_base`): below the caller's own group, so that limits set on it hold for
machines too; on v2 a group that holds processes cannot have controlled children, so there the root's child is
used unless the own group is ours alone (a service with Delegate=yes).

Freezing and killing use v2's `cgroup.freeze` and `cgroup.kill` wherever a v2 hierarchy is mounted, even one
without controllers; then v1's freezer; then signals.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nagaya.units import format_cpus, parse_cpus

V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids", "freezer")
V2_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
CPU_PERIOD_US = 100_000
SUPERVISOR = "supervisor"  # the leaf into which the caller moves when its own v2 group gets children
_POLL_S = 0.002


@dataclass(frozen=True, slots=True)
class Limits:
    """What a machine's group is held to. None: no limit."""

    memory: int | None = None  # bytes
    cpu_weight: float = 100  # 1 to 10000, 100 is the default share
    cpu_limit: float | None = None  # CPUs
    pids: int | None = None
    cpus: frozenset[int] | None = None  # those that all tasks run on


@dataclass(frozen=True, slots=True)
class CgroupBase:
    """The directories below which machines' groups are made: controller (or "unified") to directory.

    `missing` says for each absent controller why.
    """

    groups: Mapping[str, Path]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Cgroup:
    """The groups of one machine, one directory a controller; on pure v2 all the same directory."""

    groups: dict[str, Path]

    @classmethod
    def below(cls, base: CgroupBase, name: str) -> Cgroup:
        """The groups of machine `name`, not made yet."""
        return cls({controller: directory / name for controller, directory in base.groups.items()})

    def create(self, limits: Limits) -> None:
        """Make the groups and set `limits`. What exists already is used. Raises `OSError`."""
        for directory in dict.fromkeys(self.groups.values()):
            directory.mkdir(exist_ok=True)
        if "cpuset" in self.groups:
            _inherit_cpuset(self.groups["cpuset"])
        self.apply(limits)

    @classmethod
    def load(cls, path: Path) -> Cgroup | None:
        """The groups recorded by `save`, or None if there is no such file."""
        try:
            groups = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        return cls({str(name): Path(directory) for name, directory in groups.items()})

    def save(self, path: Path) -> None:
        """Record the directories, atomically."""
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps({name: str(directory) for name, directory in self.groups.items()}))
        draft.replace(path)

    @property
    def v2(self) -> str:
        """The v2 directory, where a process can begin (CLONE_INTO_CGROUP); "" without v2."""
        return str(self.groups.get("unified", ""))

    @property
    def tasks_files(self) -> tuple[str, ...]:
        """The v1 files that a process with one thread writes "0" into to join.

        Not `cgroup.procs`: it waits for an RCU grace period, 10 to 20 ms, because it moves all threads of any
        process (kernel/cgroup/cgroup.c, cgroup_procs_write_start).
        """
        v2 = self.groups.get("unified")
        return tuple(str(directory / "tasks") for directory in self.groups.values() if directory != v2)

    def apply(self, limits: Limits) -> None:
        """Set the limits; those whose controller is absent are left out. Raises `OSError`."""
        if limits.memory is not None:
            self.set_memory(limits.memory)
        if limits.pids is not None:
            self._write("pids", ("pids.max",), str(limits.pids))
        self.set_cpu_weight(limits.cpu_weight)
        self.set_cpu_limit(limits.cpu_limit)
        if limits.cpus is not None:
            self.set_cpus(limits.cpus)

    def set_memory(self, limit: int) -> bool:
        """Set how many bytes it never exceeds. False without a memory controller."""
        return self._write("memory", ("memory.limit_in_bytes", "memory.max"), str(limit))

    def set_cpu_weight(self, weight: float) -> bool:
        """Set the group's share of CPU time, beside those of its siblings. False without a cpu controller."""
        return self._write("cpu", ("cpu.weight",), str(max(1, round(weight)))) or self._write(
            "cpu", ("cpu.shares",), str(max(2, round(weight * 1024 / 100)))
        )

    def set_cpu_limit(self, limit: float | None) -> bool:
        """Set how many CPUs it never exceeds, None for no limit. False without a cpu controller."""
        quota = None if limit is None else max(1000, round(limit * CPU_PERIOD_US))
        return self._write("cpu", ("cpu.max",), f"{quota or 'max'} {CPU_PERIOD_US}") or self._write(
            "cpu", ("cpu.cfs_quota_us",), str(quota or -1)
        )

    def set_cpus(self, cpus: Iterable[int]) -> bool:
        """Move all tasks to `cpus` at once. False without a cpuset controller: use affinity then."""
        return self._write("cpuset", ("cpuset.cpus",), format_cpus(cpus))

    def parent(self) -> Cgroup:
        """The groups that this one is in: those of all machines."""
        return Cgroup({controller: directory.parent for controller, directory in self.groups.items()})

    def pids(self) -> list[int]:
        """The processes in the group, as this pid namespace numbers them."""
        found: set[int] = set()
        for directory in dict.fromkeys(self.groups.values()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found |= {int(line) for line in (directory / "cgroup.procs").read_text().split()}
        return sorted(found - {0})

    def freeze(self) -> bool:
        """Stop all tasks; returns when they have stopped. False where no freezer exists."""
        return self._freeze(True)

    def thaw(self) -> bool:
        """Let them go on. False where no freezer exists."""
        return self._freeze(False)

    def frozen(self) -> bool:
        """Whether the tasks are stopped by `freeze`."""
        with contextlib.suppress(KeyError, FileNotFoundError):
            return (self.groups["unified"] / "cgroup.freeze").read_text().strip() == "1"
        with contextlib.suppress(KeyError, FileNotFoundError):
            return (self.groups["freezer"] / "freezer.state").read_text().strip() != "THAWED"
        return False

    def kill(self) -> None:
        """SIGKILL every process, again until a pass finds none new. Works on frozen groups. Does not wait."""
        if not self._write("unified", ("cgroup.kill",), "1"):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(KeyError, FileNotFoundError):  # v1 delivers signals to thawed tasks only
            (self.groups["freezer"] / "freezer.state").write_text("THAWED")

    def usage_us(self) -> int | None:
        """CPU time used by all tasks so far, in microseconds; None where no controller counts it."""
        with contextlib.suppress(KeyError, FileNotFoundError):
            return int((self.groups["cpuacct"] / "cpuacct.usage").read_text()) // 1000
        with contextlib.suppress(KeyError, FileNotFoundError):
            for line in (self.groups["unified"] / "cpu.stat").read_text().splitlines():
                if line.startswith("usage_usec "):
                    return int(line.split()[1])
        return None

    def set_memory_nodes(self, nodes: Iterable[int]) -> bool:
        """Take memory from these NUMA nodes from now on. False without a cpuset controller."""
        return self._write("cpuset", ("cpuset.mems",), format_cpus(nodes))

    def cpus(self) -> frozenset[int]:
        """The CPUs that its tasks may run on; none where no controller tells."""
        for name in ("cpuset.effective_cpus", "cpuset.cpus.effective"):
            with contextlib.suppress(KeyError, OSError, ValueError):
                return frozenset(parse_cpus((self.groups["cpuset"] / name).read_text()))
        return frozenset()

    def memory_bytes(self) -> int | None:
        """Memory charged to the group, in bytes; None without the controller."""
        for name in ("memory.usage_in_bytes", "memory.current"):
            with contextlib.suppress(KeyError, FileNotFoundError):
                return int((self.groups["memory"] / name).read_text())
        return None

    def shared_bytes(self) -> int | None:
        """What of `memory_bytes` is files without a disk (shmem), in bytes; None where nothing counts it."""
        with contextlib.suppress(KeyError, FileNotFoundError):
            for line in (self.groups["memory"] / "memory.stat").read_text().splitlines():
                if line.startswith("shmem "):
                    return int(line.split()[1])
        return None

    def oom_kills(self) -> int:
        """How many processes of the group the host's out-of-memory killer took."""
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(KeyError, FileNotFoundError):
                for line in (self.groups["memory"] / name).read_text().splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        return 0

    def remove(self, timeout: float = 2.0) -> None:
        """Remove the directories, waiting for processes that are ending. Raises `OSError` if some remain."""
        deadline = time.monotonic() + timeout
        for directory in dict.fromkeys(self.groups.values()):
            while True:
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    if time.monotonic() < deadline:
                        time.sleep(_POLL_S)
                        continue
                    raise
                break

    def _freeze(self, stop: bool) -> bool:
        if self._write("unified", ("cgroup.freeze",), "1" if stop else "0"):
            events = self.groups["unified"] / "cgroup.events"
            return _poll(lambda: f"frozen {int(stop)}" in events.read_text())
        if self._write("freezer", ("freezer.state",), "FROZEN" if stop else "THAWED"):
            state = self.groups["freezer"] / "freezer.state"
            return _poll(lambda: state.read_text().strip() == ("FROZEN" if stop else "THAWED"))
        return False

    def _write(self, controller: str, names: tuple[str, ...], value: str) -> bool:
        directory = self.groups.get(controller)
        for name in names:
            if directory is not None and (directory / name).exists():
                (directory / name).write_text(value)
                return True
        return False


def find_base(tag: str, proc: Path = Path("/proc/self")) -> CgroupBase:
    """Make the directories for the machines of one Nagaya, named `tag`, and say which controllers work."""
    own = _own_groups(proc)
    groups: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for controller in V1_CONTROLLERS:
        if controller in own:
            _adopt(controller, own[controller] / tag, groups, missing)
    if "unified" in own:
        _find_v2_base(tag, own["unified"], proc, groups, missing)
    for controller in V2_CONTROLLERS:
        if controller not in groups:
            missing.setdefault(controller, "no hierarchy with this controller is mounted")
    return CgroupBase(groups, missing)


def remove_base(base: CgroupBase) -> None:
    """Remove the directories of `find_base` that hold no machines."""
    for directory in set(base.groups.values()):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _adopt(controller: str, directory: Path, groups: dict[str, Path], missing: dict[str, str]) -> None:
    try:
        directory.mkdir(exist_ok=True)
        if controller == "cpuset":
            _inherit_cpuset(directory)
    except OSError as error:
        missing[controller] = f"{directory}: {error.strerror}"
    else:
        groups[controller] = directory


def _inherit_cpuset(directory: Path) -> None:
    """v1: an empty cpuset takes no tasks, so a new one gets its parent's CPUs and memory nodes."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = directory / name
        if (directory / "cpuset.effective_cpus").exists() and not file.read_text().strip():
            file.write_text((directory.parent / name).read_text().strip())


def _find_v2_base(tag: str, own: Path, proc: Path, groups: dict[str, Path], missing: dict[str, str]) -> None:
    root = _v2_mount(proc)
    delegated = own.parent if own.name == SUPERVISOR else own
    for parent in (delegated, root):
        if parent is None or (parent != root and own.name != SUPERVISOR and not _make_inner(own, proc)):
            continue
        directory = parent / tag
        try:
            directory.mkdir(exist_ok=True)
        except OSError as error:
            missing["unified"] = f"{directory}: {error.strerror}"
            continue
        wanted = [name for name in V2_CONTROLLERS if name not in groups]
        enabled = [name for name in wanted if _enable(parent, name) and _enable(directory, name)]
        groups["unified"] = directory
        groups.update(dict.fromkeys(enabled, directory))
        missing.pop("unified", None)
        return


def _make_inner(own: Path, proc: Path) -> bool:
    """Turn the own v2 group into an inner node: possible if no process but this one is in it."""
    pid = (proc / "stat").read_text().split()[0]
    try:
        if (own / "cgroup.procs").read_text().split() != [pid]:
            return False
        (own / SUPERVISOR).mkdir(exist_ok=True)
        (own / SUPERVISOR / "cgroup.procs").write_text(pid)
    except OSError:
        return False
    return True


def _enable(directory: Path, controller: str) -> bool:
    try:
        if controller in (directory / "cgroup.subtree_control").read_text().split():
            return True
        if controller not in (directory / "cgroup.controllers").read_text().split():
            return False
        (directory / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError:
        return False
    return True


def _own_groups(proc: Path) -> dict[str, Path]:
    """Own directory by v1 controller, and "unified" for v2."""
    mounts = dict(_mounts(proc))
    own: dict[str, Path] = {}
    for line in (proc / "cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(",") if names else ["unified"]:
            if name in mounts:
                root, point = mounts[name]
                inside = os.path.relpath(path, root)
                outside = ".." in path.split("/") or inside.startswith("..")  # of this cgroup namespace
                directory = Path(point) if outside else Path(point, inside)
                if directory.is_dir():
                    own[name] = directory
    return own


def _v2_mount(proc: Path) -> Path | None:
    return next((Path(point) for name, (_, point) in _mounts(proc) if name == "unified"), None)


def _mounts(proc: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """(controller or "unified", (root of the mount inside the hierarchy, mount point))."""
    for line in (proc / "mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        fields, (fstype, _, options) = head.split(), tail.split()[:3]
        if fstype == "cgroup2":
            yield "unified", (fields[3], fields[4])
        elif fstype == "cgroup":
            for option in options.split(","):
                if option in V1_CONTROLLERS:
                    yield option, (fields[3], fields[4])


def _poll(done: Callable[[], bool], timeout: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
