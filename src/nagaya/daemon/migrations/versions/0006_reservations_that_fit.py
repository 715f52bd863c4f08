"""A machine reserves no more memory than it has, and of a network no more than its limit."""

import json

import sqlalchemy
from alembic import op

from nagaya.units import parse_rate, parse_size

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """What could not be kept is not promised any more: memory up to the size, NICs nothing."""
    machines = op.get_bind().execute(sqlalchemy.text("SELECT id, spec FROM machines")).fetchall()
    for machine, text in machines:
        spec = json.loads(text)
        memory, limit = spec.get("memory", {}), spec.get("network", {}).get("limit")
        if "reservation" in memory and parse_size(memory["reservation"]) > parse_size(memory["size"]):
            memory["reservation"] = memory["size"]
        nics = spec.get("nics") or ()
        for network in {nic["network"] for nic in nics}:
            shares = [nic["share"] for nic in nics if nic["network"] == network]
            reserved = sum(parse_rate(share["reservation"]) for share in shares)
            if limit is not None and reserved > parse_rate(limit):
                for share in shares:
                    share["reservation"] = "0B/s"
        op.execute(
            sqlalchemy.text("UPDATE machines SET spec = :spec WHERE id = :id").bindparams(
                spec=json.dumps(spec), id=machine
            )
        )
