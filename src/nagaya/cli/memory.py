"""`nagaya memory`: what machines have of the host's memory, and what the broker moves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import machine_names, name_argument
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.quantities import SIZE, span
from nagaya.cli.session import Session
from nagaya.cli.set import CHANGE_COLUMNS
from nagaya.models.memory import MachineMemoryInfo, MemoryAnswer, MemoryWhy
from nagaya.models.relocation import RelocationAnswer
from nagaya.models.waits import WhyAnswer
from nagaya.settings import parse
from nagaya.units import human_size

_MACHINE_COLUMNS = (
    Column("NAME", field("name")),
    Column("SIZE", field("size"), human_size, right=True),
    Column("HAS", lambda row: row["size"] - row["actual"], human_size, right=True),
    Column("HOST", field("resident"), human_size, right=True),
    Column("USES", field("active"), human_size, right=True),
    Column("FLOOR", field("floor"), human_size, right=True),
    Column("WEIGHT", field("weight"), right=True),
    Column("NEXT", field("target"), human_size, right=True),
    Column("NEEDS", lambda row: "; ".join(filter(None, (row["need"], "does not give" * row["refuses"])))),
)
PLAN_COLUMNS = (
    Column("MACHINE", field("machine")),
    Column("MOVE", field("kind")),
    Column("BYTES", field("bytes"), human_size, right=True),
    Column("BECAUSE", field("reason")),
)


def _came(row: Mapping[str, Any]) -> str:
    if row["came"] is None:
        return ""
    return f"{human_size(row['came'])} in {row['after']:.2g} s"


MOVE_COLUMNS = (
    Column("AGO", field("at"), lambda at: f"{max(0.0, time.time() - at):.0f} s", right=True),
    *PLAN_COLUMNS[:3],
    Column("CAME", _came, right=True),
    PLAN_COLUMNS[3],
)


@click.group("memory")
def memory_command() -> None:
    """Memory: what machines have, and what the broker moves between them.

    A machine gives memory by its balloon when others need it more, and gets it back. It never goes below its
    memory.reservation; what is left is shared by memory.weight, where an idle byte costs as much as four that
    are used. While memory suffices, nothing moves.
    """


@memory_command.command("show")
@click.argument("name", required=False, metavar="NAME", shell_complete=machine_names)
@shared_options()
@click.pass_obj
def _show(session: Session, name: str | None) -> None:
    """Show the memory of all machines that run: what each has, uses, and is to have next.

    Of one machine, NAME, also what of the host's memory it has for what.
    """
    if name is not None:
        _show_one(session, session.client.machines.named(name).memory())
        return
    answer = session.client.memory.show()
    rows = [asdict(one) for one in answer.machines]
    if session.format in ("json", "yaml"):
        print_value(session, asdict(answer))
        return
    if session.format == "table" and not session.quiet:
        click.echo(headline(answer))
    print_rows(session, rows, _MACHINE_COLUMNS)


def _show_one(session: Session, one: MachineMemoryInfo) -> None:
    if session.format == "csv" or session.quiet:
        print_rows(session, [asdict(one)], _MACHINE_COLUMNS)
    elif session.format != "table":
        print_value(session, asdict(one))
    else:
        for line in _words(one):
            click.echo(line)


def _words(one: MachineMemoryInfo) -> Iterator[str]:
    yield (
        f"{one.name} has {human_size(one.size - one.actual)} of its {human_size(one.size)}, uses about "
        f"{human_size(one.active)}, and is to have {human_size(one.target)}"
    )
    limit = "none" if one.limit is None else f"{human_size(one.limit)} without its processes"
    yield f"  floor {human_size(one.floor)}, limit {limit}, weight {one.weight}"
    if one.guest is not None:
        by_plane = f", {human_size(one.by_plane)} of it read by the plane" if one.by_plane else ""
        yield f"  of the host: {human_size(one.guest)} of the guest's memory{by_plane}"
    if one.own is not None:
        yield f"  and {human_size(one.own)} of its processes"
    if one.helpers:
        yield f"  and {human_size(one.helpers)} of passt, its way to the world"
    if one.need or one.refuses:
        yield f"  {one.need or 'its guest does not give'}"


@memory_command.command("plan")
@shared_options()
@click.pass_obj
def _plan(session: Session) -> None:
    """Print what the broker would do now, and why; nothing is done."""
    answer = session.client.memory.show()
    rows = [asdict(one) for one in answer.moves]
    if session.format == "table" and not session.quiet:
        click.echo(headline(answer))
        if not rows:
            click.echo(nothing(answer))
            return
    print_rows(session, rows, PLAN_COLUMNS, name="machine")


@memory_command.command("moves")
@click.option(
    "--since", type=span(3600, "ask for less"), default="1m", metavar="SPAN", help="90s, 5m, 1h at most (1m)."
)
@shared_options()
@click.pass_obj
def _moves(session: Session, since: int) -> None:
    """List what the broker moved, why, and what came of it."""
    rows = [asdict(one) for one in session.client.memory.moves(since)]
    print_rows(session, rows, MOVE_COLUMNS, name="machine")


@memory_command.command("move")
@name_argument
@click.option("--swap", type=SIZE, metavar="SIZE", help="This much to the host's swap, the coldest first.")
@click.option("--resident", is_flag=True, help="All that is swapped out comes back.")
@click.option("--huge", type=click.Choice(["on", "off"]), help="Into huge pages of 2 MiB, or out of them.")
@click.option("--node", type=click.IntRange(0), metavar="N", help="To this NUMA node, now and from now on.")
@shared_options()
@click.pass_obj
def _move(
    session: Session, name: str, *, swap: int | None, resident: bool, huge: str | None, node: int | None
) -> None:
    """Move a machine's memory while it runs, and say what came of it by the host's counters.

    Its guest notices nothing but that a page which is away takes longer to be read. One option at a time.
    """
    if (swap is not None) + resident + (huge is not None) + (node is not None) != 1:
        raise click.UsageError("name one of --swap, --resident, --huge and --node")
    answer = session.client.machines.named(name).relocate(
        swap=swap, resident=resident or None, huge=None if huge is None else huge == "on", node=node
    )
    if session.quiet:
        click.echo(answer.done)
    elif session.format != "table":
        print_value(session, asdict(answer))
    else:
        for line in _relocation(answer):
            click.echo(line)


_WORDS = {
    "swap": "went to swap",
    "resident": "came back from swap",
    "huge": "went into huge pages",
    "small": "went out of huge pages",
    "node": "went to the node",
}


def _relocation(answer: RelocationAnswer) -> Iterator[str]:
    asked = f" of {human_size(answer.asked)}" if answer.asked != answer.done else ""
    yield (
        f"{answer.name}: {human_size(answer.done)}{asked} {_WORDS[answer.kind]} in {answer.seconds:.2g} s "
        f"({answer.how})"
    )
    place = answer.after
    nodes = ", ".join(f"node {node} {human_size(size)}" for node, size in sorted(place.nodes.items()))
    yield (
        f"  now {human_size(place.resident)} in memory, {human_size(place.swapped)} in swap, "
        f"{human_size(place.huge)} in huge pages{f'; mapped: {nodes}' if nodes else ''}"
    )


@memory_command.command("set")
@click.argument("settings", nargs=-1, required=True, metavar="FIELD=VALUE...")
@click.option("--dry-run", is_flag=True, help="Check, and say what would change.")
@shared_options()
@click.pass_obj
def _set(session: Session, settings: Sequence[str], dry_run: bool) -> None:
    """Set what the broker is to do, in effect at once.

    \b
        budget=SIZE   what machines may have in all; none: what the host can give
        broker=false  it moves nothing any more; what guests have given stays given
    """
    answer = session.client.memory.set([parse(text) for text in settings], dry_run=dry_run)
    if session.format == "table" and not answer.changes and not session.quiet:
        click.echo("nothing changes: it is so already")
        return
    print_rows(session, [asdict(one) for one in answer.changes], CHANGE_COLUMNS, name="field")


def print_why_memory(session: Session, answer: MemoryWhy) -> None:
    """The answer to `nagaya why NAME --memory`."""
    rows = [asdict(move) for move in answer.moves]
    if session.format == "csv":
        print_rows(session, rows, MOVE_COLUMNS)
    elif session.format != "table":
        print_value(session, asdict(answer))
    elif session.quiet:
        for name in dict.fromkeys(name for row in rows for name in row["whom"]):
            click.echo(name)
    else:
        print_answer(session, answer, rows, MOVE_COLUMNS)


def print_answer(
    session: Session,
    answer: WhyAnswer | MemoryWhy,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
) -> None:
    """An answer to `nagaya why`, as people read it: words, rows, and what would change it."""
    first, *rest = answer.words
    click.echo(first)
    for line in rest:
        click.echo(f"  {line}")
    if rows:
        click.echo()
        print_rows(session, rows, columns)
    if answer.advice:
        click.echo("\nWhat would change it:")
    for advice in answer.advice:
        click.echo(f"  {advice.command}\n      {advice.effect}")


def headline(answer: MemoryAnswer) -> str:
    """Whether memory is short, and why."""
    state = "short" if answer.short else "sufficient"
    off = "" if answer.broker else "; the broker is off"
    if answer.short and answer.left >= answer.reserve and answer.room > answer.left:
        off = f", and guests could grow by {human_size(answer.room)} at once{off}"
    left = f"{human_size(answer.left)} are left, {human_size(answer.reserve)} of it in reserve"
    if answer.left < 0:
        left = f"they have {human_size(-answer.left)} more"
    return f"Memory is {state}: machines may have {human_size(answer.budget)}, {left}{off}"


def nothing(answer: MemoryAnswer) -> str:
    """That there is nothing to move, and if that is no good news, why."""
    keep = [one.name for one in answer.machines if one.refuses and (one.resident or 0) > one.target]
    if not answer.short or not keep:
        return "It would move nothing."
    names = ", ".join(keep)
    return f"It would move nothing: guests of {names} do not give, and the host has no swap left for it."
