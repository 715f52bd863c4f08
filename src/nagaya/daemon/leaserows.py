"""Leases and waiters as rows of the state, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from nagaya.plane.imagelock import Access
from nagaya.resources.leases import Claim, Holder, Host, Lease, LeaseTable, Waiter

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LeaseNote:
    """One line of the history of leases."""

    at: float
    path: str
    event: str
    detail: str


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """What is to be written: rows that are new or different, and ids that are no more."""

    leases: tuple[Lease, ...] = ()
    dropped: tuple[str, ...] = ()
    waiters: tuple[Waiter, ...] = ()
    left: tuple[str, ...] = ()
    notes: tuple[LeaseNote, ...] = ()


def lease_row(lease: Lease) -> Row:
    """The columns of `leases`."""
    claim, holder = lease.claim, lease.holder
    return {
        "id": lease.id,
        "path": claim.path,
        "inode": claim.inode,
        "access": str(claim.access),
        "disk": claim.disk,
        **_holder_row(holder),
        "pid": holder.pid,
        "start_time": holder.start_time,
        "since": lease.since,
        "expires_at": lease.expires_at,
        "closed": int(lease.closed),
    }


def waiter_row(waiter: Waiter) -> Row:
    """The columns of `lease_waiters`."""
    return {
        "id": waiter.id,
        **_holder_row(waiter.holder),
        "claims": json.dumps([asdict(claim) for claim in waiter.claims]),
        "since": waiter.since,
        "deadline": waiter.deadline,
        "rank": waiter.rank,
    }


def table_of(leases: Iterable[Row], waiters: Iterable[Row]) -> LeaseTable:
    """The table that these rows were."""
    table = LeaseTable()
    for row in leases:
        claim = Claim(row["path"], row["inode"], Access(row["access"]), row["disk"])
        holder = _holder(row, row["pid"], row["start_time"])
        table.leases[row["id"]] = Lease(
            row["id"], claim, holder, row["since"], row["expires_at"], bool(row["closed"])
        )
    for row in waiters:
        claims = tuple(
            Claim(one["path"], one["inode"], Access(one["access"]), one["disk"])
            for one in json.loads(row["claims"])
        )
        table.waiters[row["id"]] = Waiter(
            row["id"], _holder(row), claims, row["since"], row["deadline"], row["rank"]
        )
    return table


def _holder_row(holder: Holder) -> Row:
    return {
        "holder_id": holder.id,
        "holder_name": holder.name,
        "host": holder.host.name,
        "host_id": holder.host.id,
        "boot_id": holder.host.boot_id,
    }


def _holder(row: Row, pid: int = 0, start_time: int = 0) -> Holder:
    host = Host(row["host"], row["host_id"], row["boot_id"])
    return Holder(row["holder_id"], row["holder_name"], host, pid, start_time)
