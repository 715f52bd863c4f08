"""The command line, `nagaya`. One module for each group of commands; none is imported before it is used."""

from __future__ import annotations


def main() -> int:
    """Entry point of the `nagaya` program; returns its exit status."""
    import gc

    gc.set_threshold(50_000)  # importing makes no garbage, and looking for it takes 5 ms of each command
    from nagaya.cli.app import run

    return run()
