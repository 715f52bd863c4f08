"""`nagaya start` imports little: its imports are most of what a command takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from nagaya.paths import Paths
from nagaya.sdk import Client

PROGRAM = """
import sys, click
before = set(sys.modules)
import json
import nagaya.cli
from nagaya.cli.app import run
status = run(["start", "b1"])
print(json.dumps([status, sorted(set(sys.modules) - before)]))
"""
OURS = {
    "nagaya",
    "nagaya.ansi",
    "nagaya.cli",
    "nagaya.cli.app",
    "nagaya.cli.complete",
    "nagaya.cli.follow",
    "nagaya.cli.lifecycle",
    "nagaya.cli.progress",
    "nagaya.cli.seconds",
    "nagaya.cli.session",
    "nagaya.closing",
    "nagaya.connection",
    "nagaya.errors",
    "nagaya.models",
    "nagaya.models.answer",
    "nagaya.models.machine",
    "nagaya.paths",
    "nagaya.sdk",
    "nagaya.sdk.client",
    "nagaya.sdk.launch",
    "nagaya.sdk.machines",
}
# Whole packages of the standard library that come with those; some versions of Python have them from click.
LIBRARY = {
    "array",
    "copy",
    "dataclasses",
    "fnmatch",
    "heapq",
    "ipaddress",
    "json",
    "ntpath",
    "locale",
    "pathlib",
    "queue",
    "select",
    "selectors",
    "socket",
    "unicodedata",  # only where a source with "\\N{...}" is compiled
    "urllib",
}


def test_start_imports_what_it_needs_beside_click(daemon_paths: Paths) -> None:
    with Client(daemon_paths) as client:
        client.machines.create({"name": "b1", "memory": "64MiB"})
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | daemon_paths.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        client.machines.named("b1").delete(force=True)
    said, facts = done.stdout.splitlines()
    status, modules = json.loads(facts)
    assert (said, status) == ("b1 runs", 0)
    assert {name for name in modules if name.split(".")[0] == "nagaya"} == OURS
    others = {name.split(".")[0] for name in modules} - {"nagaya"}
    assert {name for name in others if not name.startswith("_")} <= LIBRARY
