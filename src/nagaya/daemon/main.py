"""`nagayad`: adopt the machines that run, then serve the API until SIGTERM. The machines run on."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from nagaya import oom
from nagaya.daemon import endpoint, log
from nagaya.daemon.adoption import Adoption
from nagaya.daemon.conditions import mind_disks
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.demand import Demand
from nagaya.daemon.disks import Disks
from nagaya.daemon.events import Events
from nagaya.daemon.memoryhome import MemoryHome
from nagaya.daemon.objectives import mind_objectives
from nagaya.daemon.oomrank import mind_oom
from nagaya.daemon.operations import Operations
from nagaya.daemon.parts import Parts
from nagaya.daemon.state import State
from nagaya.daemon.supervisor import Supervisor
from nagaya.daemon.uids import tool_uid
from nagaya.daemon.upkeep import balance, mind_plane, sweep_builds
from nagaya.daemon.writer import Writer
from nagaya.errors import NagayaError, ResourceError
from nagaya.images.qemuimg import QemuImg
from nagaya.paths import Paths

logger = logging.getLogger("nagaya.daemon")


def main(argv: Sequence[str] | None = None) -> None:
    """The program `nagayad` and `python -m nagaya.daemon`."""
    from nagaya.daemon.wiring import real_parts

    run(real_parts, argv)


def run(make_parts: Callable[[Paths], Parts], argv: Sequence[str] | None = None) -> None:
    """A daemon with these parts; tests pass fakes."""
    parser = argparse.ArgumentParser("nagayad", description="The daemon of Nagaya; see docs/api.md.")
    parser.add_argument(
        "--ready-fd", type=int, metavar="N", help="write `ready` to this descriptor when it serves"
    )
    parser.add_argument(
        "--log-file", type=Path, metavar="FILE", help="append standard output and error to FILE"
    )
    options = parser.parse_args(argv)
    try:
        paths = Paths.default()
        endpoint.make_directories(paths)
        with endpoint.locked(paths):
            listener = endpoint.listen(paths.api_socket)
            if options.log_file:
                _log_to(options.log_file)
            log.configure()
            oom.protect_self()
            asyncio.run(_serve(paths, make_parts, listener, lambda: _tell_ready(options.ready_fd)))
    except NagayaError as error:
        print(f"nagayad: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_code) from None


@asynccontextmanager
async def running(paths: Paths, parts: Parts) -> AsyncIterator[Daemon]:
    """A daemon without its API: machines adopted and watched as long as the context lasts."""
    events = Events()
    writer = Writer(State(paths.database))
    try:
        supervisor = Supervisor(paths, writer, parts, events)
        disks = Disks(supervisor, QemuImg(tool_uid(paths)))
        operations = Operations(writer, events)
        demand = Demand(paths)
        daemon = Daemon(paths, parts, supervisor, operations, events, time.time(), disks, demand)
        adoption = Adoption(supervisor, writer)
        living = adoption.remember()
        daemon.adopted_in = _seconds_since_exec()
        logger.info("adopted %d running machines %.3f s after exec", living, daemon.adopted_in)
        await daemon.operations.remember()
        try:
            await adoption.settle()
            supervisor.spawn(sweep_builds(paths))
            supervisor.spawn(mind_plane(supervisor))
            supervisor.spawn(mind_disks(supervisor))
            supervisor.spawn(mind_objectives(supervisor))
            supervisor.spawn(balance(supervisor))
            supervisor.spawn(demand.mind(supervisor))
            supervisor.spawn(supervisor.pressure.mind())
            supervisor.spawn(supervisor.leases.mind())
            supervisor.spawn(supervisor.queue.mind())
            supervisor.spawn(mind_oom(supervisor))
            supervisor.spawn(supervisor.memory.mind())
            supervisor.spawn(MemoryHome(supervisor).mind())
            yield daemon
        finally:
            await daemon.operations.close()
            await supervisor.close()
            demand.close()
            await parts.plane.close()
            await parts.networks.close()
    finally:
        writer.close()


async def _serve(
    paths: Paths, make_parts: Callable[[Paths], Parts], listener: socket.socket, ready: Callable[[], None]
) -> None:
    async with running(paths, make_parts(paths)) as daemon:
        from nagaya.daemon.api.app import make_app
        from nagaya.daemon.server import make_server

        server = make_server(make_app(daemon), ready)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        await server.serve(sockets=[listener])
        with contextlib.suppress(FileNotFoundError):
            paths.api_socket.unlink()
    logger.info("ended; the machines run on")


def _tell_ready(descriptor: int | None) -> None:
    if descriptor is not None:
        os.write(descriptor, b"ready\n")
        os.close(descriptor)
    address = os.environ.get("NOTIFY_SOCKET")
    if address:  # sd_notify(3)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, contextlib.suppress(OSError):
            notify.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def _log_to(path: Path) -> None:
    """Standard output and error go to `path` from now on, and with them what libraries print."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ResourceError(f"the log {path} cannot be opened: {error.strerror}") from error
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _seconds_since_exec() -> float:
    """Since this process's start, which the kernel counts in hundredths of a second since boot."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
