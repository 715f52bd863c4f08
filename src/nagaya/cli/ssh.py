"""`nagaya ssh`: the ssh client, told where a machine is, with which key and by which host keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import name_argument
from nagaya.cli.seconds import seconds
from nagaya.cli.session import Session
from nagaya.cli.terminal import VERBATIM, GuestCommand, strip_dashes
from nagaya.errors import NotFoundError, UnavailableError
from nagaya.traffic import parse_forward

if TYPE_CHECKING:
    from nagaya.models.machine import MachineInfo

SSH_FAILED = 255  # as ssh's own failures
SSH_PORT = 22


class SshCommand(GuestCommand):
    """Ends with the status of the command in the guest; what fails before it is told as ssh tells it."""

    failed = SSH_FAILED


@click.command("ssh", cls=SshCommand, context_settings=VERBATIM)
@name_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] [COMMAND...]")
@click.option("-l", "--user", default="root", metavar="USER", help="Log in as USER (root).")
@click.option(
    "-i", "--identity", metavar="FILE", help="A private key of yours, instead of one that Nagaya makes."
)
@click.option("-o", "options", multiple=True, metavar="OPTION", help="An option for ssh; may be repeated.")
@click.option("-t", "terminal", is_flag=True, help="A terminal for the command, too.")
@click.option(
    "--wait",
    type=seconds(most=3600),
    default=30.0,
    metavar="SECONDS",
    help="How long to wait for the guest to come up (30).",
)
@shared_options(session_formats=False)
@click.pass_obj
def ssh_command(
    session: Session,
    /,
    *,
    name: str,
    command: Sequence[str],
    user: str,
    identity: str | None,
    options: Sequence[str],
    terminal: bool,
    wait: float,
) -> NoReturn:
    """Log in to a machine over its network, or run a command there.

    The key is let in through the guest agent, which also tells the machine's host keys: there is no password
    and no question whether to trust a fingerprint. Without -i it is a key of Nagaya's own, made at the first
    use. The status is that of ssh.
    """
    words = strip_dashes(command)
    ssh = _program("ssh")
    machine = session.client.machines.get(name)
    host, port = endpoint(machine.info)
    key = Path(identity) if identity else own_key(config_directory())
    login = machine.login(public_key(key), user=user, wait=wait)
    given = [*(f"-o{one}" for one in options), *(["-t"] if terminal else [])]
    settings = ssh_options(f"nagaya-{machine.id}", login.host_keys, key)
    argv = [ssh, *given, *settings, f"-p{port}", f"-l{user}", "--", host, *words]
    os.execv(ssh, argv)  # noqa: S606 # a shell is what it must not pass


def endpoint(info: MachineInfo) -> tuple[str, int]:
    """Address and port of a machine's ssh server: of a forward to it if there is one, else its own."""
    for text in info.spec.get("ports") or ():
        forward = parse_forward(text)
        if forward.protocol == "tcp" and forward.machine_port == SSH_PORT:
            return forward.host_address or "127.0.0.1", forward.host_port
    if not info.address:
        raise UnavailableError(
            f"{info.name} has no address",
            hint=f"it needs a NIC on a network that gives it one; nagaya console {info.name} needs none",
            machine=info.name,
        )
    return info.address, SSH_PORT


def ssh_options(alias: str, host_keys: Sequence[str], key: Path) -> list[str]:
    """What makes ssh believe these host keys and no others, and offer this key and no others."""
    # A command instead of a file: nothing stays behind when the machine is deleted.
    words = " ".join(f'"{alias} {one}"' for one in host_keys)
    settings: Mapping[str, str] = {
        "HostKeyAlias": alias,
        "KnownHostsCommand": rf"{_program('printf')} %%s\n {words}",
        "UserKnownHostsFile": "none",
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "IdentitiesOnly": "yes",
        "IdentityFile": f'"{key}"',
        "ConnectTimeout": "10",
    }
    return [f"-o{name}={value}" for name, value in settings.items()]


def config_directory() -> Path:
    """Where this user's settings of Nagaya are (XDG base directory specification)."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "nagaya"


def own_key(directory: Path) -> Path:
    """The private key that `nagaya ssh` uses for this user; made if there is none."""
    key = directory / "id_ed25519"
    if not key.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as work:
            made = Path(work) / "key"
            _keygen("-q", "-t", "ed25519", "-N", "", "-C", "nagaya", "-f", str(made))
            try:
                key.hardlink_to(made)
            except FileExistsError:
                return key  # another one made it meanwhile
    return key


def public_key(key: Path) -> str:
    """The public half, as in a line of authorized_keys. Raises `NotFoundError` if there is no such key."""
    try:
        return Path(f"{key}.pub").read_text().strip()
    except FileNotFoundError:
        pass
    if not key.is_file():
        raise NotFoundError(f"there is no key {key}", hint="ssh-keygen makes one; or leave -i out")
    return _keygen("-y", "-f", str(key)).strip()


def _keygen(*arguments: str) -> str:
    done: Any = subprocess.run(
        [_program("ssh-keygen"), *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError(f"ssh-keygen {' '.join(arguments)} ended with status {done.returncode}")
    return str(done.stdout)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UnavailableError(f"there is no program {name} here", hint="apt install openssh-client")
    return found
