"""`nagaya why`, against a daemon on fakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nagaya.paths import Paths

Invoke = Callable[..., Any]  # the fixture's: an Outcome


@pytest.fixture
def waited(invoke: Invoke, daemon_paths: Paths) -> Iterator[Invoke]:
    """Machines `db` and `web`; the one waited for the other."""
    for name in ("db", "web"):
        invoke("create", "busybox", "--name", name, "--start")
    ids = {row["name"]: row["id"] for row in invoke("list", "--format", "json").json}
    file = daemon_paths.run / "fake-waits.json"
    row = {"waiter": f"{ids['db']}/disk0", "cause": "machine", "whom": f"{ids['web']}/disk0"}
    file.write_text(json.dumps([{**row, "wait_us": 1_500_000, "requests": 300}]))
    yield invoke
    file.unlink()


def test_it_is_said_in_words_in_a_table_and_with_what_to_do(waited: Invoke) -> None:
    out = waited("why", "db").out
    assert out.startswith("db waited 1.5 s at its disks in the last minute: 300 requests, 5 ms each.\n")
    assert "  1.5 s (100%) because web was served.\n" in out
    assert ["db/disk0", "disk", "machine", "web/disk0", "1.5", "s", "300", "5", "ms"] in [
        line.split() for line in out.splitlines()
    ]
    assert "  nagaya set db disk.weight=200\n" in out


def test_programs_get_all_of_it(waited: Invoke) -> None:
    answer = waited("why", "db", "--since", "5m", "--format", "json").json
    assert (answer["since"], answer["wait_us"], answer["rows"][0]["whom"]) == (300, 1_500_000, "web/disk0")
    assert waited("why", "db", "-q").out == "web\n"
    assert (
        waited("why", "db", "--format", "csv")
        .out.splitlines()[1]
        .startswith("db/disk0,disk,machine,web/disk0,")
    )


def test_one_resource_alone_can_be_asked_for(waited: Invoke) -> None:
    assert waited("why", "db", "--cpu").out == "db waited for nobody in the last minute.\n"
    assert waited("why", "db", "--disk", "--format", "json").json["wait_us"] == 1_500_000


def test_who_waited_for_nobody_is_told_so(waited: Invoke) -> None:
    assert waited("why", "web").out == "web waited for nobody in the last minute.\n"


@pytest.mark.parametrize("since", ["0s", "2h", "soon", "5ms"])
def test_a_span_that_is_not_kept_is_refused(invoke: Invoke, since: str) -> None:
    assert invoke("why", "db", "--since", since).status == 2


def test_top_prints_once_where_there_is_no_terminal(waited: Invoke) -> None:
    lines = [line.split() for line in waited("top", "--interval", "0.2", "--sort", "waited").out.splitlines()]
    assert lines[0] == [
        "NAME",
        "STATE",
        "CPU",
        "WAIT",
        "LIMIT",
        "MEMORY",
        "STALL",
        "IOPS",
        "DISK",
        "RECV",
        "SENT",
        "P99",
        "INFL",
        "WEIGHT",
        "WAITED",
        "FOR",
    ]
    assert (lines[1][0], lines[1][-1], lines[2][0]) == ("db", "web", "web")
    rows = waited("top", "--once", "--interval", "0.2", "--format", "json").json
    assert [row["name"] for row in rows] == ["db", "web"]
    assert rows[0]["whom"] == "web"
    assert rows[0]["iops"] > 0
