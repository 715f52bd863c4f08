"""Which engine started a machine; before this revision there was one."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Machines that were ever started have a kernel's name."""
    op.execute("ALTER TABLE machines ADD COLUMN engine TEXT NOT NULL DEFAULT ''")
    op.execute("UPDATE machines SET engine = 'uml' WHERE kernel != ''")
