"""Fixtures of the system tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from nagaya import _core
from nagaya.images.store import Image
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.sdk import Client, ensure_daemon
from nagaya.testing.boxes import client_of
from nagaya.testing.disks import core
from nagaya.testing.netns import Namespace
from nagaya.testing.site import Site, make_site
from nagaya.testing.yard import Yard, write_initrd

YardTest = Callable[[Yard], Coroutine[Any, Any, None]]
TOP = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "nagaya.cli"]


@pytest.fixture(scope="session")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RAM disk whose guest does what its kernel's command line says."""
    path = tmp_path_factory.mktemp("initrd") / "initrd"
    write_initrd(path)
    return path


@pytest.fixture(scope="session")
def vub() -> Path:
    """The raw vhost-user client, compiled if it is not."""
    command = ["cargo", "build", "--locked", "--release", "--quiet", "--package", "nagaya-client"]
    built = subprocess.run(
        [*command, "--bin", "vub", "--message-format=json"], cwd=TOP, check=True, stdout=subprocess.PIPE
    )
    messages = map(json.loads, built.stdout.splitlines())
    return next(Path(message["executable"]) for message in messages if message.get("executable"))


@pytest.fixture
def plane() -> Iterator[_core.Plane]:
    """The Rust half of a holder, in this process, with real workers."""
    with core() as plane:
        yield plane


@pytest.fixture
def house(directory: Path) -> Iterator[Paths]:
    """Directories of a Nagaya of its own; a holder that is left is killed."""
    paths = Paths(directory / "r", directory / "s", directory / "c")
    paths.run.mkdir()
    yield paths
    with contextlib.suppress(OSError, ValueError):
        if paths.plane_socket.exists():
            os.kill(int((paths.run / "plane.lock").read_text()), signal.SIGKILL)


@pytest.fixture
def yard(paths: Paths, uml_kernel: Kernel, initrd: Path) -> Callable[[YardTest], None]:
    """Runs a coroutine function with a `Yard`, and cleans up after it."""

    async def whole(test: YardTest) -> None:
        one = Yard(paths, uml_kernel, initrd)
        try:
            await test(one)
        finally:
            await one.close()

    return lambda test: asyncio.run(whole(test))


@pytest.fixture
def client(paths: Paths, uml_kernel: Kernel, busybox_image: Image) -> Iterator[Client]:
    """A client of a daemon of its own; all its processes end with the test."""
    ensure_daemon(paths)
    with client_of(paths, lambda: ensure_daemon(paths)) as client:
        yield client


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """A network namespace that plays the host; machines there have the default network."""
    monkeypatch.delenv("NAGAYA_DEFAULT_NETWORK")
    with Namespace() as place:
        yield place


@pytest.fixture
def inside(host: Namespace, paths: Paths, uml_kernel: Kernel, busybox_image: Image) -> Iterator[Client]:
    """A client of a daemon that runs there."""
    with host.entered():
        ensure_daemon(paths)
        with client_of(paths) as client:
            yield client


@pytest.fixture
def site() -> Iterator[Site]:
    """A host with a world and guests; this thread is in the host while the test runs."""
    with make_site() as one:
        yield one


@pytest.fixture
def environment(paths: Paths) -> Iterator[dict[str, str]]:
    """The environment of a Nagaya of its own, ended afterwards."""
    settings = os.environ | paths.environment() | {"TERM": "xterm"}
    yield settings
    for arguments in (["delete", "--all", "--yes", "--force"], ["daemon", "stop", "--all"]):
        subprocess.run([*PROGRAM, *arguments], env=settings, capture_output=True, check=False, timeout=60)


@pytest.fixture
def cli(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command line; standard input is empty unless given."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments],
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    return run


@pytest.fixture
def spawn(environment: dict[str, str]) -> Callable[..., pexpect.spawn[bytes]]:
    """Run a command line on a terminal."""
    return lambda *arguments: pexpect.spawn(
        PROGRAM[0], [*PROGRAM[1:], *arguments], env=environment, timeout=60
    )


@pytest.fixture
def host_listeners(paths: Paths) -> Iterator[tuple[int, str]]:
    """What a machine must not reach: the API's socket, an abstract one (its name), a TCP port."""
    name = f"nagaya-test-{os.getpid()}"
    with (
        socket.socket(socket.AF_UNIX) as api,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.create_server(("127.0.0.1", 0)) as tcp,
    ):
        api.bind(str(paths.api_socket))
        paths.api_socket.chmod(0o666)
        abstract.bind(b"\0" + name.encode())
        for one in (api, abstract):
            one.listen()
        yield tcp.getsockname()[1], name
