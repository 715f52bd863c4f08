"""The command line, `nagaya`. One module for each group of commands; none is imported before it is used."""

from __future__ import annotations


def main() -> int:
    """Entry point of the `nagaya` program; returns its exit status."""
    from nagaya.cli.app import run

    return run()
