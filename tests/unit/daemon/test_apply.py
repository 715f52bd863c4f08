"""`up` and `down`."""

from __future__ import annotations

import pytest

from nagaya.daemon import apply
from nagaya.daemon.apply import Request
from nagaya.daemon.daemon import Daemon
from nagaya.errors import ConflictError, UnavailableError
from nagaya.progress import silent
from nagaya.spec import MachineSpec
from nagaya.testing import Stage
from nagaya.testing.networks import FakeNetworks


def spec(name: str, **parts: object) -> MachineSpec:
    return MachineSpec.model_validate({"name": name, "memory": "64MiB", **parts})


def actions(result: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    return {one["name"]: one["action"] for one in result["machines"]}


def test_up_twice_changes_nothing_the_second_time(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        wanted = Request([spec("web", disks=[{"image": "img"}]), spec("db")], {"img": {"kind": "fake"}})
        first = await apply.up(daemon, wanted, silent)
        assert actions(first) == {"web": "create", "db": "create"}
        assert first["images"] == [{"name": "img", "action": "build"}]
        pids = [one.row.pid for one in daemon.supervisor.all()]
        second = await apply.up(daemon, wanted, silent)
        assert actions(second) == {"web": "unchanged", "db": "unchanged"}
        assert second["images"] == [{"name": "img", "action": "unchanged"}]
        assert [one.row.pid for one in daemon.supervisor.all()] == pids

    stage.play(scene)


def test_progress_never_falls_back(stage: Stage) -> None:
    seen: list[float] = []

    def progress(_step: str, fraction: float | None) -> None:
        if fraction is not None:
            seen.append(fraction)

    async def scene(daemon: Daemon) -> None:
        recipes = {"old": {"kind": "fake"}, "img": {"kind": "fake"}, "two": {"kind": "fake", "seconds": 0}}
        await apply.up(daemon, Request([], {"old": recipes["old"]}), silent)
        await apply.up(daemon, Request([spec("web"), spec("db")], recipes), progress)

    stage.play(scene)
    assert seen == sorted(seen)
    assert len(set(seen)) >= 8, "four steps of either image, two machines"
    assert seen[-1] == 1


def test_a_stopped_machine_is_started(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        wanted = Request([spec("web")], {})
        await apply.up(daemon, wanted, silent)
        await daemon.supervisor.stop("web")
        assert actions(await apply.up(daemon, wanted, silent)) == {"web": "start"}

    stage.play(scene)


def test_a_changed_machine_that_runs_is_recreated_only_if_allowed(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        disks = [{"size": "1MiB"}]
        await apply.up(daemon, Request([spec("web", disks=disks)], {}), silent)
        one = daemon.supervisor.get("web")
        disk = daemon.paths.machine(one.row.id).disk(0)
        disk.write_bytes(b"precious")
        changed = [spec("web", memory="128MiB", disks=disks)]
        with pytest.raises(ConflictError, match="web: the spec changed while the machine runs"):
            await apply.up(daemon, Request(changed, {}), silent)
        done = await apply.up(daemon, Request(changed, {}, recreate=True), silent)
        assert actions(done) == {"web": "recreate"}
        assert one.spec.memory.size == 128 * 2**20
        assert one.row.state == "running"
        assert disk.read_bytes() == b"precious"

    stage.play(scene)


def test_prune_deletes_only_what_the_same_source_made(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec("mine"))
        await apply.up(daemon, Request([spec("web"), spec("db")], {}, source="a.yaml"), silent)
        await apply.up(daemon, Request([spec("other")], {}, source="b.yaml"), silent)
        done = await apply.up(daemon, Request([spec("web")], {}, source="a.yaml", prune=True), silent)
        assert actions(done) == {"web": "unchanged", "db": "delete"}
        assert [one.name for one in daemon.supervisor.all()] == ["mine", "other", "web"]

    stage.play(scene)


def test_a_machine_that_fails_does_not_keep_the_others_from_starting(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        wanted = [spec("bad", boot={"cmdline": "fake.refuse"}), spec("good")]
        with pytest.raises(UnavailableError, match="bad: the fake engine"):
            await apply.up(daemon, Request(wanted, {}), silent)
        assert daemon.supervisor.get("good").row.state == "running"
        assert daemon.supervisor.get("bad").row.state == "failed"

    stage.play(scene)


def test_down_deletes_and_passes_over_what_is_not_there(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await apply.up(daemon, Request([spec("web"), spec("db")], {}), silent)
        kept = await apply.down(daemon, ["db"], keep=True, seconds=5, progress=silent)
        assert actions(kept) == {"db": "stop"}
        done = await apply.down(daemon, ["web", "db", "gone"], keep=False, seconds=5, progress=silent)
        assert actions(done) == {"db": "delete", "gone": "absent", "web": "delete"}
        assert daemon.supervisor.all() == []

    stage.play(scene)


def test_a_port_that_is_taken_is_refused_before_images_are_built(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        wanted = Request([spec("web", ports=["8080:80"])], {"img": {"kind": "fake"}})
        host = daemon.parts.networks
        assert isinstance(host, FakeNetworks)
        host.taken = {8080}
        with pytest.raises(ConflictError, match="port 8080/tcp of the host is in use"):
            await apply.up(daemon, wanted, silent)
        assert not daemon.parts.images.list()
        assert not daemon.supervisor.all()
        host.taken = set()
        assert actions(await apply.up(daemon, wanted, silent)) == {"web": "create"}
        host.taken = {8080}
        assert actions(await apply.up(daemon, wanted, silent)) == {"web": "unchanged"}, "by now it is its own"

    stage.play(scene)
