"""Reservations of disks: what fits, and the arithmetic of what does not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import ResourceError
from nagaya.plane.shares import ArbiterStatus, NodeStatus, ShareNode
from nagaya.resources.reservations import admit

MIB = 2**20


def arbiter(*nodes: ShareNode, iops: int = 1000, rate: int = 100 * MIB) -> ArbiterStatus:
    """One disk that can do so much."""
    status = tuple(
        NodeStatus(
            id=node.id,
            parent=node.parent,
            reservation_iops=node.reservation_iops,
            reservation=node.reservation,
            limit_iops=node.limit_iops,
            limit=node.limit,
            weight=node.weight,
            latency_p99_us=node.latency_p99_us,
            dispatched=0,
            joined=0,
            bytes=0,
            waiting=0,
            in_flight=0,
            p99_us=0,
            objective="none",
        )
        for node in nodes
    )
    return ArbiterStatus("disk-8:0", 8, 2000, 0, 0, iops, rate, status)


def machine(name: str, iops: int, tenant: str | None = None, **knobs: int) -> Sequence[ShareNode]:
    """A machine's nodes."""
    return ShareNode(name, tenant, reservation_iops=iops, **knobs), ShareNode(f"{name}/disk0")


def refused(arbiters: list[ArbiterStatus], wanted: Sequence[ShareNode]) -> ResourceError:
    """How `wanted` is refused."""
    with pytest.raises(ResourceError) as caught:
        admit(arbiters, wanted, (), str.upper)
    return caught.value


def test_what_fits_is_admitted_and_what_does_not_is_refused_with_who_has_what() -> None:
    disk = arbiter(*machine("web", 600), *machine("batch", 150), *machine("db", 0))
    admit([disk], machine("db", 250), machine("db", 0), str)
    error = refused([disk], machine("db", 251))
    assert error.message == (
        "DB reserves 251iops of disk disk-8:0, 250iops are left: it does 1000iops as measured, "
        "750iops are promised (WEB 600iops, BATCH 150iops)"
    )
    assert error.hint.startswith("reserve 250iops at most")
    assert error.facts["promised"] == 750


def test_bytes_count_beside_requests() -> None:
    disk = arbiter(ShareNode("web", reservation=60 * MIB), ShareNode("web/disk0"), *machine("db", 0))
    error = refused([disk], (ShareNode("db", reservation=41 * MIB),))
    assert "DB reserves 41MiB/s of disk disk-8:0, 40MiB/s are left" in error.message


def test_what_disks_reserve_counts_in_their_machine_and_machines_in_their_tenant() -> None:
    disks = (ShareNode("web"), *(ShareNode(f"web/disk{n}", reservation_iops=300) for n in range(3)))
    assert "WEB 900iops" in refused([arbiter(*disks, *machine("db", 0))], machine("db", 101)).message
    acme = (ShareNode("@acme", reservation_iops=500), *machine("web", 100, "@acme"))
    assert "@ACME 500iops" in refused([arbiter(*acme, *machine("db", 0))], machine("db", 501)).message
    admit([arbiter(*acme, *machine("db", 0, "@acme"))], machine("db", 900, "@acme"), (), str)


def test_machines_reserve_no_more_than_their_tenant_may_have() -> None:
    acme = (ShareNode("@acme", limit_iops=400), *machine("web", 300, "@acme"), *machine("db", 0, "@acme"))
    error = refused([arbiter(*acme)], machine("db", 101, "@acme"))
    assert "@ACME is limited to 400iops, and its parts reserve 401iops" in error.message


def test_taking_less_is_never_refused_and_an_unmeasured_disk_refuses_nothing() -> None:
    full = arbiter(*machine("web", 900), *machine("db", 500))
    admit([full], machine("db", 400), machine("db", 500), str)
    admit([arbiter(*machine("db", 0), iops=0, rate=0)], machine("db", 10**6), (), str)


def test_only_the_disk_that_a_machine_is_on_counts() -> None:
    elsewhere = arbiter(*machine("web", 1000), *machine("web2", 0), ShareNode("db"))
    admit([elsewhere], machine("db", 10), (), str)
    admit([elsewhere], machine("we", 10), (), str)
    idle = arbiter(*machine("web", 600), ShareNode("batch", reservation_iops=900), *machine("db", 0))
    admit([idle], machine("db", 400), (), str)


def test_a_tenant_reserves_on_the_disks_of_its_machines() -> None:
    here = arbiter(ShareNode("@acme"), *machine("web", 100, "@acme"), *machine("db", 600))
    acme = (ShareNode("@acme", reservation_iops=401),)
    assert "@ACME reserves 401iops" in refused([here], acme).message
    admit([arbiter(*machine("db", 600), ShareNode("@acme"))], acme, (), str)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.integers(0, 2000))
def test_the_sum_decides(others: list[int], wanted: int) -> None:
    nodes = [node for n, iops in enumerate(others) for node in machine(f"m{n}", iops)]
    fits = sum(others) + wanted <= 1000
    try:
        admit([arbiter(*nodes, *machine("db", 0))], machine("db", wanted), machine("db", 0), str)
    except ResourceError as error:
        assert not fits
        assert error.facts["need"] == wanted
    else:
        assert fits or wanted == 0
