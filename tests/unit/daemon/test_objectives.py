"""Objectives that are missed and met again are told, and written down, but not without end."""

from __future__ import annotations

import asyncio

from nagaya.daemon.daemon import Daemon
from nagaya.spec import MachineSpec
from nagaya.testing import Stage
from nagaya.testing.plane import FakePlane


def test_an_objective_is_an_event_and_a_line_in_the_history(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        disk = {"latency_p99": "5ms"}
        disks = [{"size": "1MiB"}, {"size": "1MiB", "share": {"latency_p99": "800us"}}]
        spec = {"name": "db", "memory": "64MiB", "disks": disks, "disk": disk}
        one = await daemon.supervisor.create(MachineSpec.model_validate(spec))
        plane = daemon.parts.plane
        assert isinstance(plane, FakePlane)
        told = []
        with daemon.events.subscribe() as news:
            for met in (False, True, False):
                plane.judge(one.row.id, met)
            for index in range(2):
                plane.judge(f"{one.row.id}/disk{index}", True)
            plane.judge("@acme", False)
            plane.judge("gone/disk0", False)
            async with asyncio.timeout(10):
                async for event in news:
                    told.append((event["event"], event["name"], event["met"]))
                    if event["name"] == "gone/disk0":
                        break
        assert told == [
            *(("objective", "db", met) for met in (False, True, False)),
            *(("objective", f"db/disk{index}", True) for index in range(2)),
            ("objective", "@acme", False),
            ("objective", "gone/disk0", False),
        ]
        lines = [entry for entry in await daemon.supervisor.journal("db", 9) if "objective" in entry.event]
        assert [(entry.event, entry.detail) for entry in lines] == [
            ("objective missed", "db disk.latency_p99=5ms"),
            ("objective met", "db/disk0 disk.latency_p99=5ms"),
            ("objective met", "db/disk1 disks[1].share.latency_p99=800us"),
        ]

    stage.play(scene)
