"""`nagaya plan`, against a daemon on fakes and the real simulator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nagaya.daemon.demandstore import DemandStore
from nagaya.paths import Paths
from nagaya.resources.demand import HOUR, Sample
from nagaya.testing.plane import FakePlane

Invoke = Callable[..., Any]  # the fixture's: an Outcome


@pytest.fixture
def recorded(invoke: Invoke, daemon_paths: Paths) -> Iterator[Invoke]:
    """Machines `web` and `db`, of which an hour and their disks are known."""
    for name in ("web", "db"):
        invoke("create", "busybox", "--name", name, "--memory", "64MiB", "--start")
    ids = [row["id"] for row in invoke("list", "--format", "json").json]
    now = int(time.time()) // HOUR * HOUR
    store = DemandStore(daemon_paths.state / "demand.sqlite")
    store.add(now, {one: Sample(now, 10, 64 << 20, 900, 4 << 20, 1000, 2000) for one in ids})
    demand = asyncio.run(FakePlane(daemon_paths).demand(anew=True))
    store.add_patterns(now, demand, {"disk-0:0": (10_000, 0)})
    store.close()
    yield invoke


def test_it_says_how_many_fit_what_breaks_first_and_what_it_does_not_know(recorded: Invoke) -> None:
    out = recorded("plan", "--like", "web", "--most", "30").out
    first = out.splitlines()[0]
    assert "more like web fit" in first or "more like web fits" in first
    assert "RESOURCE" in out and "promised" in out
    assert "What this does not know:" in out
    assert "  What was not asked for while it was recorded is not foreseen" in out


def test_a_bound_on_latency_is_what_breaks(recorded: Invoke) -> None:
    answer = recorded("plan", "--like", "web", "--most", "30", "--p99", "500us", "--format", "json").json
    assert (answer["breaks"], 0 < answer["fits"] < 30) == ("disk disk-0:0", True)
    slow = [row for row in answer["rows"] if row["more"] == answer["fits"] + 1]
    assert slow[0]["worst_p99_us"] > slow[0]["worst_bound_us"] == 500
    assert (
        str(answer["fits"]) + "\n"
        == recorded("plan", "--like", "web", "--most", "30", "--p99", "500us", "-q").out
    )
    rows = recorded(
        "plan", "--like", "web", "--most", "30", "--p99", "500us", "--format", "csv"
    ).out.splitlines()
    assert rows[0].startswith("disk,more,iops,p99") and len(rows) == len(answer["rows"]) + 1


def test_machines_are_packed(recorded: Invoke) -> None:
    answer = recorded("plan", "--consolidate", "--format", "json").json
    assert [group["machines"] for group in answer["groups"]] == [["db", "web"]]
    assert answer["rooms"]["iops"] == 10_000
    out = recorded("plan", "--consolidate").out
    assert out.startswith("2 machines fit 1 host like this one.\n") and "db web" in out


def test_one_question_at_a_time_about_a_machine_that_is_known(invoke: Invoke) -> None:
    assert invoke("plan").status == 2
    assert invoke("plan", "--like", "web", "--consolidate").status == 2
    assert invoke("plan", "--like", "nobody").status == 3
    invoke("create", "busybox", "--name", "young")
    outcome = invoke("plan", "--like", "young")
    assert "nothing has been recorded of young yet" in outcome.err
