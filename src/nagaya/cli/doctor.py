"""`nagaya doctor`: what this host can do."""

from __future__ import annotations

import sys

import click

from nagaya.cli.app import shared_options
from nagaya.cli.output import Column, field, print_rows
from nagaya.cli.session import Session

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}
_COLUMNS = tuple(Column(name.upper(), field(name)) for name in ("name", "state", "found", "meaning", "fix"))


@click.command("doctor")
@shared_options()
@click.pass_obj
def doctor_command(session: Session) -> int:
    """Check this host: what works, what does not, what that means and how to mend it.

    The exit status is 1 if something is found without which no machine runs.
    """
    from nagaya.doctor import State, examine
    from nagaya.paths import Paths

    findings = examine(Paths.default())
    if session.format == "table" and not session.quiet:
        colors = session.colors(sys.stdout)
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            state = click.style(f"{finding.state:<4}", fg=_COLORS[finding.state])
            click.echo(f"{state}  {finding.name:<{width}}  {finding.found}", color=colors)
            if finding.meaning:
                click.echo(f"{'':{width + 8}}{finding.meaning}")
            if finding.fix:
                click.echo(f"{'':{width + 8}}→ {finding.fix}")
    else:
        rows = [finding.to_json() for finding in findings if not session.quiet or finding.state != State.OK]
        print_rows(session, rows, _COLUMNS)
    return int(any(finding.state == State.FAIL for finding in findings))
