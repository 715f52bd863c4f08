"""Control groups, on trees of plain files that look like a host's."""

from __future__ import annotations

from pathlib import Path

import pytest

from nagaya.resources.cgroups import Cgroup, CgroupBase, Limits, find_base, remove_base


class Host:
    """A /proc/self and hierarchies in a directory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.proc = top / "proc"
        self.proc.mkdir()
        (self.proc / "stat").write_text("77 (test) S 1")
        self._cgroup: list[str] = []
        self._mounts: list[str] = []

    def v1(self, controller: str, own: str = "/", files: tuple[str, ...] = ()) -> Path:
        point = self.top / "v1" / controller
        (point / own[1:]).mkdir(parents=True, exist_ok=True)
        for name in files:
            (point / own[1:] / name).touch()
        self._cgroup.append(f"{len(self._cgroup)}:{controller}:{own}")
        self._mounts.append(f"30 25 0:26 / {point} rw,relatime - cgroup cgroup rw,{controller}")
        return point / own[1:]

    def v2(self, own: str, controllers: str, processes: str) -> Path:
        point = self.top / "v2"
        for directory in (point, point / own[1:]):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "cgroup.controllers").write_text(controllers)
            (directory / "cgroup.subtree_control").write_text("")
            (directory / "cgroup.procs").write_text(processes)
        self._cgroup.append(f"0::{own}")
        self._mounts.append(f"31 25 0:27 / {point} rw,relatime - cgroup2 cgroup2 rw")
        return point

    def base(self) -> CgroupBase:
        (self.proc / "cgroup").write_text("\n".join(self._cgroup))
        (self.proc / "mountinfo").write_text("\n".join(self._mounts))
        return find_base("nagaya-test", self.proc)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_v1_groups_go_below_the_own_one(host: Host) -> None:
    own = host.v1("memory", "/session/7")
    host.v1("freezer")
    base = host.base()
    assert base.groups["memory"] == own / "nagaya-test"
    assert base.groups["freezer"] == host.top / "v1/freezer/nagaya-test"
    assert base.missing["pids"] == "no hierarchy with this controller is mounted"
    remove_base(base)
    assert not (own / "nagaya-test").exists()


def test_a_v1_cpuset_inherits_cpus_and_memory_nodes(host: Host) -> None:
    point = host.v1("cpuset")
    (point / "cpuset.cpus").write_text("0-3\n")
    (point / "cpuset.mems").write_text("0\n")
    group = point / "nagaya-test"
    group.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems", "cpuset.effective_cpus"):
        (group / name).touch()
    host.base()
    assert (group / "cpuset.cpus").read_text() == "0-3"


def test_a_v2_group_that_is_shared_is_not_used(host: Host) -> None:
    point = host.v2("/user.slice/session", "cpu memory pids cpuset", "77\n78\n")
    assert host.base().groups["unified"] == point / "nagaya-test"


def test_a_delegated_v2_group_is_used_and_its_process_moves_to_a_leaf(host: Host) -> None:
    point = host.v2("/nagaya.service", "", "77\n")
    base = host.base()
    assert base.groups["unified"] == point / "nagaya.service/nagaya-test"
    assert (point / "nagaya.service/supervisor/cgroup.procs").read_text() == "77"


def test_a_second_zygote_of_a_delegated_service_uses_the_same_groups(host: Host) -> None:
    point = host.v2("/nagaya.service/supervisor", "", "77\n")
    for name in ("cgroup.controllers", "cgroup.subtree_control", "cgroup.procs"):
        (point / "nagaya.service" / name).touch()
    assert host.base().groups["unified"] == point / "nagaya.service/nagaya-test"


def test_v2_controllers_are_enabled_on_the_way_down(host: Host) -> None:
    point = host.v2("/", "cpu memory", "1\n77\n")
    (point / "nagaya-test").mkdir()
    (point / "nagaya-test/cgroup.controllers").write_text("cpu memory")
    (point / "nagaya-test/cgroup.subtree_control").write_text("cpu memory")
    base = host.base()
    assert base.groups["cpu"] == base.groups["memory"] == base.groups["unified"] == point / "nagaya-test"
    assert set(base.missing) == {"pids", "cpuset"}


def test_a_container_sees_its_own_group_as_the_root(host: Host) -> None:
    host.v1("pids")
    (host.top / "v1/pids").mkdir(exist_ok=True)
    host._cgroup = ["3:pids:/../../elsewhere"]
    assert host.base().groups["pids"] == host.top / "v1/pids/nagaya-test"


def test_no_hierarchies_at_all_is_said_and_not_an_error(host: Host) -> None:
    base = host.base()
    assert base.groups == {}
    assert set(base.missing) == {"cpu", "cpuset", "memory", "pids"}


def _group(tmp_path: Path, controller: str, *files: str) -> Cgroup:
    directory = tmp_path / controller
    directory.mkdir(exist_ok=True)
    for name in files:
        (directory / name).touch()
    return Cgroup({controller: directory})


def test_limits_in_the_words_of_v1(tmp_path: Path) -> None:
    group = _group(tmp_path, "cpu", "cpu.shares", "cpu.cfs_quota_us")
    group.apply(Limits(cpu_weight=200, cpu_limit=1.5))
    assert (tmp_path / "cpu/cpu.shares").read_text() == "2048"
    assert (tmp_path / "cpu/cpu.cfs_quota_us").read_text() == "150000"
    group.apply(Limits())
    assert (tmp_path / "cpu/cpu.shares").read_text() == "1024"
    assert (tmp_path / "cpu/cpu.cfs_quota_us").read_text() == "-1"


def test_limits_in_the_words_of_v2(tmp_path: Path) -> None:
    directory = tmp_path / "one"
    directory.mkdir()
    for name in ("cpu.weight", "cpu.max", "memory.max", "pids.max", "cpuset.cpus"):
        (directory / name).touch()
    group = Cgroup(dict.fromkeys(("cpu", "memory", "pids", "cpuset"), directory))
    group.apply(Limits(memory=2**28, cpu_weight=50, cpu_limit=0.25, pids=100, cpus=frozenset({3, 4})))
    read = {file.name: file.read_text() for file in directory.iterdir()}
    assert read == {
        "cpu.weight": "50",
        "cpu.max": "25000 100000",
        "memory.max": str(2**28),
        "pids.max": "100",
        "cpuset.cpus": "3-4",
    }
    group.apply(Limits())
    assert (directory / "cpu.max").read_text() == "max 100000"


def test_absent_controllers_are_passed_over(tmp_path: Path) -> None:
    group = Cgroup({})
    group.create(Limits(memory=1, pids=1, cpus=frozenset({0})))
    assert not group.set_cpus([0])
    assert not group.freeze()
    assert not group.frozen()
    assert group.usage_us() is None
    assert group.memory_bytes() is None
    assert group.oom_kills() == 0
    assert group.pids() == []
    group.kill()
    group.remove()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    group = Cgroup({"cpu": tmp_path / "a", "memory": tmp_path / "b"})
    file = tmp_path / "cgroups.json"
    assert Cgroup.load(file) is None
    group.save(file)
    assert Cgroup.load(file) == group


def test_counters_of_both_versions(tmp_path: Path) -> None:
    (tmp_path / "cpuacct").mkdir()
    (tmp_path / "cpuacct/cpuacct.usage").write_text("5000000\n")
    assert Cgroup({"cpuacct": tmp_path / "cpuacct"}).usage_us() == 5000
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified/cpu.stat").write_text("usage_usec 123\nuser_usec 100\n")
    assert Cgroup({"unified": tmp_path / "unified"}).usage_us() == 123
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    group = Cgroup({"memory": tmp_path / "memory"})
    assert (group.oom_kills(), group.shared_bytes()) == (1, None)
    (tmp_path / "memory/memory.stat").write_text("anon 7\nshmem 4096\nshmem_thp 5\n")
    assert group.shared_bytes() == 4096


def test_remove_says_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "busy/child").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        Cgroup({"cpu": tmp_path / "busy"}).remove(timeout=0.05)
    Cgroup({"cpu": tmp_path / "gone"}).remove()


def test_a_process_joins_v1_by_its_thread_and_begins_in_v2(tmp_path: Path) -> None:
    both = Cgroup({"cpu": tmp_path / "cpu", "memory": tmp_path / "two", "unified": tmp_path / "two"})
    assert both.v2 == str(tmp_path / "two")
    assert both.tasks_files == (str(tmp_path / "cpu/tasks"),)
    assert Cgroup({}).v2 == ""
