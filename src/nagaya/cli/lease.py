"""`nagaya lease`: who may use which image."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import machine_names
from nagaya.cli.follow import waiting
from nagaya.cli.machines import ago, moment
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.progress import view
from nagaya.cli.seconds import seconds
from nagaya.cli.session import Session
from nagaya.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from nagaya.models.lease import LeaseInfo


def _left(at: float) -> str:
    left = at - time.time()
    return f"in {left:.0f} s" if left > 0 else f"{ago(at)} ago"


_COLUMNS = (
    Column("ID", field("id")),
    Column("RESOURCE", field("resource")),
    Column("ACCESS", field("access")),
    Column("STATE", field("state")),
    Column("HOLDER", lambda row: "/".join(filter(None, (row["machine"], row["disk"])))),
    Column("HOST", field("host")),
    Column("SINCE", field("since"), lambda at: f"{ago(at)} ago", right=True),
    Column("EXPIRES", field("expires_at"), _left, right=True),
    Column("WAITING", lambda row: " ".join(row["waiting"])),
)

_resource = click.argument("resource")
_machine = click.argument("machine", shell_complete=machine_names)
_start = click.option("--start", is_flag=True, help="Start the machine then.")
_ttl = click.option(
    "--ttl", type=seconds(5, 86400), default=60.0, metavar="SECONDS", help="Time to live (60)."
)


@click.group("lease")
def lease_command() -> None:
    """See who may use which disk image, wait for it, hand it over, break a lease.

    RESOURCE is a path, MACHINE/disk0, the name of a base image, or a lease's id.
    """


@lease_command.command("list")
@click.argument("resource", default="")
@shared_options()
@click.pass_obj
def _list(session: Session, resource: str) -> None:
    """List leases, all or those on one resource."""
    print_rows(
        session, [asdict(lease) for lease in session.client.leases.list(resource)], _COLUMNS, name="id"
    )


@lease_command.command("show")
@_resource
@shared_options()
@click.pass_obj
def _show(session: Session, resource: str) -> None:
    """Show who has a resource, who waits for it, and what happened to it."""
    leases = session.client.leases
    found = [_readable(session, asdict(lease)) for lease in leases.list(resource)]
    journal = leases.journal(resource)
    if session.format == "table":
        history: list[Any] = [f"{moment(one.at)} {one.event} {one.detail}" for one in journal[-10:]]
    else:
        history = [asdict(one) for one in journal]
    print_value(session, {"leases": found, "history": history})


@lease_command.command("wait")
@_machine
@click.option("--timeout", type=seconds(), metavar="SECONDS", help="Then give up (never).")
@_start
@shared_options(session_formats=False)
@click.pass_obj
def _wait(session: Session, machine: str, timeout: float | None, start: bool) -> None:
    """Queue a machine for its images, first come, first served.

    Ends when they are reserved for it: for a minute, in which it can be started. Ctrl-C gives up its place.
    """
    with view(session, f"waiting for the images of {machine}") as shown:
        found = session.client.leases.wait(
            machine, timeout, lambda info: shown.update(f"number {info.position}: {info.reason}", None)
        )
    _tell_granted(session, found.machine, start)


@lease_command.command("transfer")
@_resource
@_machine
@click.option("--stop", "way", flag_value="stop", help="Ask a holder that runs to shut down first.")
@click.option("--detach", "way", flag_value="detach", help="Close the disk under a holder that runs.")
@click.option("--timeout", type=seconds(), default=30.0, metavar="SECONDS", help="For --stop (30).")
@_start
@shared_options(session_formats=False)
@click.pass_obj
def _transfer(
    session: Session,
    /,
    *,
    resource: str,
    machine: str,
    way: Literal["stop", "detach"] | None,
    timeout: float,
    start: bool,
) -> None:
    """Hand a resource over to MACHINE, which is down and has a disk on it.

    With --detach, what the holder's guest has not written back is lost; its agent is asked to do that before.
    """
    with waiting(session, f"handing {resource} over to {machine}"):
        session.client.leases.transfer(resource, machine, way=way or "", timeout=timeout)
    _tell_granted(session, machine, start)


@lease_command.command("break")
@_resource
@click.option("--force", is_flag=True, help="Kill a holder that runs first.")
@shared_options(session_formats=False)
@click.pass_obj
def _break(session: Session, resource: str, force: bool) -> None:
    """End a lease against its holder's will.

    A machine that runs is killed before, and its disks are closed (fenced). A holder on another host cannot
    be killed from here: its lease can be broken once its time to live is over.
    """
    lease = _one(session, resource)
    with waiting(session, f"breaking the lease of {lease.machine}"):
        done = session.client.leases.break_(lease.id, force=force)
    if done.warning:
        click.echo(f"warning: {done.warning}", err=True)
    if not session.quiet:
        click.echo(f"{lease.machine} has {lease.resource} no more{f': {done.fenced}' if done.fenced else ''}")


@lease_command.command("claim")
@click.argument("path", type=click.Path())
@click.option("--holder", required=True, metavar="NAME", help="Who uses it, a machine's name there.")
@click.option("--host", required=True, metavar="NAME", help="The host where that is.")
@click.option("--access", type=click.Choice(["writer", "reader", "shared"]), default="writer")
@_ttl
@shared_options()
@click.pass_obj
def _claim(
    session: Session,
    /,
    *,
    path: str,
    holder: str,
    host: str,
    access: Literal["writer", "reader", "shared"],
    ttl: float,
) -> None:
    """Lease a file to a holder on another host, who renews it."""
    import os

    leases = session.client.leases
    lease = leases.claim(os.path.abspath(path), holder=holder, host=host, access=access, ttl=ttl)  # noqa: PTH100
    _print_one(session, lease)


@lease_command.command("renew")
@click.argument("lease_id", metavar="ID")
@_ttl
@shared_options()
@click.pass_obj
def _renew(session: Session, lease_id: str, ttl: float) -> None:
    """Lengthen the lease of a holder on another host."""
    _print_one(session, session.client.leases.renew(lease_id, ttl=ttl))


@lease_command.command("release")
@click.argument("lease_id", metavar="ID")
@shared_options(session_formats=False)
@click.pass_obj
def _release(session: Session, lease_id: str) -> None:
    """Give back the lease of a holder on another host."""
    session.client.leases.release(lease_id)
    if not session.quiet:
        click.echo(f"{lease_id} is released")


def _tell_granted(session: Session, machine: str, start: bool) -> None:
    if start:
        with waiting(session, f"starting {machine}"):
            session.client.machines.named(machine).start()
    if not session.quiet:
        click.echo(
            f"{machine} runs" if start else f"{machine} has its images for a minute: nagaya start {machine}"
        )
    sys.stdout.flush()


def _one(session: Session, resource: str) -> LeaseInfo:
    """The one lease on a resource; breaking several at once would be too easy a mistake."""
    found = session.client.leases.list(resource)
    exact = [lease for lease in found if lease.id == resource]
    if exact:
        return exact[0]
    if not found:
        raise NotFoundError(f"nobody has a lease on {resource}", hint="`nagaya lease list` shows them")
    if len(found) > 1:
        holders = ", ".join(f"{lease.machine} ({lease.id})" for lease in found)
        raise UsageError(f"{resource} has {len(found)} leases: {holders}", hint="name one by its id")
    return found[0]


def _print_one(session: Session, lease: LeaseInfo) -> None:
    if session.quiet:
        click.echo(lease.id)
    else:
        print_value(session, _readable(session, asdict(lease)))


def _readable(session: Session, facts: dict[str, Any]) -> dict[str, Any]:
    """Times as people read them, in what is no format for programs."""
    if session.format == "table":
        facts |= {"since": moment(facts["since"]), "expires_at": moment(facts["expires_at"])}
        facts = {key: value for key, value in facts.items() if value not in (None, "", 0, [])}
    return facts
