"""The store of demand: bounded, right, and there after a kill."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nagaya.daemon.demandstore import DAYS, MACHINE_BYTES, ROWS_A_DAY, DemandStore
from nagaya.plane.demand import WorkerDemand
from nagaya.resources.demand import HOUR, INTERVAL, METRICS, SAMPLES, Sample, quantiles

START = 500_000 * HOUR


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "demand.sqlite"


def _sample(at: int, value: int) -> Sample:
    return Sample(at, *([value] * len(METRICS)))


def _pattern(disk: str, periods: int) -> dict[str, Any]:
    sums = dict.fromkeys(("count", "gap_us", "span_us", "requests", "depth", "think_us"), 10**9)
    return {
        "id": disk,
        "recorded_us": 1,
        "mix": [{"kind": "read", "count": 10**9, "bytes": 4096 << size} for size in range(12)],
        "periods": [{"number": number, **sums} for number in range(periods)],
        "squares": [1e18, 1e18],
        "p99_us": 123.4,
    }


def test_an_hour_that_is_over_is_its_percentiles(path: Path) -> None:
    store = DemandStore(path)
    values = random.Random(1).sample(range(10_000), SAMPLES)
    for number, value in enumerate(values):
        at = START + number * INTERVAL
        store.add(at, {"m1": _sample(at, value)})
    assert [hour.samples for hour in store.hours("m1")] == [SAMPLES]
    store.add(START + HOUR, {"m1": _sample(START + HOUR, 7)})
    done, now = store.hours("m1")
    assert done.quantiles == dict.fromkeys(METRICS, quantiles(values))
    assert (done.hour, now.hour, now.samples) == (START // HOUR, START // HOUR + 1, 1)
    assert len(store.samples("m1")) == SAMPLES
    store.close()


def test_an_hour_that_ended_without_a_daemon_is_kept(path: Path) -> None:
    store = DemandStore(path)
    store.add(START, {"m1": _sample(START, 5)})
    store.close()
    later = START + 30 * HOUR + 7
    store = DemandStore(path)
    store.add(later, {"m1": _sample(later, 6)})
    assert [(one.hour - START // HOUR, one.quantiles["cpu"].max) for one in store.hours("m1")] == [
        (0, 5),
        (30, 6),
    ]
    store.close()


def test_it_does_not_grow_with_time(path: Path) -> None:
    """Weeks of a busy machine, with as few samples as make all rows."""
    store = DemandStore(path)
    for hour in range((DAYS + 2) * 24):
        at = START + hour * HOUR
        some = {"m1": _sample(at + hour % SAMPLES * INTERVAL, 2**50 + hour)}
        store.add(at, some)
        if hour < 48:
            store.add_patterns(at, [WorkerDemand("d", (), (_pattern("m1/disk0", 162),))], {"d": (1, 2)})
    for slot in range(SAMPLES):
        store.add(at, {"m1": _sample(at + slot * INTERVAL, 2**50)})
    tables = ("samples", "hours", "patterns")
    db = sqlite3.connect(path)
    counts = [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
    db.close()
    assert counts == [SAMPLES, DAYS * ROWS_A_DAY, ROWS_A_DAY]
    store.close()
    size = path.stat().st_size
    assert size <= MACHINE_BYTES, f"{size} bytes"


def test_machines_that_are_gone_are_forgotten(path: Path) -> None:
    store = DemandStore(path)
    store.add(START, {"m1": _sample(START, 1), "m2": _sample(START, 2)})
    both = (_pattern("m1/disk0", 1), _pattern("m2/disk0", 1))
    store.add_patterns(START, [WorkerDemand("d", (), both)], {})
    store.keep({"m2"})
    assert (store.samples("m1"), store.patterns("m1"), len(store.samples("m2"))) == ([], {}, 1)
    assert store.patterns("m2")["m2/disk0"][START // HOUR % 24][0] == "d"
    store.close()


def test_patterns_of_an_hour_add_up_and_the_next_day_replaces_them(path: Path) -> None:
    store = DemandStore(path)
    for at in (START, START + 60):
        store.add_patterns(at, [WorkerDemand("d", (), (_pattern("m1/disk0", 2),))], {"d": (100, 200)})
    slot = START // HOUR % 24
    assert store.patterns("m1")["m1/disk0"][slot][1]["recorded_us"] == 2
    store.add_patterns(START + 24 * HOUR, [WorkerDemand("e", (), (_pattern("m1/disk0", 2),))], {})
    assert store.patterns("m1")["m1/disk0"][slot][0] == "e"
    assert store.patterns("m1")["m1/disk0"][slot][1]["recorded_us"] == 1
    assert (store.devices()["d"].capacity_iops, store.devices()["d"].capacity) == (100, 200)
    store.close()


def test_what_was_recorded_survives_a_kill(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from nagaya.daemon.demandstore import DemandStore;"
        "from nagaya.resources.demand import Sample; store = DemandStore(Path(sys.argv[1]))\n"
        "for at in range(0, 1000, 10):\n"
        "    store.add(at, {'m1': Sample(at, 1, 2, 3, 4, 5, 6)}); print(at, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        said = [int(child.stdout.readline()) for _ in range(50)]
        os.kill(child.pid, signal.SIGKILL)
    store = DemandStore(path)
    assert [one.at for one in store.samples("m1")][: len(said)] == said
    store.close()


@pytest.mark.parametrize("spoil", ["text", "version"])
def test_a_file_that_cannot_be_used_is_begun_anew(path: Path, spoil: str) -> None:
    if spoil == "text":
        path.write_text("this is no database, however long one looks at it" * 100)
    else:
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 99")
        db.close()
    store = DemandStore(path)
    store.add(START, {"m1": _sample(START, 1)})
    assert len(store.samples("m1")) == 1
    store.close()
