"""The command line, `nagaya`. One module for each group of commands; none is imported before it is used."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Entry point of the `nagaya` program: ends the process with its exit status."""
    import contextlib
    import gc
    import os
    import sys

    gc.set_threshold(50_000)  # importing makes no garbage, and looking for it takes 3 ms of each command
    try:
        from nagaya.cli.app import run
    except KeyboardInterrupt:  # nothing has begun; later ones are `run`'s
        os.write(2, b"interrupted\n")
        os._exit(130)

    status = run()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # told already, where it matters
            if stream is not None:
                stream.flush()
    os._exit(status)  # all is closed; taking the interpreter apart as well would take another 8 ms
