"""What the broker moved of machines' memory."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Nothing was moved yet, as far as is known."""
    op.execute("CREATE TABLE memory_moves (number INTEGER PRIMARY KEY, move TEXT NOT NULL) STRICT")
