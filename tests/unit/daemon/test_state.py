"""The state in SQLite."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from nagaya.daemon import state
from nagaya.daemon.leaserows import LeaseChange, LeaseNote
from nagaya.daemon.state import HEAD, JOURNAL_KEPT, MOVES_KEPT, MachineRow, NicRow, Record, State
from nagaya.errors import ConflictError, ResourceError, UnavailableError
from nagaya.models.machine import MachineState
from nagaya.models.memory import MemoryMove
from nagaya.models.operation import OperationInfo, OperationState
from nagaya.plane.imagelock import Access
from nagaya.resources.leases import Claim, Holder, Host, Lease, LeaseTable, Waiter
from nagaya.spec import MachineSpec


def row(name: str = "web", machine_id: str = "a" * 12) -> MachineRow:
    return MachineRow(machine_id, name, {"name": name}, 1000, 1.0, 2.0, images=("d1", ""))


def test_a_machine_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = replace(row(), state=MachineState.RUNNING, pid=7, start_time=9, started_at=3.5)
    with State(tmp_path / "state.sqlite") as db:
        db.save_machine(saved, "running", "process 7")
    with State(tmp_path / "state.sqlite") as db:
        assert db.machines() == [saved]
        assert [(one.event, one.detail) for one in db.journal(saved.id)] == [("running", "process 7")]


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    with State(tmp_path / "state.sqlite") as db:
        db.save_machine(row(), "created")
        with pytest.raises(ConflictError, match="'web' is taken"):
            db.save_machine(row(machine_id="b" * 12), "created")
        assert len(db.machines()) == 1


def test_deleting_a_machine_forgets_its_journal(tmp_path: Path) -> None:
    with State(tmp_path / "state.sqlite") as db:
        db.save_machine(row(), "created")
        db.delete_machine("a" * 12)
        assert db.machines() == []
        assert db.journal("a" * 12) == []


def test_the_file_is_for_its_owner_only_and_survives_power_loss(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with State(path) as db:
        assert path.stat().st_mode & 0o777 == 0o600
        assert db._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert db._db.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_the_journal_and_the_operations_are_bounded(tmp_path: Path) -> None:
    with State(tmp_path / "state.sqlite") as db:
        for number in range(JOURNAL_KEPT + 20):
            db.save_machine(row(), f"event {number}")
    with State(tmp_path / "state.sqlite") as db:
        kept = db.journal("a" * 12, 10**6)
        assert len(kept) == JOURNAL_KEPT
        assert kept[-1].event == f"event {JOURNAL_KEPT + 19}"


def test_an_operation_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = OperationInfo(
        "x", "up", "web", OperationState.FAILED, "start", 0.5, 3, 1.0, 2.0, {"code": "conflict"}, None
    )
    with State(tmp_path / "state.sqlite") as db:
        db.save_operation(saved)
        assert db.operations() == [saved]


def test_leases_waiters_and_notes_come_back_as_they_were_saved(tmp_path: Path) -> None:
    host = Host("h", "h-id", "boot")
    claim = Claim("/srv/x", "8:1:5", Access.SHARED, "disk1")
    lease = Lease("l1", claim, Holder("m1", "a", host, 7, 9), 1.5, 2.5, closed=True)
    waiter = Waiter("w1", Holder("m2", "b", host), (claim, replace(claim, inode="")), 3.5, None, -2)
    change = LeaseChange((lease,), (), (waiter,), (), (LeaseNote(4.5, "/srv/x", "refused", "b"),))
    with State(tmp_path / "state.sqlite") as db:
        db.save_leases(change)
    with State(tmp_path / "state.sqlite") as db:
        assert db.leases() == LeaseTable({"l1": lease}, {"w1": waiter})
        assert [(note.event, note.detail) for note in db.lease_journal("/srv/x")] == [
            ("refused", "/srv/x: b")
        ]
        db.save_leases(LeaseChange(dropped=("l1",), left=("w1",)))
        assert db.leases() == LeaseTable()


def test_a_full_disk_is_said_and_nothing_is_half_written(tmp_path: Path) -> None:
    with State(tmp_path / "state.sqlite") as db:
        db.save_machine(row(), "created")
        pages = db._db.execute("PRAGMA page_count").fetchone()[0]
        db._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ResourceError, match="is full"):
            db.save_machine(replace(row(), cause="x" * 10**6), "failed")
        assert db.machines() == [row()]


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"not a database, but long enough to look like one" * 10)
    with pytest.raises(UnavailableError, match=r"state\.sqlite cannot be used"):
        State(path)


def test_a_newer_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    State(path).close()
    db = sqlite3.connect(path)
    db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.commit()
    db.close()
    with pytest.raises(UnavailableError, match="'9999', which this version of Nagaya does not know"):
        State(path)


def go_back(path: Path, revision: str) -> None:
    """Make the file one of an older revision."""
    tables = {
        "0003": ("leases", "lease_waiters", "lease_journal"),
        "0004": ("networks", "security_groups"),
        "0007": ("memory_moves",),
    }
    columns = {"0002": "engine", "0004": "nics", "0008": "booted"}
    db = sqlite3.connect(path)
    for name in (name for since, names in tables.items() if since > revision for name in names):
        db.execute(f"DROP TABLE {name}")
    for name in (name for since, name in columns.items() if since > revision):
        db.execute(f"ALTER TABLE machines DROP COLUMN {name}")
    db.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    db.commit()
    db.close()


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(state._MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_a_machine_of_the_first_revision_was_started_by_uml(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with State(path) as first:
        first.save_machine(replace(row("started"), kernel="uml"), "created")
        first.save_machine(row("new", "b" * 12), "created")
    go_back(path, "0001")
    with State(path) as second:
        assert {row.name: row.engine for row in second.machines()} == {"started": "uml", "new": ""}
        assert all(row.nics == () for row in second.machines())


def test_a_vlan_that_had_no_effect_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    State(path).close()
    db = sqlite3.connect(path)
    for name, mode in (("back", "nat"), ("office", "bridge")):
        spec = json.dumps({"name": name, "mode": mode, "vlan": 5})
        db.execute("INSERT INTO networks VALUES (?, ?, 0.0)", (name, spec))
    db.commit()
    db.close()
    go_back(path, "0004")
    with State(path) as second:
        assert [record.spec.get("vlan") for record in second.records("networks")] == [None, 5]


def test_moves_of_memory_are_kept_the_newest_of_them(tmp_path: Path) -> None:
    def move(number: int) -> MemoryMove:
        return MemoryMove(float(number), "db", "take", 2**20, "web needs memory", ["web"])

    with State(tmp_path / "state.sqlite") as db:
        db.save_memory_moves({number: move(number) for number in range(1, MOVES_KEPT + 1)})
        db.save_memory_moves({MOVES_KEPT: replace(move(MOVES_KEPT), came=5), MOVES_KEPT + 1: move(7)})
    with State(tmp_path / "state.sqlite") as db:
        moves = db.memory_moves()
    assert list(moves) == list(range(2, MOVES_KEPT + 2))
    assert (moves[MOVES_KEPT].came, moves[MOVES_KEPT + 1]) == (5, move(7))


def test_reservations_that_could_not_be_kept_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    nics = [{"network": "back", "share": {"reservation": "6MiB/s"}}] * 2
    good = {"name": "web", "memory": {"size": "1GiB", "reservation": "1GiB"}, "nics": nics}
    bad = {**good, "memory": {"size": "1GiB", "reservation": "2GiB"}, "network": {"limit": "10MiB/s"}}
    with State(path) as first:
        first.save_machine(replace(row("a"), spec=good), "created")
        first.save_machine(replace(row("b", "b" * 12), spec=bad), "created")
    go_back(path, "0005")
    with State(path) as second:
        specs = [MachineSpec.model_validate(one.spec) for one in second.machines()]
    assert [one.memory.reservation for one in specs] == [2**30, 2**30]
    assert [nic.share.reservation for one in specs for nic in one.nics or ()] == [6 * 2**20] * 2 + [0] * 2


def test_nics_and_networks_come_back_as_they_were_saved(tmp_path: Path) -> None:
    nics = (NicRow("back", "52:54:00:00:00:01", "10.77.0.5", "fd00::5"), NicRow("back", "52:54:00:00:00:02"))
    record = Record("back", {"name": "back", "ipv4": "10.77.0.0/24"}, 1.5)
    with State(tmp_path / "state.sqlite") as db:
        db.save_machine(replace(row(), nics=nics), "created")
        db.save_record("networks", replace(record, spec={}))
        db.save_record("networks", record)
    with State(tmp_path / "state.sqlite") as db:
        assert db.machines()[0].nics == nics
        assert (db.records("networks"), db.records("security_groups")) == ([record], [])
        db.delete_record("networks", "back")
        assert db.records("networks") == []


def test_the_newest_file_is_opened_without_alembic(tmp_path: Path) -> None:
    import subprocess
    import sys

    State(tmp_path / "state.sqlite").close()
    program = (
        "import sys; from pathlib import Path; from nagaya.daemon.state import State;"
        "State(Path(sys.argv[1])).close(); print('alembic' in sys.modules, 'sqlalchemy' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "state.sqlite"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "False False\n"
