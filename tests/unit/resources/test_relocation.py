"""Memory of a process is moved by the real kernel; what it holds stays, and what cannot be is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nagaya.errors import ResourceError, UnavailableError, UnsupportedError
from nagaya.resources import relocation
from nagaya.resources.cgroups import Cgroup
from nagaya.testing.guestmemory import Stand

MIB = 2**20
pytestmark = pytest.mark.root


def node(root: Path, number: int, free: int) -> None:
    directory = root / f"node{number}"
    directory.mkdir()
    (directory / "cpulist").write_text(f"{number}\n")
    lines = (f"Node {number} MemTotal: 1048576 kB", f"Node {number} MemFree: {free // 1024} kB")
    (directory / "meminfo").write_text("\n".join(lines))


def test_pages_go_to_their_node_and_keep_what_they_hold() -> None:
    with Stand(8 * MIB, touched=4 * MIB) as stand:
        done = relocation.move(stand.pid, 0)
        assert done.after.nodes == {0: 4 * MIB}
        assert stand.holds()


def test_a_node_that_is_not_there_is_refused() -> None:
    with (
        Stand(8 * MIB, touched=MIB) as stand,
        pytest.raises(UnsupportedError, match="no NUMA node 7: it has 0"),
    ):
        relocation.move(stand.pid, 7)


def test_a_node_that_is_full_is_refused(tmp_path: Path) -> None:
    node(tmp_path, 0, 64 * MIB)
    node(tmp_path, 1, 2 * MIB)
    with (
        Stand(8 * MIB, touched=4 * MIB) as stand,
        pytest.raises(ResourceError, match=r"node 1 has 2\S* MiB free"),
    ):
        relocation.move(stand.pid, 1, sysfs=tmp_path)


def test_memory_to_come_is_taken_from_the_node_too(tmp_path: Path) -> None:
    (tmp_path / "cpuset.mems").write_text("0-1\n")
    with Stand(8 * MIB, touched=MIB) as stand:
        relocation.move(stand.pid, 0, Cgroup({"cpuset": tmp_path}))
    assert (tmp_path / "cpuset.mems").read_text() == "0"


def test_huge_pages_of_a_memfd_are_as_the_host_allows() -> None:
    allowed = "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text()
    with Stand(16 * MIB, touched=8 * MIB) as stand:
        if allowed:
            assert relocation.collapse(stand.pid).after.huge >= 4 * MIB
            assert relocation.split(stand.pid).after.huge == 0
        else:
            with pytest.raises(UnavailableError, match="no huge pages of shared memory"):
                relocation.collapse(stand.pid)
            assert relocation.split(stand.pid).done == 0
        assert stand.holds()


def test_nothing_is_huge_where_nothing_is() -> None:
    with Stand(16 * MIB, touched=0) as stand:
        assert relocation.collapse(stand.pid).asked == 0


def test_without_swap_nothing_goes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relocation, "swap_free", lambda: 0)
    with Stand(8 * MIB, touched=MIB) as stand, pytest.raises(UnavailableError, match="swap has 0 B left"):
        relocation.page_out(stand.pid, MIB)


def test_a_host_with_v2_is_asked_to_reclaim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relocation, "swap_free", lambda: 64 * MIB)
    (tmp_path / "memory.reclaim").touch()
    with Stand(32 * MIB, touched=20 * MIB) as stand:
        done = relocation.page_out(stand.pid, 18 * MIB, Cgroup({"memory": tmp_path}))
    assert done.how == "memory.reclaim"
    assert (tmp_path / "memory.reclaim").read_text() == str(2 * MIB)  # after one of 16 MiB


def test_on_v1_the_limit_is_as_before_whatever_comes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relocation, "swap_free", lambda: 64 * MIB)
    (tmp_path / "memory.limit_in_bytes").write_text(f"{99 * MIB}\n")
    (tmp_path / "memory.usage_in_bytes").write_text(f"{20 * MIB}\n")
    with Stand(32 * MIB, touched=20 * MIB) as stand:
        done = relocation.page_out(stand.pid, 18 * MIB, Cgroup({"memory": tmp_path}))
    assert (done.how, done.done) == ("memory.limit_in_bytes", 0)
    assert (tmp_path / "memory.limit_in_bytes").read_text() == str(99 * MIB)


def test_without_control_groups_addresses_are_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relocation, "swap_free", lambda: 64 * MIB)
    with Stand(8 * MIB, touched=4 * MIB) as stand:
        assert relocation.page_out(stand.pid, MIB).how == "MADV_PAGEOUT"
        assert stand.holds()


def test_what_is_not_out_does_not_come_back() -> None:
    with Stand(8 * MIB, touched=MIB) as stand:
        assert relocation.bring_back(stand.pid).asked == 0


def test_free_swap_is_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("SwapTotal: 9 kB\nSwapFree:  8 kB\n")
    assert relocation.swap_free(tmp_path / "meminfo") == 8192
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\n")
    assert relocation.swap_free(tmp_path / "meminfo") == 0
