"""`nagaya image`: what machines boot from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import image_names
from nagaya.cli.follow import follow
from nagaya.cli.machines import ago
from nagaya.cli.output import Column, field, print_rows
from nagaya.cli.session import Session
from nagaya.units import human_size

_COLUMNS = (
    Column("NAME", field("name")),
    Column("OS", field("os")),
    Column("SIZE", field("size"), human_size, right=True),
    Column("BUILT", field("created_at"), lambda at: f"{ago(at)} ago", right=True),
    Column("USED BY", lambda row: " ".join(row["used_by"])),
    Column("DIGEST", field("digest"), lambda digest: str(digest)[:12]),
)


@click.group("image")
def image_command() -> None:
    """Build, list and remove images."""


@image_command.command("list")
@shared_options()
@click.pass_obj
def _list(session: Session) -> None:
    """List images."""
    print_rows(session, [asdict(image) for image in session.client.images.list()], _COLUMNS)


_name = click.option("--name", metavar="NAME", help="Name of the image (default: the kind).")
_size = click.option("--size", metavar="SIZE", help="Size of its file system, for example 2GiB.")


@image_command.group("build")
def _build() -> None:
    """Build an image. One that is there, of the same recipe, is not built again."""


@_build.command("debian")
@_name
@_size
@click.option("--suite", metavar="SUITE", help="Debian's release (bookworm).")
@click.option(
    "--package", "packages", multiple=True, metavar="PACKAGE", help="One more package; may be repeated."
)
@click.option(
    "--run",
    "run",
    multiple=True,
    metavar="COMMAND",
    help="Shell command run in it at the end; may be repeated.",
)
@shared_options(session_formats=False)
@click.pass_obj
def _debian(session: Session, /, *, name: str | None, **recipe: Any) -> None:
    """Debian with systemd, a console and the guest agent."""
    _build_image(session, name or "debian", {"kind": "debian", **recipe})


@_build.command("busybox")
@_name
@_size
@shared_options(session_formats=False)
@click.pass_obj
def _busybox(session: Session, /, *, name: str | None, **recipe: Any) -> None:
    """A minimal system of BusyBox and the guest agent."""
    _build_image(session, name or "busybox", {"kind": "busybox", **recipe})


def _build_image(session: Session, name: str, options: dict[str, Any]) -> None:
    recipe = {
        key: list(value) if isinstance(value, tuple) else value for key, value in options.items() if value
    }
    follow(session, session.client.images.build(name, recipe), f"image {name}")
    click.echo(name)


@image_command.command("import")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["raw", "qcow2", "vmdk", "vdi", "vhdx", "vhd"]),
    help="Format of the file (default: its header tells).",
)
@shared_options(session_formats=False)
@click.pass_obj
def _import(session: Session, name: str, file: Path, file_format: str | None) -> None:
    """Copy the disk in an image file into the store as NAME.

    The file must hold a whole disk: backing files, parents and extents in other files are refused.
    """
    follow(session, session.client.images.import_file(name, file, file_format or ""), f"import {name}")
    click.echo(name)


@image_command.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=image_names)
@shared_options(session_formats=False)
@click.pass_obj
def _remove(session: Session, names: Sequence[str]) -> None:
    """Remove images that no machine uses."""
    for name in names:
        session.client.images.remove(name)
        if not session.quiet:
            click.echo(f"{name} is removed")
