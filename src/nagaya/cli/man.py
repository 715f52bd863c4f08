"""Manual pages from the commands themselves: `python -m nagaya.cli.man DIRECTORY`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import nagaya
from nagaya.cli.app import nagaya_command

EXIT_STATUS = (
    ("0", "All went well."),
    ("1", "A fault of Nagaya; doctor found something without which no machine runs."),
    ("2", "The command line or a file is wrong; the message has file, line and field."),
    ("3", "There is no such machine, image, kernel or job."),
    ("4", "A name is taken, or the state of the machine does not allow it."),
    ("5", "The engine or the host cannot do what was asked for."),
    ("6", "Memory, disk space or another resource of the host does not suffice."),
    ("7", "A right is missing."),
    ("8", "The daemon, the plane or the guest agent does not answer."),
    ("9", "A deadline passed."),
    ("10", "The machine ended in a way that nobody asked for."),
    ("11", "An image or a kernel could not be built."),
    ("12", "A peer broke a protocol."),
    ("125", "exec and run only: Nagaya itself failed; any other status is the guest command's."),
    ("126, 127", "exec and run only: the guest cannot execute, or cannot find, the command."),
    ("130", "Interrupted by ctrl-C."),
    ("141", "The reader of the output went away."),
)
ENVIRONMENT = (
    ("NO_COLOR", "Plain text if it is set and not empty."),
    ("NAGAYA_RUN_DIR, NAGAYA_STATE_DIR, NAGAYA_CACHE_DIR", "Directories of another, independent Nagaya."),
)


def walk(command: click.Command, parent: click.Context | None, name: str) -> Iterator[click.Context]:
    """A context for `command` and each command below it, in the order of the help."""
    ctx = click.Context(command, info_name=name, parent=parent, help_option_names=["-h", "--help"])
    yield ctx
    if isinstance(command, click.Group):
        for inner in command.list_commands(ctx):
            found = command.get_command(ctx, inner)
            if found is not None:
                yield from walk(found, ctx, inner)


def options(ctx: click.Context) -> list[tuple[str, str]]:
    """The options of a command with their help, those that all commands share last."""
    shared = ("--format", "--quiet", "--no-color", "--debug", "--help")
    records = [
        (param, record)
        for param in ctx.command.get_params(ctx)
        if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None
    ]
    return [
        record for _param, record in sorted(records, key=lambda pair: any(o in shared for o in pair[0].opts))
    ]


def paragraphs(command: click.Command) -> list[str]:
    """The help of a command, a string for each paragraph; one that keeps its lines begins with `\\b`."""
    return re.split(r"\n\s*\n", (command.help or "").strip())


def page(ctx: click.Context) -> str:
    """The manual page of one command, in the man macros."""
    command = ctx.command
    name = ctx.command_path.replace(" ", "-")
    texts = paragraphs(command)
    summary = texts[0].split(". ")[0].rstrip(".")
    lines = [
        f'.TH "{name.upper()}" "1" "" "Nagaya {nagaya.__version__}" "Nagaya"',
        ".SH NAME",
        rf"{_roff(name)} \- {_roff(summary[:1].lower() + summary[1:])}",
        ".SH SYNOPSIS",
        rf"\fB{_roff(ctx.command_path)}\fR {_roff(' '.join(command.collect_usage_pieces(ctx)))}",
        ".SH DESCRIPTION",
    ]
    for text in texts:
        lines += [".nf" if text.startswith("\b") else ".PP", _roff(text.lstrip("\b\n"))]
        lines += [".fi"] if text.startswith("\b") else []
    if isinstance(command, click.Group):
        lines += [".SH COMMANDS"]
        for inner in command.list_commands(ctx):
            found = command.get_command(ctx, inner)
            if found is not None:
                lines += _entry(f"{name}-{inner}(1)", found.get_short_help_str(100))
    lines += [".SH OPTIONS"]
    for flags, text in options(ctx):
        lines += _entry(flags, text)
    if ctx.parent is None:
        lines += [".SH EXIT STATUS", *(line for status, text in EXIT_STATUS for line in _entry(status, text))]
        lines += [
            ".SH ENVIRONMENT",
            *(line for variable, text in ENVIRONMENT for line in _entry(variable, text)),
        ]
    else:
        lines += [".SH SEE ALSO", rf"\fB{_roff(ctx.parent.command_path.replace(' ', '-'))}\fR(1)"]
    return "\n".join(lines) + "\n"


def _entry(term: str, text: str) -> list[str]:
    return [".TP", rf"\fB{_roff(term)}\fR", _roff(text)]


def _roff(text: str) -> str:
    """Plain text so that roff prints it as it is."""
    lines = (line.strip() for line in text.replace("\\", r"\e").replace("-", r"\-").splitlines())
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in lines)


def main(directory: Path) -> None:
    """Write all pages into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    for ctx in walk(nagaya_command, None, "nagaya"):
        name = ctx.command_path.replace(" ", "-")
        (directory / f"{name}.1").write_text(page(ctx))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
