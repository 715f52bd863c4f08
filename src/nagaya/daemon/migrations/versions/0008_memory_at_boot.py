"""With how much memory a machine that runs has begun: its memory.size may be another by now."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Until now memory.size says it; of machines with a memory.max the plane knows."""
    op.execute("ALTER TABLE machines ADD COLUMN booted INTEGER")
