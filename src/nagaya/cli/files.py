"""`nagaya up`, `down` and `schema`: images and machines described in a file."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nagaya.cli.app import shared_options
from nagaya.cli.follow import follow
from nagaya.cli.machines import print_machines
from nagaya.cli.seconds import seconds
from nagaya.cli.session import Session
from nagaya.errors import ConflictError, NotFoundError, UsageError

if TYPE_CHECKING:
    from nagaya.specfile import SpecFile

DEFAULT_FILE = "nagaya.yaml"

_DONE = {
    "create": "created and started",
    "start": "started",
    "change": "changed and started",
    "set": "changed while it runs",
    "recreate": "restarted with its new description",
    "delete": "deleted",
}

_file = click.option(
    "-f",
    "--file",
    default=DEFAULT_FILE,
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help=f"The file; - is standard input ({DEFAULT_FILE}).",
)


def _read(file: str) -> SpecFile:
    from nagaya import specfile

    return specfile.load(file)


@click.command("up")
@_file
@click.option("--recreate", is_flag=True, help="Restart machines whose description changed.")
@click.option(
    "--prune", is_flag=True, help="Delete machines that an earlier `up` made from this file and it lacks now."
)
@click.option(
    "--source", metavar="NAME", help="What the machines are remembered by for --prune (the file's path)."
)
@shared_options()
@click.pass_obj
def up_command(session: Session, file: str, recreate: bool, prune: bool, source: str | None) -> None:
    """Bring up the images and machines of a file.

    Builds images that are missing, creates and starts machines. What is as the file says is left alone, so
    a second `up` is quick and changes nothing.
    """
    known_by = source or ("" if file == "-" else str(Path(file).absolute()))
    if prune and not known_by:
        raise UsageError("--prune needs --source where the file is standard input", hint="nothing was done")
    wanted = _read(file)
    operation = session.client.apply(
        list(wanted.machines.values()),
        wanted.images,
        tenants=list(wanted.tenants.values()),
        networks=list(wanted.networks.values()),
        groups=list(wanted.groups.values()),
        source=known_by,
        recreate=recreate,
        prune=prune,
    )
    result = follow(session, operation, f"up {Path(known_by).name}".rstrip())
    if session.format == "table" and not session.quiet:
        for change in result.get("machines", []):
            if change["action"] in _DONE:
                click.echo(f"{change['name']}: {_DONE[change['action']]}", err=True)
    names = set(wanted.machines)
    print_machines(session, [machine for machine in session.client.machines.list() if machine.name in names])
    if session.format == "table" and not session.quiet and names:
        first = next(iter(wanted.machines))
        click.echo(
            f"\nReach them with `nagaya console {first}` or `nagaya exec {first} -- COMMAND`.", err=True
        )


@click.command("down")
@_file
@click.option("--keep", is_flag=True, help="Only stop the machines; keep them and their disks.")
@click.option(
    "--timeout",
    type=seconds(),
    default=30.0,
    metavar="SECONDS",
    help="Then they are ended (30).",
)
@click.option(
    "--images", is_flag=True, help="Remove the images of the file, too, unless a machine uses them."
)
@shared_options(session_formats=False)
@click.pass_obj
def down_command(session: Session, file: str, keep: bool, timeout: float, images: bool) -> None:
    """Stop the machines of a file and remove them with their disks. Images stay.

    Networks and security groups of the file go too, unless another machine uses them.
    """
    if keep and images:
        raise UsageError("--keep and --images exclude each other: a kept machine needs its image")
    wanted = _read(file)
    operation = session.client.down(list(wanted.machines), keep=keep, timeout=timeout)
    follow(session, operation, f"down {Path(file).name}")
    if not session.quiet:
        done = "stopped" if keep else "removed"
        click.echo(f"{', '.join(wanted.machines) or 'no machine'}: {done}")
    if not keep:
        _remove_networks(session, wanted)
    for name in wanted.images if images else ():
        with contextlib.suppress(NotFoundError):
            session.client.images.remove(name)
            if not session.quiet:
                click.echo(f"image {name}: removed")


def _remove_networks(session: Session, wanted: SpecFile) -> None:
    for name in wanted.networks:
        with contextlib.suppress(NotFoundError, ConflictError):
            session.client.networks.delete(name)
    for name in wanted.groups:
        with contextlib.suppress(NotFoundError, ConflictError):
            session.client.groups.delete(name)


@click.command("schema")
@shared_options(session_formats=False)
def schema_command() -> None:
    """Print the JSON schema of the files that `up` takes, for editors.

    An editor with a YAML language server checks a file that begins with the line
    `# yaml-language-server: $schema=nagaya.schema.json`.
    """
    from nagaya import specfile

    click.echo(json.dumps(specfile.json_schema(), indent=2))
