"""The recorder, in a daemon on fakes."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from nagaya.daemon.daemon import Daemon
from nagaya.daemon.demand import Demand
from nagaya.models.demand import DemandAnswer
from nagaya.resources.demand import HOUR
from nagaya.spec import MachineSpec
from nagaya.testing import Stage

NOW = 500_000 * HOUR
SPEC = MachineSpec(name="m1", disks=[{"size": "1GiB"}])


def test_machines_that_run_are_recorded_and_the_next_daemon_knows_it(stage: Stage) -> None:
    answers: list[DemandAnswer] = []

    async def record(daemon: Daemon) -> None:
        await daemon.supervisor.create(SPEC)
        await daemon.supervisor.start("m1")
        await daemon.demand.record(daemon.supervisor, patterns=False, at=NOW)
        await asyncio.sleep(0.1)
        await daemon.demand.record(daemon.supervisor, patterns=True, at=NOW + 10)
        answers.append(await daemon.demand.of(daemon.supervisor, "m1"))

    async def look(daemon: Daemon) -> None:
        answers.append(await daemon.demand.of(daemon.supervisor, "m1"))
        machine = daemon.supervisor.get("m1").row.id
        patterns = await daemon.demand.call(lambda store: store.patterns(machine))
        ((worker, pattern),) = patterns[f"{machine}/disk0"].values()
        assert (worker, pattern["mix"][0]["count"]) == ("disk-0:0", 1000)

    stage.play(record)
    stage.play(look)
    assert answers[0] == answers[1] == DemandAnswer.from_json(asdict(answers[0]))
    assert [one.at for one in answers[0].samples] == [NOW + 10]
    assert answers[0].samples[0].disk > answers[0].samples[0].iops > 0
    assert [(one.at, one.samples) for one in answers[0].hours] == [(NOW, 1)]


def test_a_recorder_that_nobody_needed_makes_no_file(stage: Stage) -> None:
    demand = Demand(stage.paths)
    demand.close()
    assert not (stage.paths.state / "demand.sqlite").exists()
