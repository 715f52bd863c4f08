"""What the daemon must not forget: machines, their journal, and operations, in SQLite.

Plain `sqlite3`, because its import takes 4 ms where SQLAlchemy's takes 450, and a restarted daemon has a
second to know its machines again (docs/decisions/0005-state-in-sqlite.md). Migrations are alembic's; it is
imported only when the file is behind. Every method is one transaction, on disk when it returns (WAL,
synchronous=FULL).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from nagaya.daemon.leaserows import LeaseChange, lease_row, table_of, waiter_row
from nagaya.errors import ConflictError, ResourceError, UnavailableError
from nagaya.models.history import JournalEntry
from nagaya.models.machine import MachineState
from nagaya.models.memory import MemoryMove
from nagaya.models.operation import OperationInfo, OperationState
from nagaya.resources.leases import LeaseTable

HEAD = "0008"  # the newest revision in migrations/versions
JOURNAL_KEPT = 200  # entries for each machine
OPERATIONS_KEPT = 200
LEASE_NOTES_KEPT = 1000
MOVES_KEPT = 1000  # of memory

_MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class NicRow:
    """What one NIC of a machine has, for the machine's life. "": not ours to choose, or no such family."""

    network: str
    mac: str
    ipv4: str = ""
    ipv6: str = ""
    link: bool = True  # whether its cable is plugged


@dataclass(frozen=True, slots=True)
class Record:
    """A network or a security group as it is remembered."""

    name: str
    spec: dict[str, Any]
    created_at: float


RecordTable = Literal["networks", "security_groups"]


@dataclass(frozen=True, slots=True)
class MachineRow:
    """A machine as it is remembered."""

    id: str
    name: str
    spec: dict[str, Any]
    uid: int
    created_at: float
    changed_at: float
    nics: tuple[NicRow, ...] = ()
    images: tuple[str, ...] = ()  # for each disk the digest of its base image, "" for none
    state: MachineState = MachineState.STOPPED
    cause: str = ""
    kernel: str = ""
    engine: str = ""  # what the last start chose; "auto" may choose differently next time
    pid: int | None = None
    start_time: int | None = None
    started_at: float | None = None
    retry_at: float | None = None  # when the restart policy starts it again
    restarts: int = 0  # by itself or by policy, since somebody last started it
    booted: int | None = None  # bytes of memory that its guest began with
    attempts: int = 0  # daemons that died while they started it
    source: str = ""


@dataclass(slots=True)
class State:
    """The open database. One thread at a time; `close` it."""

    path: Path
    _db: sqlite3.Connection = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with _told(self.path):
            migrate(self.path)
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
                self._db.execute(f"PRAGMA {pragma}")
            self._prune()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def machines(self) -> list[MachineRow]:
        """All of them, by name."""
        return [_machine(row) for row in self._db.execute("SELECT * FROM machines ORDER BY name")]

    def save_machine(self, row: MachineRow, event: str, detail: str = "") -> None:
        """Insert or update `row`, and journal `event`. Raises `ConflictError` if the name is taken."""
        columns = [one.name for one in fields(MachineRow)]
        values = {column: getattr(row, column) for column in columns}
        values |= {"spec": json.dumps(row.spec), "images": json.dumps(row.images), "state": str(row.state)}
        values |= {"nics": json.dumps([asdict(nic) for nic in row.nics])}
        updates = _updates(columns)
        with self._transaction() as db:
            try:
                db.execute(f"{_insert('machines', columns)} ON CONFLICT (id) DO UPDATE SET {updates}", values)
            except sqlite3.IntegrityError as error:
                raise ConflictError(f"the name {row.name!r} is taken") from error
            db.execute(
                "INSERT INTO journal (machine_id, at, event, detail) VALUES (?, ?, ?, ?)",
                (row.id, row.changed_at, event, detail),
            )

    def note(self, machine_id: str, at: float, event: str, detail: str) -> None:
        """Journal `event` of a machine, if there is one of this id; its row stays as it is."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO journal (machine_id, at, event, detail)"
                " SELECT id, ?, ?, ? FROM machines WHERE id = ?",
                (at, event, detail, machine_id),
            )

    def delete_machine(self, machine_id: str) -> None:
        """Forget a machine and its journal."""
        with self._transaction() as db:
            db.execute("DELETE FROM machines WHERE id = ?", (machine_id,))

    def journal(self, machine_id: str, limit: int = JOURNAL_KEPT) -> list[JournalEntry]:
        """The newest `limit` entries, oldest first."""
        rows = self._db.execute(
            "SELECT seq, at, event, detail FROM journal WHERE machine_id = ? ORDER BY seq DESC LIMIT ?",
            (machine_id, limit),
        ).fetchall()
        return [JournalEntry(**dict(row)) for row in reversed(rows)]

    def operations(self) -> list[OperationInfo]:
        """The operations that are kept, oldest first."""
        return [_operation(row) for row in self._db.execute("SELECT * FROM operations ORDER BY created_at")]

    def save_operation(self, operation: OperationInfo) -> None:
        """Insert or update one."""
        columns = [one.name for one in fields(OperationInfo)]
        values = {column: getattr(operation, column) for column in columns}
        values |= {
            "state": str(operation.state),
            "error": json.dumps(operation.error) if operation.error is not None else None,
            "result": json.dumps(operation.result) if operation.result is not None else None,
        }
        updates = _updates(columns)
        with self._transaction() as db:
            db.execute(f"{_insert('operations', columns)} ON CONFLICT (id) DO UPDATE SET {updates}", values)

    def leases(self) -> LeaseTable:
        """The leases, and who waits for them."""
        found = [
            [dict(row) for row in self._db.execute(f"SELECT * FROM {table}")]  # noqa: S608  # names of ours
            for table in ("leases", "lease_waiters")
        ]
        return table_of(*found)

    def save_leases(self, change: LeaseChange) -> None:
        """Write what has changed, all of it or nothing."""
        with self._transaction() as db:
            for table, ids in (("leases", change.dropped), ("lease_waiters", change.left)):
                db.executemany(f"DELETE FROM {table} WHERE id = ?", [(one,) for one in ids])  # noqa: S608
            for table, rows in (
                ("leases", [lease_row(lease) for lease in change.leases]),
                ("lease_waiters", [waiter_row(waiter) for waiter in change.waiters]),
            ):
                for row in rows:
                    columns = list(row)
                    updates = _updates(columns)
                    db.execute(f"{_insert(table, columns)} ON CONFLICT (id) DO UPDATE SET {updates}", row)
            db.executemany(
                "INSERT INTO lease_journal (at, path, event, detail) VALUES (?, ?, ?, ?)",
                [(note.at, note.path, note.event, note.detail) for note in change.notes],
            )

    def lease_journal(self, path: str = "", limit: int = LEASE_NOTES_KEPT) -> list[JournalEntry]:
        """The newest `limit` notes on leases, oldest first; only those of `path` if that is given."""
        rows = self._db.execute(
            "SELECT seq, at, event, path, detail FROM lease_journal WHERE ? IN ('', path)"
            " ORDER BY seq DESC LIMIT ?",
            (path, limit),
        ).fetchall()
        return [
            JournalEntry(row["seq"], row["at"], row["event"], f"{row['path']}: {row['detail']}")
            for row in reversed(rows)
        ]

    def records(self, table: RecordTable) -> list[Record]:
        """All of a table, by name."""
        rows = self._db.execute(f"SELECT * FROM {table} ORDER BY name")  # noqa: S608  # names of ours
        return [Record(row["name"], json.loads(row["spec"]), row["created_at"]) for row in rows]

    def save_record(self, table: RecordTable, record: Record) -> None:
        """Insert or replace one."""
        with self._transaction() as db:
            db.execute(
                f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)",  # noqa: S608
                (record.name, json.dumps(record.spec), record.created_at),
            )

    def delete_record(self, table: RecordTable, name: str) -> None:
        """Forget one."""
        with self._transaction() as db:
            db.execute(f"DELETE FROM {table} WHERE name = ?", (name,))  # noqa: S608

    def memory_moves(self) -> dict[int, MemoryMove]:
        """What was moved of machines' memory, by number, oldest first."""
        rows = self._db.execute("SELECT number, move FROM memory_moves ORDER BY number")
        return {row["number"]: MemoryMove.from_json(json.loads(row["move"])) for row in rows}

    def save_memory_moves(self, moves: Mapping[int, MemoryMove]) -> None:
        """Insert or replace some; the newest `MOVES_KEPT` stay."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO memory_moves VALUES (?, ?)",
                [(number, json.dumps(asdict(move))) for number, move in moves.items()],
            )
            db.execute(
                "DELETE FROM memory_moves WHERE number <= (SELECT max(number) FROM memory_moves) - ?",
                (MOVES_KEPT,),
            )

    def fact(self, key: str) -> str:
        """What `set_fact` stored; "" for nothing."""
        row = self._db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return "" if row is None else str(row[0])

    def set_fact(self, key: str, value: str) -> None:
        """Store `value` under `key`."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value))

    def _prune(self) -> None:
        with self._transaction() as db:
            db.execute(
                "DELETE FROM journal WHERE seq IN (SELECT seq FROM (SELECT seq, row_number() OVER"
                " (PARTITION BY machine_id ORDER BY seq DESC) AS age FROM journal) WHERE age > ?)",
                (JOURNAL_KEPT,),
            )
            db.execute(
                "DELETE FROM operations WHERE id NOT IN"
                " (SELECT id FROM operations ORDER BY created_at DESC LIMIT ?)",
                (OPERATIONS_KEPT,),
            )
            db.execute(
                "DELETE FROM lease_journal WHERE seq NOT IN"
                " (SELECT seq FROM lease_journal ORDER BY seq DESC LIMIT ?)",
                (LEASE_NOTES_KEPT,),
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _told(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _insert(table: str, columns: list[str]) -> str:
    named = ", ".join(f":{column}" for column in columns)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({named})"  # noqa: S608  # names of ours


def _updates(columns: list[str]) -> str:
    return ", ".join(f"{column} = excluded.{column}" for column in columns if column != "id")


def migrate(path: Path) -> None:
    """Bring the file at `path` to `HEAD`. Raises `UnavailableError` if a newer Nagaya wrote it."""
    found = _revision(path)
    if found == HEAD:
        return
    from alembic.command import upgrade
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    engine = create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(path, isolation_level=None), poolclass=NullPool
    )
    # sqlite3 begins no transaction before DDL; with ours a migration that is cut short leaves nothing.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN EXCLUSIVE"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        try:
            upgrade(config, "head")
        except CommandError as error:
            raise UnavailableError(
                f"{path} has revision {found!r}, which this version of Nagaya does not know",
                hint="run the newer version that wrote it, or set NAGAYA_STATE_DIR to another directory",
            ) from error
        connection.commit()


def _revision(path: Path) -> str:
    db = sqlite3.connect(path)
    try:
        known = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        row = db.execute("SELECT version_num FROM alembic_version").fetchone() if known else None
    finally:
        db.close()
    return "" if row is None else str(row[0])


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "full" in text:
            raise ResourceError(
                f"the disk that holds {path} is full", hint="free some space and try again"
            ) from error
        raise UnavailableError(f"the state in {path} cannot be used: {text}") from error


def _machine(row: sqlite3.Row) -> MachineRow:
    values = dict(row)
    values["spec"] = json.loads(values["spec"])
    values["images"] = tuple(json.loads(values["images"]))
    values["nics"] = tuple(NicRow(**nic) for nic in json.loads(values["nics"]))
    values["state"] = MachineState(values["state"])
    return MachineRow(**values)


def _operation(row: sqlite3.Row) -> OperationInfo:
    values = dict(row)
    values["state"] = OperationState(values["state"])
    for key in ("error", "result"):
        values[key] = json.loads(values[key]) if values[key] is not None else None
    return OperationInfo(**values)


def cut_short(operation: OperationInfo, at: float) -> OperationInfo:
    """`operation` as the next daemon finds it, if the last one ended during it."""
    return replace(
        operation,
        state=OperationState.FAILED,
        revision=operation.revision + 1,
        ended_at=at,
        error=UnavailableError("the daemon ended during this operation", hint="start it again").to_json(),
    )
