"""`nagaya create` and `nagaya run`: machines from an image, without a file."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import group_names, image_names, network_names
from nagaya.cli.follow import Interrupted, waiting
from nagaya.cli.seconds import seconds
from nagaya.cli.session import Session
from nagaya.cli.terminal import (
    LONG_S,
    GuestCommand,
    open_console,
    parse_env,
    run_in_guest,
)
from nagaya.errors import NotFoundError
from nagaya.settings import parse, put

if TYPE_CHECKING:
    from nagaya.sdk import Machine


_SPEC_OPTIONS = (
    click.argument("image", shell_complete=image_names),
    click.option("--name", help="Name of the machine (default: the image's, with digits)."),
    click.option("--memory", metavar="SIZE", help="Memory, for example 512MiB (the default)."),
    click.option("--cpus", type=click.IntRange(min=1), metavar="N", help="CPUs (1)."),
    click.option("--disk", metavar="SIZE", help="Grow the first disk to this size."),
    click.option("--engine", metavar="ENGINE", help="auto, uml, kvm or qemu (auto)."),
    click.option("--kernel", metavar="NAME", help="Kernel from `nagaya kernel list`."),
    click.option(
        "--network",
        "networks",
        multiple=True,
        metavar="NAME",
        shell_complete=network_names,
        help="Network that it is on, or none (default); repeatable, a NIC each.",
    ),
    click.option(
        "--group",
        "groups",
        multiple=True,
        metavar="NAME",
        shell_complete=group_names,
        help="Security group that its NICs are in; repeatable.",
    ),
    click.option(
        "-p",
        "--publish",
        "ports",
        multiple=True,
        metavar="[ADDRESS:]PORT:PORT[/udp]",
        help="Port of the host, and the machine's to which it leads; repeatable.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Any field of the specification: --set cpu.weight=200; may be repeated.",
    ),
)


def _spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_SPEC_OPTIONS):
        command = option(command)
    return command


@click.command("create")
@_spec_options
@click.option("--start", is_flag=True, help="Start it, too.")
@shared_options(session_formats=False)
@click.pass_obj
def create_command(session: Session, /, *, start: bool, image: str, name: str | None, **options: Any) -> None:
    """Make a machine from IMAGE. Prints its name."""
    machine = session.client.machines.create(spec_from_options(image, name, **options), start=start)
    click.echo(machine.name)


class _RunCommand(GuestCommand):
    """A command whose line ends with `-- COMMAND...`, which is the guest's, word by word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        guest: list[str] = []
        if "--" in args:
            at = args.index("--")
            args, guest = args[:at], args[at + 1 :]
        rest = super().parse_args(ctx, args)
        ctx.params["command"] = guest
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


@click.command("run", cls=_RunCommand)
@_spec_options
@click.option(
    "-e", "--env", multiple=True, metavar="NAME=VALUE", help="Variable for COMMAND; may be repeated."
)
@click.option("-n", "--no-stdin", is_flag=True, help="Do not pass standard input to COMMAND.")
@click.option("--keep", is_flag=True, help="Leave the machine running at exit.")
@click.option(
    "--timeout",
    type=seconds(),
    default=120.0,
    metavar="SECONDS",
    help="How long to wait for the guest to come up (120).",
)
@shared_options(session_formats=False)
@click.pass_obj
def run_command(
    session: Session,
    /,
    *,
    image: str,
    name: str | None,
    command: Sequence[str],
    env: Sequence[str],
    no_stdin: bool,
    keep: bool,
    timeout: float,
    **options: Any,
) -> int:
    """Make a machine from IMAGE, run it in this terminal, remove it at exit.

    Without COMMAND, the terminal is attached to the console until the guest switches off or ctrl-] is
    pressed. With COMMAND, it is run when the guest is up; output and exit status are the command's, and
    125 says that Nagaya itself failed.
    """
    variables = parse_env(env)
    spec = spec_from_options(image, name, **options)
    try:
        machine = session.client.machines.create(spec)
    except KeyboardInterrupt:
        raise Interrupted(
            f"`nagaya delete --force {spec['name']}` removes the machine, if there is one"
        ) from None
    try:
        machine.start()
        if not command:
            open_console(session, machine)
            return 0
        with waiting(session, f"{machine.name} comes up"):
            machine.wait("agent", timeout)
        return run_in_guest(session, machine, command, no_stdin, env=variables, timeout=LONG_S)
    except KeyboardInterrupt:
        raise Interrupted(f"{machine.name} {'stays' if keep else 'is removed'}") from None
    finally:
        if not keep:
            _remove(machine)


def _remove(machine: Machine) -> None:
    """Delete the machine, which may be gone already."""
    try:
        with contextlib.suppress(NotFoundError):
            machine.delete(force=True)
    except KeyboardInterrupt:
        raise Interrupted(f"`nagaya delete --force {machine.name}` removes the machine") from None


def spec_from_options(
    image: str, name: str | None, settings: Sequence[str], **options: Any
) -> dict[str, Any]:
    """The specification that the options describe; the daemon validates it."""
    disk = {"image": image, "size": options.pop("disk")}
    kernel = options.pop("kernel")
    networks, groups = (options.pop(one, ()) for one in ("networks", "groups"))
    names = [] if networks == ("none",) else networks or (["default"] if groups else None)
    fields = {
        "name": name or f"{image.lower()[:50]}-{secrets.token_hex(2)}",
        **{key: value for key, value in options.items() if key != "ports"},
        "boot": {"kernel": kernel} if kernel else None,
        "disks": [{key: value for key, value in disk.items() if value is not None}],
        "nics": names and [{"network": one, "groups": list(groups)} for one in names],
        "ports": list(options.get("ports", ())) or None,
    }
    spec = {key: value for key, value in fields.items() if value is not None}
    for setting in settings:
        put(spec, *parse(setting))
    return spec
