"""`nagaya disk`: disks of machines, and disks with a name of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import disk_names, image_names, machine_names
from nagaya.cli.fault import fault_command
from nagaya.cli.follow import follow
from nagaya.cli.machines import ago
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.session import Session
from nagaya.errors import ResourceError
from nagaya.units import human_size

_COLUMNS = (
    Column("NAME", field("name")),
    Column("SIZE", field("size"), human_size, right=True),
    Column("ALLOCATED", field("allocated"), human_size, right=True),
    Column("IMAGE", field("image"), lambda image: str(image)[:20]),
    Column("SNAPSHOTS", lambda row: len(row["snapshots"]), right=True),
    Column("USED BY", lambda row: " ".join(row["used_by"])),
    Column("STATE", field("state")),
)
_SNAPSHOTS = (
    Column("NAME", field("name")),
    Column("TAKEN", field("created_at"), lambda at: f"{ago(at)} ago", right=True),
    Column("SIZE", field("size"), human_size, right=True),
    Column("CONSISTENCY", field("consistency")),
)
_EXTENTS = (
    Column("START", field("start"), right=True),
    Column("LENGTH", field("length"), human_size, right=True),
    Column("CONTENT", lambda row: "zeroes" if row.get("zero") else "data"),
    Column("LAYER", field("depth"), right=True),
)

_disk = click.argument("disk", shell_complete=disk_names)
_plain = shared_options(session_formats=False)
_FILE_FORMATS = click.Choice(["raw", "qcow2", "vmdk", "vdi", "vhdx", "vhd"])


@click.group("disk")
def disk_command() -> None:
    """Disks: make, grow, snapshot, merge, check and export them.

    A disk is `data`, made with `nagaya disk create`, or `db/disk0`, the first one of the machine db.
    """


disk_command.add_command(fault_command)


@disk_command.command("list")
@shared_options()
@click.pass_obj
def _list(session: Session) -> None:
    """List all disks."""
    print_rows(session, [asdict(disk) for disk in session.client.disks.list()], _COLUMNS)


@disk_command.command("show")
@_disk
@shared_options()
@click.pass_obj
def _show(session: Session, disk: str) -> None:
    """Show all about one disk."""
    print_value(session, asdict(session.client.disks.get(disk)))


@disk_command.command("create")
@click.argument("name")
@click.argument("size", required=False)
@click.option("--image", metavar="IMAGE", shell_complete=image_names, help="What is on it at first.")
@_plain
@click.pass_obj
def _create(session: Session, name: str, size: str | None, image: str | None) -> None:
    """Make a disk with a name of its own, of SIZE, for example 10GiB.

    It outlives the machines that have it: `disks: [{disk: NAME}]` in a file, or `nagaya disk attach`.
    """
    session.client.disks.create(name, size, image=image or "")
    click.echo(name)


@disk_command.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=disk_names)
@_plain
@click.pass_obj
def _delete(session: Session, names: Sequence[str]) -> None:
    """Remove disks that no machine has, with their snapshots."""
    for name in names:
        session.client.disks.delete(name)
        _say(session, f"{name} is deleted")


@disk_command.command("resize")
@_disk
@click.argument("size")
@_plain
@click.pass_obj
def _resize(session: Session, disk: str, size: str) -> None:
    """Grow a disk to SIZE. The guest's file system is grown inside the guest."""
    made = session.client.disks.resize(disk, size)
    _say(session, f"{disk} has {human_size(made.size)}")


@disk_command.group("snapshot")
def _snapshot() -> None:
    """Take, list, delete snapshots, and go back to them."""


@_snapshot.command("create")
@_disk
@click.argument("name")
@_plain
@click.pass_obj
def _snapshot_create(session: Session, disk: str, name: str) -> None:
    """Keep the disk's content as it is now under NAME."""
    made = session.client.disks.snapshot(disk, name)
    taken = next(one for one in made.snapshots if one["name"] == name)
    _say(session, f"{disk}: snapshot {name} is taken ({_CONSISTENCY[taken['consistency']]})")


_CONSISTENCY = {
    "stopped": "nothing was writing",
    "filesystem": "file systems were frozen",
    "crash": "as after a power loss: no guest agent froze the file systems",
}


@_snapshot.command("list")
@_disk
@shared_options()
@click.pass_obj
def _snapshot_list(session: Session, disk: str) -> None:
    """List a disk's snapshots, oldest first."""
    print_rows(session, session.client.disks.get(disk).snapshots, _SNAPSHOTS)


@_snapshot.command("revert")
@_disk
@click.argument("name")
@_plain
@click.pass_obj
def _snapshot_revert(session: Session, disk: str, name: str) -> None:
    """Go back to a snapshot; what was written since is gone."""
    session.client.disks.revert(disk, name)
    _say(session, f"{disk} is as in snapshot {name}")


@_snapshot.command("delete")
@_disk
@click.argument("name")
@_plain
@click.pass_obj
def _snapshot_delete(session: Session, disk: str, name: str) -> None:
    """Forget a snapshot; its layer is merged with the one above it, which keeps the disk's content."""
    follow(session, session.client.disks.delete_snapshot(disk, name), f"delete snapshot {name}")
    _say(session, f"{disk}: snapshot {name} is deleted")


@disk_command.command("commit")
@_disk
@_plain
@click.pass_obj
def _commit(session: Session, disk: str) -> None:
    """Merge the layers of a disk that no snapshot needs."""
    result = follow(session, session.client.disks.commit(disk), f"merge {disk}")
    _say(session, f"{disk} has {result['layers']} layers, {human_size(result['allocated'])}")


@disk_command.command("rebase")
@_disk
@click.option("--image", metavar="IMAGE", shell_complete=image_names, help="Image that it is to lie on.")
@click.option("--flatten", is_flag=True, help="Copy all into the disk; it needs no image then.")
@_plain
@click.pass_obj
def _rebase(session: Session, disk: str, image: str | None, flatten: bool) -> None:
    """Put a disk onto another image of the store, or onto none, with the same content.

    Only images of the store can lie below a disk: a file elsewhere could change or go away under it.
    """
    if bool(image) == flatten:
        raise click.UsageError("say either --image IMAGE or --flatten")
    follow(session, session.client.disks.rebase(disk, image or ""), f"rebase {disk}")
    _say(session, f"{disk} lies on {image or 'nothing'}")


@disk_command.command("convert")
@_disk
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--to", "file_format", type=_FILE_FORMATS, help="Format (default: by FILE's ending).")
@click.option("--snapshot", metavar="NAME", default="", help="A snapshot instead of the disk as it is.")
@_plain
@click.pass_obj
def _convert(session: Session, disk: str, file: Path, file_format: str | None, snapshot: str) -> None:
    """Write a disk into a new FILE: raw, qcow2, vmdk, vdi, vhdx or vhd.

    The disk must be at rest; a snapshot can be written while its machine runs.
    """
    made = file_format or _by_ending(file)
    follow(session, session.client.disks.convert(disk, file, made, snapshot=snapshot), f"convert {disk}")
    _say(session, f"{file} is written as {made}")


@disk_command.command("check")
@_disk
@click.option("--repair", is_flag=True, help="Give leaked space back.")
@shared_options()
@click.pass_obj
def _check(session: Session, disk: str, repair: bool) -> None:
    """Look for errors in a disk's tables; the status is 6 if there are any."""
    report = follow(session, session.client.disks.check(disk, repair=repair), f"check {disk}")
    print_value(session, report)
    if report["corruptions"]:
        raise ResourceError(
            f"disk {disk} is damaged: {report['corruptions']} errors in its tables",
            hint="revert to a snapshot, or copy what can be read: nagaya disk convert",
        )


@disk_command.command("map")
@_disk
@click.option("--snapshot", metavar="NAME", default="", help="A snapshot instead of the disk as it is.")
@shared_options()
@click.pass_obj
def _map(session: Session, disk: str, snapshot: str) -> None:
    """Show where a disk has data, and in which layer (0 is the top)."""
    print_rows(session, session.client.disks.map(disk, snapshot=snapshot), _EXTENTS, name="start")


@disk_command.command("attach")
@click.argument("machine", shell_complete=machine_names)
@click.argument("disk", shell_complete=disk_names)
@click.option("--read-only", is_flag=True, help="The guest cannot write; several machines may read at once.")
@_plain
@click.pass_obj
def _attach(session: Session, machine: str, disk: str, read_only: bool) -> None:
    """Give a machine a disk that was made with `nagaya disk create`."""
    session.client.disks.attach(machine, disk, read_only=read_only)
    _say(session, f"{machine} has disk {disk}")


@disk_command.command("detach")
@click.argument("machine", shell_complete=machine_names)
@click.argument("disk", shell_complete=disk_names)
@_plain
@click.pass_obj
def _detach(session: Session, machine: str, disk: str) -> None:
    """Take a disk away from a machine; it keeps its content."""
    session.client.disks.detach(machine, disk)
    _say(session, f"{machine} has no disk {disk} any more")


def _by_ending(file: Path) -> str:
    ending = {"img": "raw", "vpc": "vhd"}.get(file.suffix[1:], file.suffix[1:])
    if ending not in _FILE_FORMATS.choices:
        known: Any = ", ".join(_FILE_FORMATS.choices)
        raise click.UsageError(f"the ending of {file.name!r} names no format; say --to with one of {known}")
    return str(ending)


def _say(session: Session, text: str) -> None:
    if not session.quiet:
        click.echo(text)
