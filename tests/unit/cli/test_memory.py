"""`nagaya memory` and `nagaya why --memory`, against a daemon on fakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from nagaya.cli.memory import headline, nothing
from nagaya.models.memory import MemoryAnswer
from nagaya.paths import Paths

Invoke = Callable[..., Any]  # the fixture's: an Outcome
MIB = 2**20


@pytest.fixture
def squeezed(invoke: Invoke, daemon_paths: Paths) -> Iterator[Invoke]:
    """A machine `db` in need, which has given half of its memory; the broker is off."""
    invoke("memory", "set", "broker=false")
    invoke("create", "busybox", "--name", "db", "--memory", "512MiB", "--start")
    device = f"{invoke('list', '--format', 'json').json[0]['id']}/balloon0"
    said = {"available": MIB, "free": MIB, "swap_in": 0}
    file = daemon_paths.run / "fake-balloons.json"
    file.write_text(json.dumps({device: {"size": 256 * MIB, "actual": 256 * MIB, "stats": said}}))
    yield invoke
    file.unlink()
    invoke("memory", "set", "broker=none")


def test_show_has_a_row_for_each_machine(squeezed: Invoke) -> None:
    headline, heading, row = squeezed("memory", "show").out.splitlines()
    assert headline.startswith("Memory is sufficient: machines may have ")
    assert headline.endswith("; the broker is off")
    assert heading.split() == ["NAME", "SIZE", "HAS", "HOST", "USES", "FLOOR", "WEIGHT", "NEXT", "NEEDS"]
    assert row.split()[:5] == ["db", "512", "MiB", "256", "MiB"]
    assert row.endswith("its guest has 1.0 MiB left")


def test_show_of_one_machine_says_what_it_has_of_the_host(squeezed: Invoke) -> None:
    first, knobs, *_, need = squeezed("memory", "show", "db").out.splitlines()
    assert first.startswith("db has 256 MiB of its 512 MiB, uses about ")
    assert knobs == "  floor 0 B, limit none, weight 100"
    assert need == "  its guest has 1.0 MiB left"
    assert squeezed("memory", "show", "db", "--format", "json").json["helpers"] == 0
    assert squeezed("memory", "show", "db", "-q").out == "db\n"
    squeezed("stop", "db", "--force")
    refused = squeezed("memory", "show", "db")
    assert refused.status != 0
    assert "db is stopped, it has no memory" in refused.err


def test_a_plan_says_what_would_be_done_and_does_nothing(squeezed: Invoke) -> None:
    for _ in range(2):
        moves = squeezed("memory", "plan", "--format", "json").json
        assert [(one["machine"], one["kind"], one["bytes"]) for one in moves] == [("db", "give", 256 * MIB)]
    assert squeezed("memory", "moves", "-q").out == ""


def test_why_says_what_it_has_and_what_would_change_it(squeezed: Invoke) -> None:
    out = squeezed("why", "db", "--memory").out
    assert out.startswith("db has 256 MiB of its 512 MiB: its guest gave 256 MiB.\n")
    assert "  It needs more: its guest has 1.0 MiB left.\n" in out
    assert "What would change it:" in out


def test_nothing_to_move_is_said(invoke: Invoke) -> None:
    assert invoke("memory", "plan").out.splitlines()[-1] == "It would move nothing."


def test_why_memory_is_short_is_said() -> None:
    def said(left: int, room: int) -> str:
        answer = MemoryAnswer(True, 1000 * MIB, left * MIB, 60 * MIB, room * MIB, True, [], [], {})
        return headline(answer)

    assert said(900, 950).endswith("of it in reserve, and guests could grow by 950 MiB at once")
    assert said(40, 950).endswith("40 MiB are left, 60 MiB of it in reserve")
    assert said(-40, 950).endswith("machines may have 1000 MiB, they have 40 MiB more")
    assert said(900, 800).endswith("900 MiB are left, 60 MiB of it in reserve")


def test_that_a_guest_does_not_give_is_said(squeezed: Invoke) -> None:
    answer = MemoryAnswer.from_json(squeezed("memory", "show", "--format", "json").json)
    web = replace(answer.machines[0], name="web", refuses=True, resident=256 * MIB, target=128 * MIB)
    short = replace(answer, short=True, machines=[web, *answer.machines], moves=[])
    assert nothing(short) == (
        "It would move nothing: guests of web do not give, and the host has no swap left for it."
    )
    assert nothing(replace(short, machines=answer.machines)) == "It would move nothing."


def test_settings_are_set_and_what_is_so_already_is_said(invoke: Invoke) -> None:
    row = invoke("memory", "set", "budget=1GiB").out.splitlines()[1].split()
    assert row == ["budget", "none", "1GiB", "now"]
    assert invoke("memory", "set", "budget=1GiB").out == "nothing changes: it is so already\n"
    assert invoke("memory", "set", "budget=none", "-q").out == "budget\n"
    refused = invoke("memory", "set", "colour=red")
    assert refused.status == 2
    assert "colour" in refused.err


def test_one_way_to_move_memory_is_named(invoke: Invoke) -> None:
    for words in ((), ("--resident", "--swap", "1MiB"), ("--huge", "perhaps")):
        assert invoke("memory", "move", "db", *words).status == 2
