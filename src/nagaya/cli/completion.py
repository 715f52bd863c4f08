"""`nagaya completion`: completion scripts for shells."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from nagaya.cli.app import COMPLETE_VARIABLE, nagaya_command, shared_options


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@shared_options(session_formats=False)
def completion_command(shell: str) -> None:
    """Print a completion script for a shell.

    \b
    bash: nagaya completion bash > /etc/bash_completion.d/nagaya
    zsh:  nagaya completion zsh > ~/.zfunc/_nagaya
    fish: nagaya completion fish > ~/.config/fish/completions/nagaya.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(nagaya_command, {}, "nagaya", COMPLETE_VARIABLE).source(), nl=False)
