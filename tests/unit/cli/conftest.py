"""A daemon on fakes, in a process of its own, for all tests of the command line."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from nagaya.cli import app
from nagaya.cli.daemon import end
from nagaya.cli.session import Session
from nagaya.paths import Paths
from nagaya.sdk import Client, ensure_daemon
from nagaya.testing.scratch import make_directory


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Invoke = Callable[..., Outcome]


@pytest.fixture(scope="session")
def daemon_paths() -> Iterator[Paths]:
    top = make_directory()
    paths = Paths(top / "r", top / "s", top / "c")
    pid = ensure_daemon(paths, program=("-m", "nagaya.testing.daemon"))
    with Client(paths) as client:
        client.images.build("busybox", {"kind": "fake", "seconds": 0}).wait()
    yield paths
    end(pid)
    shutil.rmtree(top)


@pytest.fixture
def invoke(
    daemon_paths: Paths, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Invoke]:
    """Run a command line against that daemon, nothing on its input. Afterwards no machine is left."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        status = app.run(arguments, Session(connect=lambda: Client(daemon_paths)))
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    yield run
    with Client(daemon_paths) as client:
        for machine in client.machines.list():
            machine.delete(force=True)
