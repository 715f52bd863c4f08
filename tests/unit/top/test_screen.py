"""The screen of `top`: textual's pilot presses the keys, a daemon on fakes answers."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pexpect
import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from nagaya.cli.daemon import end
from nagaya.paths import Paths
from nagaya.sdk import Client, ensure_daemon
from nagaya.testing.scratch import make_directory
from nagaya.top.columns import BY_NAME
from nagaya.top.screen import Top, WhyScreen

Scene = Callable[[Top, Pilot[None]], Awaitable[None]]
PATIENCE = 30.0  # s that something has to appear


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A daemon on fakes with `db` and `web`, which run, and `batch`, which does not."""
    top = make_directory()
    paths = Paths(top / "r", top / "s", top / "c")
    pid = ensure_daemon(paths, program=("-m", "nagaya.testing.daemon"))
    with Client(paths) as client:
        for name in ("db", "web", "batch"):
            spec = {"name": name, "memory": "64MiB", "disks": [{"size": "1MiB"}]}
            client.machines.create(spec, start=name != "batch")
        yield client
        for machine in client.machines.list():
            machine.delete(force=True)
    end(pid)
    shutil.rmtree(top)


def play(client: Client, scene: Scene) -> None:
    """Run a scene on a screen of 120 columns."""

    async def whole() -> None:
        app = Top(client, interval=0.1)
        async with app.run_test(size=(120, 20)) as pilot:
            await until(pilot, lambda: len(table(app)) >= 3)
            await scene(app, pilot)

    asyncio.run(whole())


async def until(pilot: Pilot[None], true: Callable[[], Any]) -> None:
    """Let the screen go on until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        await pilot.pause(0.05)


def table(app: Top) -> list[list[str]]:
    """What is in the table."""
    shown = app.query_one(DataTable)
    return [[str(cell) for cell in shown.get_row_at(at)] for at in range(shown.row_count)]


def cell(app: Top, row: int, column: str) -> str:
    """One of its cells, by the name of the column."""
    return table(app)[row][list(BY_NAME).index(column)]


def message(app: Top) -> str:
    """The line below the table."""
    return str(app.query_one("#message", Static).content)


def test_machines_and_their_rates_appear_by_name(client: Client) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        assert [row[:2] for row in table(app)] == [
            ["batch", "stopped"],
            ["db", "running"],
            ["web", "running"],
        ]
        await until(pilot, lambda: cell(app, 1, "iops") and cell(app, 1, "rate").endswith("/s"))
        summary = str(app.query_one("#summary", Static).content).splitlines()
        assert summary[0].startswith("3 machines, 2 running")
        assert "disk-0:0: 0 in flight of 8" in summary[1]
        await pilot.press("i")
        await until(pilot, lambda: table(app)[-1][0] == "batch")

    play(client, scene)


def test_the_weight_of_the_chosen_machine_is_doubled_and_halved(client: Client) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("down", "plus")
        await until(pilot, lambda: cell(app, 1, "weight") == "200")
        assert client.machines.get("db").info.spec["disk"]["weight"] == 200
        assert message(app) == "db: disk.weight 100 -> 200"
        await pilot.press("minus")
        await until(pilot, lambda: cell(app, 1, "weight") == "100")

    play(client, scene)


def test_any_knob_is_set_at_the_prompt_and_a_refusal_is_shown(client: Client) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("down", "s", *"disk.weight=7", "enter")
        await until(pilot, lambda: cell(app, 1, "weight") == "7")
        await pilot.press("s", *"disk.weight=0", "enter")
        await until(pilot, lambda: "must be at least 1" in message(app))
        await pilot.press("s", *"heavy", "enter")
        await until(pilot, lambda: "is not FIELD=VALUE" in message(app))
        await pilot.press("s", *"q", "escape")
        assert not app.query_one("#prompt", Input).display
        client.machines.named("db").set({"disk.weight": 100})

    play(client, scene)


def test_enter_says_why_and_the_table_goes_on_below(client: Client) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, WhyScreen))
        await until(pilot, lambda: len(app.screen.query(Static)) > 0)
        assert "db waited for nobody" in str(app.screen.query(Static).first().content)
        client.machines.named("web").set({"disk.weight": 300})
        await until(pilot, lambda: cell(app, 2, "weight") == "300")
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, WhyScreen))
        client.machines.named("web").set({"disk.weight": 100})

    play(client, scene)


def test_a_machine_comes_and_goes_and_the_cursor_stays_on_its_own(client: Client) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("down")
        assert app.chosen() == "db"
        client.machines.create({"name": "aaa", "memory": "64MiB"})
        await until(pilot, lambda: table(app)[0][0] == "aaa")
        assert app.chosen() == "db"
        client.machines.named("aaa").delete()
        await until(pilot, lambda: len(table(app)) == 3)
        assert app.chosen() == "db"
        await pilot.press("q")

    play(client, scene)


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_the_command_runs_on_a_terminal_and_leaves_it_as_it_was(client: Client, key: bytes) -> None:
    environment = os.environ | client.paths.environment() | {"TERM": "xterm-256color"}
    arguments = ["-m", "nagaya.cli", "top", "--sort", "iops"]
    terminal = pexpect.spawn(
        sys.executable, arguments, env=environment, dimensions=(20, 120), timeout=PATIENCE
    )
    terminal.expect(b"batch")
    terminal.expect(b"MiB/s")
    terminal.send(key)
    terminal.expect(rb"\x1b\[\?1049l")  # back from the alternate screen
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
