"""The holder's log is one JSON object a line and cannot be made to grow."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from nagaya.plane.log import Quota

SCRIPT = """
import logging
from nagaya.plane.log import log_to_stderr
log_to_stderr()
log = logging.getLogger("nagaya.plane.x")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it broke", extra={"device": "m1/disk0"})
for _ in range(ROUNDS):
    log.warning("noise", extra={"text": "x" * 1000})
"""


def run(log: Path, rounds: int) -> list[str]:
    with log.open("ab") as stderr:
        script = SCRIPT.replace("ROUNDS", str(rounds))
        subprocess.run([sys.executable, "-c", script], stderr=stderr, check=True, env=os.environ)
    return log.read_text().splitlines()


def test_a_record_is_one_line_of_json_with_its_facts(directory: Path) -> None:
    (line,) = run(directory / "log", 0)
    record = json.loads(line)
    assert (record["event"], record["level"], record["device"]) == ("it broke", "error", "m1/disk0")
    assert "ZeroDivisionError" in record["exception"]


def test_the_file_stays_bounded(directory: Path) -> None:
    run(directory / "log", 10_000)
    assert 0 < (directory / "log").stat().st_size < 9 * 2**20


def test_a_flood_is_cut_and_counted_but_warnings_pass() -> None:
    quota = Quota(3, 0.0)  # each record opens a window of its own
    assert all(quota.filter(logging.makeLogRecord({"levelno": logging.INFO})) for _ in range(10))
    quota = Quota(3, 3600.0)
    passed = [quota.filter(logging.makeLogRecord({"levelno": logging.INFO})) for _ in range(10)]
    assert passed == [True] * 3 + [False] * 7
    assert quota.filter(logging.makeLogRecord({"levelno": logging.WARNING}))
    quota._ends = 0.0
    record = logging.makeLogRecord({"levelno": logging.INFO})
    assert quota.filter(record)
    assert vars(record)["suppressed_before"] == 7
