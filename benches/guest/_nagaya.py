"""A Nagaya of its own for a bench: own directories, the shared kernel and images, ended afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nagaya.errors import UnavailableError
from nagaya.paths import Paths
from nagaya.sdk import Client, Machine, ensure_daemon

SHARED = Path(os.environ.get("NAGAYA_TEST_STATE", "/var/tmp/nagaya-test"))
MARKER = b"nagaya: init started"  # the first line that the BusyBox image's init prints


@contextmanager
def own_nagaya() -> Iterator[Client]:
    """A client of a fresh daemon that has the images `busybox` and `debian` and our own kernel."""
    top = Path(tempfile.mkdtemp(prefix="ngb", dir="/tmp"))
    top.chmod(0o755)
    paths = Paths(top / "r", top / "s", SHARED / "cache")
    paths.run.mkdir(mode=0o755)
    paths.state.mkdir(mode=0o755)
    for store in ("images", "kernels"):
        (SHARED / "state" / store).mkdir(parents=True, exist_ok=True)
        (paths.state / store).symlink_to(SHARED / "state" / store)
    ensure_daemon(paths)
    try:
        with Client(paths) as client:
            prepare(client)
            try:
                yield client
            finally:
                for machine in client.machines.list():
                    machine.delete(force=True)
    finally:
        command = [sys.executable, "-m", "nagaya.cli", "daemon", "stop", "--all"]
        subprocess.run(command, env={**os.environ, **paths.environment()}, check=True, capture_output=True)
        shutil.rmtree(top)


def prepare(client: Client) -> None:
    """Build what the benches boot, once for this host."""
    if not any(kernel.name == "uml" for kernel in client.kernels.list()):
        client.kernels.build().wait()
    have = {image.name for image in client.images.list()}
    for name in ("busybox", "debian"):
        if name not in have:
            client.images.build(name, {"kind": name}).wait()


def wait_for_output(path: Path, text: bytes, timeout: float = 60.0) -> float:
    """The monotonic time at which `text` was in the file at `path`; looks every millisecond."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if path.exists() and text in path.read_bytes():
            return time.monotonic()
        time.sleep(0.001)
    raise UnavailableError(f"{text!r} did not appear in {path} within {timeout:.0f} s")


def console_log(client: Client, machine: Machine) -> Path:
    """The host file that holds what the machine's console printed."""
    return client.paths.machine(machine.id).console_log
