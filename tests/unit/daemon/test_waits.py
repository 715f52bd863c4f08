"""`why` names who, in words, in rows, and with commands that would change it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nagaya.daemon import waits
from nagaya.daemon.daemon import Daemon
from nagaya.errors import NotFoundError
from nagaya.models.waits import WhyAnswer
from nagaya.spec import MachineSpec
from nagaya.testing import Stage

Row = tuple[str, str, str, int, int]  # waiter, cause, whom, microseconds, requests; `db` is the machine's id


async def asked(daemon: Daemon, rows: list[Row], since: int = 60, **db: Any) -> WhyAnswer:
    """`why db` beside a machine `web`, when the plane has these rows."""
    ids = {"": ""}
    for name, parts in (("web", {}), ("db", db)):
        spec = {"name": name, "memory": "64MiB", "disks": [{"size": "1MiB"}], **parts}
        one = await daemon.supervisor.create(MachineSpec.model_validate(spec))
        ids[name] = one.row.id

    def node(name: str) -> str:
        machine, slash, disk = name.partition("/")
        return f"{ids.get(machine, machine)}{slash}{disk}"

    told = [
        {
            "waiter": node(waiter),
            "cause": cause,
            "whom": node(whom),
            "wait_us": wait_us,
            "requests": requests,
            "resource": "network" if "/net" in waiter else "disk",
        }
        for waiter, cause, whom, wait_us, requests in rows
    ]
    (daemon.paths.run / "fake-waits.json").write_text(json.dumps(told))
    return await waits.why(daemon.supervisor, "db", since)


def play(stage: Stage, rows: list[Row], **parts: Any) -> WhyAnswer:
    """The same in a daemon's life of its own."""
    answers: list[WhyAnswer] = []

    async def scene(daemon: Daemon) -> None:
        answers.append(await asked(daemon, rows, **parts))

    stage.play(scene)
    return answers[0]


def test_who_and_how_long_is_said_in_words_and_rows(stage: Stage) -> None:
    rows: list[Row] = [
        ("db/disk0", "device", "", 250_000, 50),
        ("db/disk0", "machine", "web/disk0", 500_000, 80),
        ("db/disk1", "machine", "web/disk0", 250_000, 70),
        ("web/disk0", "machine", "db/disk0", 9_000_000, 9),
    ]
    answer = play(stage, rows)
    assert answer.words == [
        "db waited 1 s at its disks in the last minute: 200 requests, 5 ms each.",
        "750 ms (75%) because web was served.",
        "250 ms (25%) on the disk itself, which was busy with its own requests.",
    ]
    assert [(row.waiter, row.whom, row.wait_us) for row in answer.rows] == [
        ("db/disk0", "web/disk0", 500_000),
        ("db/disk0", "", 250_000),
        ("db/disk1", "web/disk0", 250_000),
    ]
    assert (answer.wait_us, answer.requests) == (1_000_000, 200)
    assert [advice.command for advice in answer.advice] == [
        "nagaya set db disk.weight=200",
        "nagaya set db disk.latency_p99=5ms",
    ]


def test_nothing_waited_for_is_said_plainly(stage: Stage) -> None:
    answer = play(stage, [("web/disk0", "device", "", 5, 1)], since=300)
    assert answer.words == ["db waited for nobody in the last 5 minutes."]
    assert (answer.rows, answer.advice) == ([], [])


def test_its_own_limit_is_named_with_the_command_that_raises_it(stage: Stage) -> None:
    share = {"limit": "1MiB/s"}
    parts = {"disk": {"limit": "500iops"}, "disks": [{"size": "1MiB", "share": share}], "tenant": "acme"}
    answer = play(stage, [("db/disk0", "limit", "", 2_000_000, 10)], **parts)
    assert answer.words[1] == (
        "2 s (100%) at its limit (db disk.limit=500iops, db disks[0].share.limit=1MiB/s)."
    )
    assert [advice.command for advice in answer.advice] == [
        "nagaya set db disk.limit=1000iops",
        "nagaya set db disks[0].share.limit=2MiB/s",
    ]


def test_the_tenants_limit_is_named_too_and_many_waiting_at_once_are_told(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.shares.set_tenant("acme", [("disk.limit", "400iops")])
        answer = await asked(daemon, [("db", "limit", "", 120_000_000, 10)], tenant="acme")
        assert answer.words[0].startswith(
            "db waited 120 s at its disks in the last minute (2.0 requests at a time)"
        )
        assert answer.words[1] == "120 s (100%) at its limit (@acme disk.limit=400iops)."
        assert answer.advice[0].command == "nagaya set @acme disk.limit=800iops"

    stage.play(scene)


def test_between_tenants_it_is_the_tenants_knob_that_counts(stage: Stage) -> None:
    answer = play(stage, [("db", "machine", "web", 2_000_000, 10)], tenant="acme")
    assert answer.advice[0].command == "nagaya set @acme disk.weight=200"
    assert answer.advice[0].effect == "doubles its share beside web's"


def test_host_work_is_named_as_such(stage: Stage) -> None:
    answer = play(stage, [("db/disk0", "machine", "%copy", 2_000_000, 10)])
    assert answer.words[1] == "2 s (100%) because the host's own work was served (copy)."
    assert [advice.command for advice in answer.advice] == ["nagaya operation list"]


def test_host_work_says_what_it_does(stage: Stage) -> None:
    merge, export = ("%copy/merge:db.disk0@s1:0a1b2c3d", "%copy/export:data:0a1b2c3e")
    rows = [("db/disk0", "machine", merge, 3_000_000, 10), ("db/disk0", "machine", export, 1_000_000, 9)]
    answer = play(stage, rows)
    assert answer.words[1:3] == [
        "3 s (75%) because the host's own work was served (merge of snapshot s1 of db/disk0).",
        "1 s (25%) because the host's own work was served (export of data).",
    ]
    assert answer.rows[0].whom == "%merge of snapshot s1 of db/disk0"
    assert [advice.command for advice in answer.advice] == ["nagaya operation list"]


def test_the_disk_itself_has_no_knob(stage: Stage) -> None:
    answer = play(stage, [("db/disk0", "device", "", 2_000_000, 10)])
    assert "no knob makes the disk itself faster" in answer.advice[0].effect


def test_the_matrix_has_all_machines_and_a_machine_that_is_gone_by_its_id(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await asked(daemon, [("db/disk0", "machine", "web", 5, 1), ("0123/disk0", "device", "", 9, 1)])
        found = await waits.matrix(daemon.supervisor, 60)
        assert [(row.waiter, row.whom) for row in found] == [("0123/disk0", ""), ("db/disk0", "web")]
        with pytest.raises(NotFoundError):
            await waits.why(daemon.supervisor, "none", 60)

    stage.play(scene)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (60, "the last minute"),
        (300, "the last 5 minutes"),
        (90, "the last 90 seconds"),
        (3600, "the last hour"),
    ],
)
def test_a_span_in_words(seconds: int, words: str) -> None:
    assert waits.span(seconds) == words


def test_networks_have_sentences_and_advice_of_their_own(stage: Stage) -> None:
    rows: list[Row] = [
        ("db/disk0", "device", "", 250_000, 50),
        ("db/net0", "machine", "web/net0", 600_000, 300),
        ("db/net0", "limit", "db", 300_000, 100),
        ("db/net0", "device", "", 100_000, 100),
    ]
    answer = play(stage, rows, network={"limit": "1MiB/s"})
    assert answer.words == [
        "db waited 250 ms at its disks in the last minute: 50 requests, 5 ms each.",
        "250 ms (100%) on the disk itself, which was busy with its own requests.",
        "db waited 1 s at its networks in the last minute: 500 frames, 2 ms each.",
        "600 ms (60%) because web was served.",
        "300 ms (30%) at its limit (db network.limit=1MiB/s).",
        "100 ms (10%) on the uplink itself, which was busy with its own frames.",
    ]
    assert [advice.command for advice in answer.advice] == [
        "nagaya top",
        "nagaya set db network.weight=200",
        "nagaya set db network.limit=2MiB/s",
    ]


def test_a_machine_that_uses_up_the_uplink_is_told_where_its_rate_is(stage: Stage) -> None:
    answer = play(stage, [("db/net0", "device", "", 900_000, 300)])
    assert [advice.command for advice in answer.advice] == ["nagaya network show default"]
