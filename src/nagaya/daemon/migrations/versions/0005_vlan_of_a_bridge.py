"""A network has a VLAN only if it is on a bridge; elsewhere it was said and had no effect."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """What had no effect is left out."""
    op.execute(
        "UPDATE networks SET spec = json_remove(spec, '$.vlan') "
        "WHERE json_extract(spec, '$.mode') != 'bridge'"
    )
