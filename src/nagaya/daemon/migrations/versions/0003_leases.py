"""Leases of images, who waits for them, and what happened to them."""

from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = (
    """
    CREATE TABLE leases (
        id TEXT PRIMARY KEY,
        path TEXT NOT NULL,
        inode TEXT NOT NULL,
        access TEXT NOT NULL,
        disk TEXT NOT NULL,
        holder_id TEXT NOT NULL,
        holder_name TEXT NOT NULL,
        host TEXT NOT NULL,
        host_id TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        pid INTEGER NOT NULL,
        start_time INTEGER NOT NULL,
        since REAL NOT NULL,
        expires_at REAL,
        closed INTEGER NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE lease_waiters (
        id TEXT PRIMARY KEY,
        holder_id TEXT NOT NULL,
        holder_name TEXT NOT NULL,
        host TEXT NOT NULL,
        host_id TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        claims TEXT NOT NULL,
        since REAL NOT NULL,
        deadline REAL,
        rank INTEGER NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE lease_journal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        path TEXT NOT NULL,
        event TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT
    """,
)


def upgrade() -> None:
    """Leases of machines that run are taken anew by the daemon that starts."""
    for table in TABLES:
        op.execute(table)
