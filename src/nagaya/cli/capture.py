"""`nagaya network capture`: the frames of a NIC, for tcpdump and wireshark."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import IO, Any, cast

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import machine_argument, nic_option
from nagaya.cli.quantities import SIZE, span
from nagaya.cli.session import Session
from nagaya.errors import UsageError

STDOUT = "-"


@click.command("capture")
@machine_argument
@nic_option
@click.option(
    "-w", "--write", "path", default=STDOUT, metavar="FILE", help="Into FILE; - is the standard output."
)
@click.option(
    "--snaplen", type=click.IntRange(64, 262_144), metavar="BYTES", help="Bytes of each frame (all)."
)
@click.option("--limit", type=SIZE, metavar="SIZE", help="End before the file is larger: 10MiB.")
@click.option("-c", "--packets", type=click.IntRange(1), metavar="N", help="End after so many frames.")
@click.option(
    "--duration",
    "seconds",
    type=span(86_400, "begin another one then"),
    metavar="SPAN",
    help="End after so long: 30s, 5m.",
)
@shared_options(session_formats=False)
@click.pass_obj
def capture_command(session: Session, /, machine: str, nic: str, path: str, **limits: Any) -> None:
    """Write what MACHINE sends and gets as a pcap file, until ctrl-C.

    `nagaya network capture web | tcpdump -n -r -` shows it as it comes. A reader that is slow misses frames,
    and holds nobody up. It ends with the machine's run.
    """
    if path == STDOUT and sys.stdout.isatty():
        raise UsageError(
            "frames are no text for a terminal",
            hint=f"-w FILE, or `nagaya network capture {machine} | tcpdump -n -r -`",
        )
    networks = session.client.networks
    with _opened(path) as output, _until_interrupted(lambda: networks.end_capture(machine, nic)):
        with closing(cast(Any, networks.capture(machine, nic, **limits))) as pieces:
            for piece in pieces:
                output.write(piece)
                output.flush()
        done = networks.end_capture(machine, nic)
    if not session.quiet:
        click.echo(f"{machine} {nic}: {done.packets} frames captured, {done.missed} missed", err=True)


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    if path == STDOUT:
        yield sys.stdout.buffer
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    with os.fdopen(fd, "wb") as file:
        yield file


@contextmanager
def _until_interrupted(end: Callable[[], object]) -> Iterator[None]:
    """The first ctrl-C calls `end`, and all goes on; the second one is as ever."""

    def once(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        end()

    before = signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
