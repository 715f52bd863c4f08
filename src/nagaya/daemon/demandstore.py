"""The demand of machines in SQLite: a file of its own, for what is in it may be lost, and is written often.

All tables are rings: a row's place is the time modulo the ring's length, so nothing grows with time. WAL with
synchronous=NORMAL: a killed daemon loses nothing, a host that loses power at most the last minutes.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from nagaya.plane.demand import Device, WorkerDemand
from nagaya.resources.demand import (
    HOUR,
    INTERVAL,
    METRICS,
    SAMPLES,
    Hour,
    Sample,
    hour_from_json,
    hour_of,
    hour_to_json,
    merged,
    merged_cells,
)

DAYS = 14
ROWS_A_DAY = 24  # for each machine, and as many for each of its disks, in the place of older ones
MACHINE_BYTES = 512 * 1024  # of a machine with one disk, at most
_DAY = 24
_VERSION = 1

_COLUMNS = ", ".join(METRICS)
_SCHEMA = f"""
CREATE TABLE samples (machine TEXT, slot INTEGER, at INTEGER, {_COLUMNS},
    PRIMARY KEY (machine, slot)) WITHOUT ROWID;
CREATE TABLE hours (machine TEXT, slot INTEGER, hour INTEGER, quantiles TEXT,
    PRIMARY KEY (machine, slot)) WITHOUT ROWID;
CREATE TABLE patterns (disk TEXT, slot INTEGER, hour INTEGER, worker TEXT, pattern TEXT,
    PRIMARY KEY (disk, slot)) WITHOUT ROWID;
CREATE TABLE devices (worker TEXT PRIMARY KEY, capacity_iops INTEGER, capacity INTEGER, cells TEXT)
    WITHOUT ROWID;
"""

log = logging.getLogger("nagaya.daemon")


class DemandStore:
    """The open file. One thread at a time; `close` it. One that cannot be read is begun anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            log.warning("%s cannot be used (%s): the recorded demand is begun anew", path, error)
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            self._db = self._open()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(self, now: int, samples: Mapping[str, Sample]) -> None:
        """Samples of machines by id. Hours that are over become percentiles first."""
        with self._db:
            self._close_hours(now)
            self._db.executemany(
                "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (machine, sample.at // INTERVAL % SAMPLES, *astuple(sample))
                    for machine, sample in samples.items()
                ],
            )

    def add_patterns(self, now: int, found: Iterable[WorkerDemand], capacities: Mapping[str, Any]) -> None:
        """What disks asked for since the last call; `capacities` are (IOPS, bytes/s) of the workers."""
        hour = now // HOUR
        with self._db:
            for one in found:
                for pattern in one.patterns:
                    disk = pattern["id"]
                    before = self._db.execute(
                        "SELECT pattern FROM patterns WHERE disk = ? AND slot = ? AND hour = ?",
                        (disk, hour % _DAY, hour),
                    ).fetchone()
                    whole = merged(json.loads(before[0]) if before else None, pattern)
                    self._db.execute(
                        "INSERT OR REPLACE INTO patterns VALUES (?, ?, ?, ?, ?)",
                        (disk, hour % _DAY, hour, one.worker, _text(whole)),
                    )
                known = self.devices().get(one.worker)
                cells = merged_cells(known.cells if known else (), one.cells)
                self._db.execute(
                    "INSERT OR REPLACE INTO devices VALUES (?, ?, ?, ?)",
                    (one.worker, *capacities.get(one.worker, (0, 0)), _text(cells)),
                )

    def keep(self, machines: Collection[str]) -> None:
        """Forget all machines that are not among these ids."""
        with self._db:
            for table, column in (("samples", "machine"), ("hours", "machine"), ("patterns", "disk")):
                known = [row[0] for row in self._db.execute(f"SELECT DISTINCT {column} FROM {table}")]  # noqa: S608  # names of ours
                gone = [(one,) for one in known if one.partition("/")[0] not in machines]
                self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", gone)  # noqa: S608

    def samples(self, machine: str) -> list[Sample]:
        """What is kept of the last hour, oldest first."""
        rows = self._db.execute(
            f"SELECT at, {_COLUMNS} FROM samples WHERE machine = ? ORDER BY at",  # noqa: S608
            (machine,),
        )
        return [Sample(*row) for row in rows]

    def hours(self, machine: str) -> list[Hour]:
        """The hours that are over, and what there is of this one, oldest first."""
        rows = self._db.execute(
            "SELECT hour, quantiles FROM hours WHERE machine = ? ORDER BY hour", (machine,)
        )
        found = [hour_from_json(hour, json.loads(text)) for hour, text in rows]
        samples = self.samples(machine)
        newest = [one for one in samples if one.at // HOUR == samples[-1].at // HOUR]
        if newest and not (found and found[-1].hour == newest[0].at // HOUR):
            found.append(hour_of(newest))
        return found

    def patterns(self, machine: str) -> dict[str, dict[int, tuple[str, dict[str, Any]]]]:
        """By disk ("<machine id>/disk0") and hour of the day (UTC): its worker, and the pattern."""
        found: dict[str, dict[int, tuple[str, dict[str, Any]]]] = {}
        rows = self._db.execute(
            "SELECT disk, slot, worker, pattern FROM patterns WHERE disk >= ? AND disk < ?",
            (f"{machine}/", f"{machine}0"),  # "0" follows "/"
        )
        for disk, slot, worker, text in rows:
            found.setdefault(disk, {})[slot] = worker, json.loads(text)
        return found

    def devices(self) -> dict[str, Device]:
        """The disks of the host, by the name of their worker."""
        rows = self._db.execute("SELECT worker, capacity_iops, capacity, cells FROM devices")
        return {worker: Device(tuple(json.loads(cells)), iops, rate) for worker, iops, rate, cells in rows}

    def _close_hours(self, now: int) -> None:
        rows = self._db.execute(
            f"SELECT machine, at, {_COLUMNS} FROM samples WHERE at / :length NOT IN"  # noqa: S608
            " (SELECT hour FROM hours WHERE hours.machine = samples.machine AND slot = at / :length % :slots)"
            " AND at / :length < :hour ORDER BY machine, at",
            {"length": HOUR, "slots": DAYS * _DAY, "hour": now // HOUR},
        )
        open_hours: dict[tuple[str, int], list[Sample]] = {}
        for machine, *values in rows:
            sample = Sample(*values)
            open_hours.setdefault((machine, sample.at // HOUR), []).append(sample)
        for (machine, hour), samples in open_hours.items():
            self._db.execute(
                "INSERT OR REPLACE INTO hours VALUES (?, ?, ?, ?)",
                (machine, hour % (DAYS * _DAY), hour, _text(hour_to_json(hour_of(samples)))),
            )

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, check_same_thread=False)
        try:
            self._path.chmod(0o600)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA busy_timeout=5000")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"its version is {version}, not {_VERSION}")
            if version == 0:
                db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        except BaseException:
            db.close()
            raise
        return db


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
