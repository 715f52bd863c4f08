"""`nagaya disk`: what it prints, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Invoke = Callable[..., Any]  # the fixture's: an Outcome


@pytest.fixture
def disk(invoke: Invoke) -> Iterator[str]:
    """An empty disk with a name; no disk is left afterwards."""
    assert invoke("disk", "create", "data", "8MiB").out == "data\n"
    yield "data"
    for machine in invoke("list", "-q").out.split():
        invoke("delete", machine, "--force", "--yes")
    for name in invoke("disk", "list", "-q").out.split():
        invoke("disk", "delete", name)


def test_disks_of_machines_and_disks_with_a_name_are_listed(invoke: Invoke, disk: str) -> None:
    invoke("create", "busybox", "--name", "b1")
    table = invoke("disk", "list").out.splitlines()
    assert table[0].split() == ["NAME", "SIZE", "ALLOCATED", "IMAGE", "SNAPSHOTS", "USED", "BY", "STATE"]
    assert [line.split()[0] for line in table[1:]] == [disk, "b1/disk0"]
    assert invoke("disk", "list", "-q").out == f"{disk}\nb1/disk0\n"
    assert "name: b1/disk0" in invoke("disk", "show", "b1/disk0").out


def test_a_disk_grows_has_snapshots_and_goes_back(invoke: Invoke, disk: str) -> None:
    assert invoke("disk", "resize", disk, "16MiB").out == "data has 16 MiB\n"
    taken = invoke("disk", "snapshot", "create", disk, "before")
    assert taken.out == "data: snapshot before is taken (nothing was writing)\n"
    rows = invoke("disk", "snapshot", "list", disk, "--format", "json").json
    assert [(row["name"], row["size"], row["consistency"]) for row in rows] == [("before", 2**24, "stopped")]
    assert invoke("disk", "snapshot", "revert", disk, "before").out == "data is as in snapshot before\n"
    refused = invoke("disk", "resize", disk, "8MiB")
    assert refused.status == 5
    assert "cannot shrink" in refused.err


@pytest.mark.qemu
def test_long_work_ends_with_a_line_and_a_report(invoke: Invoke, disk: str, tmp_path: Path) -> None:
    invoke("disk", "snapshot", "create", disk, "before")
    assert "snapshot before is deleted" in invoke("disk", "snapshot", "delete", disk, "before").out
    assert invoke("disk", "commit", disk).status == 0
    assert invoke("disk", "rebase", disk, "--image", "busybox").out == "data lies on busybox\n"
    assert invoke("disk", "rebase", disk, "--flatten").out == "data lies on nothing\n"
    assert invoke("disk", "check", disk, "--format", "json").json["corruptions"] == 0
    assert invoke("disk", "map", disk).out.splitlines()[0].split() == ["START", "LENGTH", "CONTENT", "LAYER"]
    assert invoke("disk", "convert", disk, str(tmp_path / "x.vdi")).status == 0
    assert (tmp_path / "x.vdi").exists()
    again = invoke("disk", "convert", disk, str(tmp_path / "x.vdi"))
    assert again.status == 4
    assert "exists" in again.err


def test_a_machine_gets_a_disk_and_loses_it(invoke: Invoke, disk: str) -> None:
    invoke("create", "busybox", "--name", "b1")
    assert invoke("disk", "attach", "b1", disk).out == "b1 has disk data\n"
    refused = invoke("disk", "delete", disk)
    assert refused.status == 4
    assert "nagaya disk detach b1 data" in refused.err
    assert invoke("start", "b1").status == 0
    assert invoke("disk", "list", "--format", "json").json[0]["state"] == "in use"
    assert invoke("kill", "b1").status == 0
    assert invoke("disk", "detach", "b1", disk).out == "b1 has no disk data any more\n"


def test_a_machine_that_runs_has_snapshots_and_gets_disks(invoke: Invoke, disk: str) -> None:
    invoke("create", "busybox", "--name", "b1", "--start")
    taken = invoke("disk", "snapshot", "create", "b1/disk0", "live")
    assert taken.out == "b1/disk0: snapshot live is taken (file systems were frozen)\n"
    assert invoke("disk", "attach", "b1", disk).status == 0
    assert invoke("disk", "snapshot", "create", disk, "too").status == 0
    refused = invoke("disk", "revert", "b1/disk0")
    assert refused.status == 2
    refused = invoke("disk", "snapshot", "revert", "b1/disk0", "live")
    assert refused.status == 4
    assert "b1 is running" in refused.err
    assert invoke("disk", "detach", "b1", disk).status == 0
    assert invoke("disk", "show", "b1/disk0", "--format", "json").json["layers"] == 2
    assert invoke("kill", "b1").status == 0
    assert invoke("disk", "show", disk, "--format", "json").json["used_by"] == []


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["show", "none"], 3, "there is no disk 'none'"),
        (["show", "b9/disk0"], 3, "there is no machine 'b9'"),
        (["create", "Big", "8MiB"], 2, "name"),
        (["create", "tiny", "5"], 2, "size"),
        (["create", "empty"], 2, "needs a size"),
        (["snapshot", "create", "data", "../x"], 2, "cannot name a snapshot"),
        (["snapshot", "revert", "data", "none"], 3, "no snapshot 'none'"),
        (["rebase", "data"], 2, "--image"),
        (["rebase", "data", "--image", "/etc/passwd"], 3, "/etc/passwd"),
        (["convert", "data", "x.iso"], 2, "names no format"),
        (["attach", "b9", "data"], 3, "b9"),
    ],
)
def test_what_is_wrong_is_said(
    invoke: Invoke, disk: str, arguments: list[str], status: int, said: str
) -> None:
    outcome = invoke("disk", *arguments)
    assert (outcome.status, said in outcome.err) == (status, True), outcome.err
