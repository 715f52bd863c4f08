"""Machines, operations and the journal."""

from alembic import op

revision = "0001"
down_revision = None

TABLES = (
    """
    CREATE TABLE machines (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        spec TEXT NOT NULL,
        images TEXT NOT NULL,
        state TEXT NOT NULL,
        cause TEXT NOT NULL,
        uid INTEGER NOT NULL,
        kernel TEXT NOT NULL,
        pid INTEGER,
        start_time INTEGER,
        started_at REAL,
        retry_at REAL,
        restarts INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        source TEXT NOT NULL,
        created_at REAL NOT NULL,
        changed_at REAL NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE journal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        machine_id TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
        at REAL NOT NULL,
        event TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX journal_by_machine ON journal (machine_id, seq)",
    """
    CREATE TABLE operations (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        target TEXT NOT NULL,
        state TEXT NOT NULL,
        step TEXT NOT NULL,
        fraction REAL,
        revision INTEGER NOT NULL,
        created_at REAL NOT NULL,
        ended_at REAL,
        error TEXT,
        result TEXT
    ) STRICT
    """,
    "CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
)


def upgrade() -> None:
    """Create the first tables."""
    for table in TABLES:
        op.execute(table)
