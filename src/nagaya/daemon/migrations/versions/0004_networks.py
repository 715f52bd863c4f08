"""Networks, security groups, and what each NIC of a machine has of its network."""

from alembic import op

revision = "0004"
down_revision = "0003"

TABLES = tuple(
    f"""
    CREATE TABLE {table} (
        name TEXT PRIMARY KEY,
        spec TEXT NOT NULL,
        created_at REAL NOT NULL
    ) STRICT
    """
    for table in ("networks", "security_groups")
)


def upgrade() -> None:
    """Machines that are there have no NICs, and stay as they are."""
    for table in TABLES:
        op.execute(table)
    op.execute("ALTER TABLE machines ADD COLUMN nics TEXT NOT NULL DEFAULT '[]'")
