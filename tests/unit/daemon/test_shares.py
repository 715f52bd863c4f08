"""Knobs: from specifications to the plane, live and at a start; what is refused changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nagaya.daemon import apply
from nagaya.daemon.apply import Request
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.shares import is_live
from nagaya.errors import (
    ConflictError,
    NagayaError,
    NotFoundError,
    ResourceError,
    SpecError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from nagaya.models.machine import MachineState
from nagaya.plane.shares import ShareNode
from nagaya.progress import silent
from nagaya.spec import MachineSpec, Tenant
from nagaya.testing import Stage
from nagaya.testing.engine import UNSUPPORTED_WEIGHT, FakeEngine
from nagaya.testing.plane import CAPACITY_IOPS, FakePlane

DISK = {"size": "1MiB"}


def spec(name: str, **parts: Any) -> MachineSpec:
    return MachineSpec.model_validate({"name": name, "memory": "64MiB", "disks": [DISK], **parts})


def plane(daemon: Daemon) -> FakePlane:
    found = daemon.parts.plane
    assert isinstance(found, FakePlane)
    return found


async def started(daemon: Daemon, name: str, **parts: Any) -> str:
    """The id of a new machine that runs."""
    one = await daemon.supervisor.create(spec(name, **parts))
    await daemon.supervisor.start(name)
    return one.row.id


def test_a_start_tells_the_plane_the_whole_path_and_an_end_takes_it_back(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.shares.set_tenant("acme", [("disk.weight", 300)])
        share = {"weight": 50, "latency_p99": "5ms"}
        disks = [DISK, {**DISK, "share": share}]
        db = await started(daemon, "db", tenant="acme", disk={"limit": "100iops"}, disks=disks)
        assert plane(daemon).shares == {
            "@acme": ShareNode("@acme", weight=300),
            db: ShareNode(db, "@acme", limit_iops=100),
            f"{db}/disk0": ShareNode(f"{db}/disk0", db),
            f"{db}/disk1": ShareNode(f"{db}/disk1", db, weight=50, latency_p99_us=5000),
        }
        devices = plane(daemon).devices
        assert [node["id"] for node in devices[f"{db}/disk1"]["shares"]] == ["@acme", db, f"{db}/disk1"]
        await daemon.supervisor.kill("db")
        assert set(plane(daemon).shares) == {"@acme"}

    stage.play(scene)


def test_set_is_live_is_remembered_and_is_told_to_the_plane_again_by_the_next_daemon(stage: Stage) -> None:
    async def first(daemon: Daemon) -> None:
        db = await started(daemon, "db")
        pid = daemon.supervisor.get("db").row.pid
        changed = [
            ("disk.weight", 400),
            ("disk.limit", "50MiB/s"),
            ("disks[0].share.weight", 7),
            ("cpu.limit", 1),
        ]
        answer = await daemon.supervisor.shares.set("db", changed)
        found = {change.field: (change.before, change.after, change.effect) for change in answer.changes}
        assert found == {
            "disk.weight": (100, 400, "live"),
            "disk.limit": (None, "50MiB/s", "live"),
            "disks[0].share.weight": (100, 7, "live"),
            "cpu.limit": (None, 1.0, "live"),
        }
        shares = plane(daemon).shares
        assert (shares[db].weight, shares[db].limit, shares[f"{db}/disk0"].weight) == (400, 50 * 2**20, 7)
        engine = daemon.parts.engine(spec("db"))
        assert isinstance(engine, FakeEngine)
        assert engine.adjusted[db].limit == 1.0
        one = daemon.supervisor.get("db")
        assert (one.row.pid, one.row.state) == (pid, MachineState.RUNNING)
        (entry,) = (entry for entry in await daemon.supervisor.journal("db", 9) if entry.event == "set")
        assert "disk.limit=50MiB/s, disk.weight=400" in entry.detail
        await plane(daemon).set_shares([ShareNode(db)])  # as if that daemon had died before it told the plane

    async def second(daemon: Daemon) -> None:
        one = daemon.supervisor.get("db")
        assert one.spec.disk.weight == 400
        assert plane(daemon).shares[one.row.id].weight == 400
        again = await daemon.supervisor.shares.set("db", [("disk.weight", 400)])
        assert again.changes == []

    stage.play(first)
    stage.play(second)


def test_a_dry_run_changes_nothing(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        db = await started(daemon, "db")
        answer = await daemon.supervisor.shares.set("db", [("disk.weight", 400)], dry_run=True)
        assert [change.after for change in answer.changes] == [400]
        assert daemon.supervisor.get("db").spec.disk.weight == 100
        assert plane(daemon).shares[db].weight == 100

    stage.play(scene)


@pytest.mark.parametrize(
    ("field", "value", "error", "words"),
    [
        ("disk.weight", 0, SpecError, "disk.weight: 0 must be at least 1"),
        ("disk.wieght", 5, SpecError, "did you mean 'weight'?"),
        ("disks[3].share.weight", 5, SpecError, "there are 1 entries"),
        ("disks[0].size", "2MiB", UsageError, "disks[0].size: cannot be set"),
        ("name", "other", UsageError, "name: cannot be set"),
        ("memory.size", "128MiB", ConflictError, "nothing can be plugged"),
        ("cpu.weight", UNSUPPORTED_WEIGHT, UnsupportedError, "told to refuse"),
        ("disk.weight", UNSUPPORTED_WEIGHT, UnavailableError, "told to refuse"),
        ("disk.reservation", f"{CAPACITY_IOPS + 1}iops", ResourceError, "db reserves 10001iops"),
    ],
)
def test_what_is_refused_changes_nothing(
    stage: Stage, field: str, value: object, error: type[NagayaError], words: str
) -> None:
    async def scene(daemon: Daemon) -> None:
        await started(daemon, "db")
        before, shares = daemon.supervisor.get("db").spec, plane(daemon).shares
        with pytest.raises(error) as caught:
            await daemon.supervisor.shares.set("db", [("disk.limit", "9MiB/s"), (field, value)])
        assert words in caught.value.message
        assert daemon.supervisor.get("db").spec == before
        assert plane(daemon).shares == shares
        await daemon.supervisor.shares.set("db", [("disk.weight", 7)])

    stage.play(scene)


def test_a_machine_that_is_down_takes_all_but_other_disks_and_keeps_its_content(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        one = await daemon.supervisor.create(spec("db"))
        overlay = daemon.paths.machine(one.row.id).disk(0)
        before = overlay.read_bytes(), overlay.stat().st_ino
        changed = [("memory.size", "96MiB"), ("disks[0].share.weight", 9), ("restart", "always")]
        answer = await daemon.supervisor.shares.set("db", changed)
        assert {change.effect for change in answer.changes} == {"start"}
        assert daemon.supervisor.get("db").spec.memory.size == 96 * 2**20
        again = await apply.up(daemon, Request([spec("db", memory="64MiB")], {}), silent)
        assert [one["action"] for one in again["machines"]] == ["change"]
        assert (overlay.read_bytes(), overlay.stat().st_ino) == before

    stage.play(scene)


def test_up_turns_knobs_of_a_running_machine_without_a_restart(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        db = await started(daemon, "db")
        pid = daemon.supervisor.get("db").row.pid
        disks = [{**DISK, "share": {"weight": 3}}]
        result = await apply.up(daemon, Request([spec("db", tenant="acme", disks=disks)], {}), silent)
        assert [one["action"] for one in result["machines"]] == ["set"]
        shares = plane(daemon).shares
        assert (shares[db].parent, shares[f"{db}/disk0"].weight) == ("@acme", 3)
        assert daemon.supervisor.get("db").row.pid == pid

    stage.play(scene)


def test_up_sets_tenants_before_their_machines_start(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        acme = Tenant.model_validate({"name": "acme", "disk": {"weight": 300}})
        request = Request([spec("db", tenant="acme")], {}, tenants=[acme])
        result = await apply.up(daemon, request, silent)
        assert result["tenants"] == [{"name": "acme", "action": "set"}]
        assert plane(daemon).shares["@acme"].weight == 300
        again = await apply.up(daemon, request, silent)
        assert again["tenants"] == [{"name": "acme", "action": "unchanged"}]

    stage.play(scene)


def test_a_start_whose_reservation_does_not_fit_leaves_nothing(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await started(daemon, "web", disk={"reservation": "6000iops"})
        await daemon.supervisor.create(spec("db", disk={"reservation": "5000iops"}))
        with pytest.raises(ResourceError, match=r"6000iops are promised \(web 6000iops\)"):
            await daemon.supervisor.start("db")
        one = daemon.supervisor.get("db")
        assert one.row.state is MachineState.FAILED
        assert not any(device.startswith(one.row.id) for device in plane(daemon).devices)
        await daemon.supervisor.shares.set("web", [("disk.reservation", "5000iops")])
        await daemon.supervisor.start("db")

    stage.play(scene)


def test_of_starts_and_settings_at_the_same_moment_only_as_many_are_admitted_as_fit(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        shares = daemon.supervisor.shares
        await started(daemon, "web")
        for name in ("a", "b", "c"):
            await daemon.supervisor.create(spec(name, disk={"reservation": "4000iops"}))
        results = await asyncio.gather(
            *(daemon.supervisor.start(name) for name in ("a", "b", "c")),
            shares.set("web", [("disk.reservation", "4000iops")]),
            return_exceptions=True,
        )
        refused = [result for result in results if isinstance(result, ResourceError)]
        assert len(refused) == 2, results
        promised = [node.reservation_iops for node in plane(daemon).shares.values()]
        assert sum(promised) == 8000

    stage.play(scene)


def test_tenants_are_remembered_and_live(stage: Stage) -> None:
    async def first(daemon: Daemon) -> None:
        shares = daemon.supervisor.shares
        await started(daemon, "db", tenant="acme")
        assert (await shares.set_tenant("acme", [("disk.weight", 300)])).name == "@acme"
        assert plane(daemon).shares["@acme"].weight == 300
        with pytest.raises(UnavailableError):
            await shares.set_tenant("acme", [("disk.weight", UNSUPPORTED_WEIGHT)])
        with pytest.raises(ResourceError, match="@acme reserves"):
            await shares.set_tenant("acme", [("disk.reservation", f"{CAPACITY_IOPS + 1}iops")])
        for wrong in ([("name", "b")], [("disk.weight", 0)], [("cpu.weight", 5)]):
            with pytest.raises((SpecError, UsageError)):
                await shares.set_tenant("acme", wrong)
        with pytest.raises(UsageError, match="cannot name a tenant"):
            await shares.set_tenant("A B", [("disk.weight", 5)])

    async def second(daemon: Daemon) -> None:
        shares = daemon.supervisor.shares
        assert plane(daemon).shares["@acme"].weight == 300
        (acme,) = shares.all_tenants()
        assert (acme.name, acme.disk["weight"], acme.machines) == ("acme", 300, ["db"])
        await shares.set_tenant("acme", [("disk.weight", None)])
        await daemon.supervisor.delete("db", force=True)
        assert shares.all_tenants() == []

    stage.play(first)
    stage.play(second)


def test_of_a_machine_that_does_not_exist_nothing_is_set(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        with pytest.raises(NotFoundError):
            await daemon.supervisor.shares.set("none", [("disk.weight", 5)])

    stage.play(scene)


@pytest.mark.parametrize(
    ("field", "live"),
    [
        ("disk.weight", True),
        ("disks[0].share.limit", True),
        ("disks[0].size", False),
        ("cpus", False),
        ("cpu.weight", True),
        ("memory.size", False),
        ("memory.limit", True),
        ("boot.cmdline", False),
        ("tenant", True),
    ],
)
def test_knobs_are_live_and_the_rest_is_not(field: str, live: bool) -> None:
    assert is_live(field) is live


def test_network_knobs_have_a_tree_of_their_own_and_are_live(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.shares.set_tenant("acme", [("network.weight", 300)])
        db = await started(daemon, "db", tenant="acme", network={"limit": "10MB/s"})
        assert plane(daemon).network_shares == {
            "@acme": ShareNode("@acme", weight=300),
            db: ShareNode(db, "@acme", limit=10_000_000),
        }
        changed = [("network.limit", "20MB/s"), ("network.reservation", "1MB/s")]
        answer = await daemon.supervisor.shares.set("db", changed)
        assert {change.effect for change in answer.changes} == {"live"}
        assert plane(daemon).network_shares[db] == ShareNode(
            db, "@acme", reservation=1_000_000, limit=20_000_000
        )
        assert plane(daemon).shares[db] == ShareNode(db, "@acme"), "disks have theirs"
        await daemon.supervisor.shares.set_tenant("acme", [("network.weight", 50)])
        assert plane(daemon).network_shares["@acme"].weight == 50
        await daemon.supervisor.kill("db")
        assert set(plane(daemon).network_shares) == {"@acme"}

    stage.play(scene)
