"""Pressure is read from what the kernel has, and what it has not is None."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.resources.cgroups import Cgroup
from nagaya.resources.pressure import (
    GroupPressure,
    HostPressure,
    Stall,
    counts,
    group_pressure,
    host_pressure,
    parse_stall,
    run_delay_us,
)

PSI = "some avg10={} avg60=0.00 avg300=0.00 total={}\nfull avg10=0.50 avg60=0.00 avg300=0.00 total={}\n"


def write(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("_", ".", 1)).write_text(text)
    return directory


def test_a_stall_is_the_kernels_text() -> None:
    assert parse_stall(PSI.format("2.50", 90, 40)) == Stall(90, 40, 0.025, 0.005)


def test_an_old_kernels_cpu_has_no_line_full() -> None:
    assert parse_stall("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n") == Stall(7, 0)


@pytest.mark.parametrize("text", ["", "full avg10=0 total=5\n", "some total=\n", "some total=-3", "some"])
def test_what_is_no_pressure_file_is_none(text: str) -> None:
    assert parse_stall(text) is None


@given(st.text(), st.integers(0, 2**64 - 1), st.floats(allow_nan=True))
def test_no_text_breaks_the_parsers(noise: str, number: int, average: float) -> None:
    counts(noise)
    parse_stall(noise)
    for text in (f"some avg10={average} total={number}", f"some total={number}\n{noise}"):
        stall = parse_stall(text)
        if stall is not None:
            assert stall.some_us >= 0
            assert 0 <= stall.some_avg10 <= 1
    assert parse_stall(f"some avg10={average} total={number}") is not None


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), st.integers(0, 2**63)))
def test_counts_are_read_back(numbers: dict[str, int]) -> None:
    assert counts("".join(f"{name} {number}\n" for name, number in numbers.items())) == numbers


def test_a_host_with_psi(tmp_path: Path) -> None:
    write(tmp_path / "pressure", cpu=PSI.format(1, 30, 0), memory=PSI.format(1, 20, 10))
    write(
        tmp_path,
        stat="cpu  1 2 3 4 5 6 7 250 9 10\ncpu0 1 2 3\ncpu1 1 2 3 4 5 6 7 250\n",
        vmstat="pswpin 3\npgmajfault 8\n",
    )
    write(tmp_path, meminfo="MemTotal:  8 kB\nMemAvailable:       4 kB\n")
    pressure = host_pressure(tmp_path)
    assert pressure.memory == Stall(20, 10, 0.01, 0.005)
    assert pressure.io is None
    assert pressure.steal_us == 2_500_000
    assert pressure.busy_us == {1: 190_000}
    assert pressure.memory_available == 4096
    assert (pressure.swapped_in, pressure.swapped_out, pressure.major_faults) == (3, None, 8)


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    write(tmp_path, stat="intr 5\n")
    assert host_pressure(tmp_path) == HostPressure()


def test_a_group_on_v2(tmp_path: Path) -> None:
    directory = write(
        tmp_path,
        cpu_pressure=PSI.format(0, 500, 300),
        memory_pressure=PSI.format(0, 70, 60),
        cpu_stat="usage_usec 9\nthrottled_usec 250\n",
        memory_stat="anon 5\npgmajfault 4\n",
        memory_events="low 0\nmax 6\n",
    )
    write(directory / "x")
    (directory / "memory.swap.current").write_text("4096\n")
    group = Cgroup(dict.fromkeys(("unified", "cpu", "memory"), directory))
    (directory / "cpuset.cpus.effective").write_text("0-1,4\n")
    group.groups["cpuset"] = directory
    expected = GroupPressure(300, 500, 250, 70, None, 4, 6, 4096, "psi", frozenset({0, 1, 4}))
    assert group_pressure(group) == expected


def test_a_group_on_v1_with_a_v2_hierarchy_beside(tmp_path: Path) -> None:
    unified = write(tmp_path / "u", cpu_pressure=PSI.format(0, 5, 3))
    cpu = write(tmp_path / "c", cpu_stat="nr_periods 3\nthrottled_time 2500999\n")
    memory = write(tmp_path / "m", memory_stat="pgmajfault 1\nswap 0\n", memory_failcnt="12\n")
    pressure = group_pressure(Cgroup({"unified": unified, "cpu": cpu, "memory": memory}))
    assert pressure == GroupPressure(3, 5, 2500, None, None, 1, 12, 0, "psi")


def test_without_psi_the_tasks_run_delay_counts(tmp_path: Path) -> None:
    cpu = write(tmp_path / "c", cpu_stat="throttled_time 1000\n")
    (cpu / "cgroup.procs").write_text("7\n8\n")
    for pid, tid, text in ((7, 7, "5 3000 1\n"), (7, 9, "5 4000 1\n"), (8, 8, "torn")):
        write(tmp_path / f"proc/{pid}/task/{tid}", schedstat=text)
    pressure = group_pressure(Cgroup({"cpu": cpu}), tmp_path / "proc")
    assert pressure == GroupPressure(7, 7, 1, cpu_source="schedstat")


def test_a_group_that_has_gone_says_nothing(tmp_path: Path) -> None:
    gone = Cgroup(dict.fromkeys(("unified", "cpu", "memory"), tmp_path / "gone"))
    assert group_pressure(gone) == GroupPressure()


def test_this_kernel_counts_the_run_delay_of_tasks() -> None:
    own = run_delay_us([os.getpid()])
    assert own is not None
    assert run_delay_us([2**30]) is None
