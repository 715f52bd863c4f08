"""`python -m nagaya.plane`: the holder. `nagaya.plane.launch` or the service manager starts it."""

from __future__ import annotations

import argparse
import os
import sys


def main() -> int:
    """Parse the command line and be the holder. The exit status is that of `nagaya.errors`."""
    parser = argparse.ArgumentParser(
        prog="python -m nagaya.plane", description="Hold the devices of all machines."
    )
    parser.add_argument("--ready-fd", type=int, default=-1, help='gets "ready\\n" when clients can connect')
    parser.add_argument("--detach", action="store_true", help="fork; the parent ends at once")
    arguments = parser.parse_args()
    if arguments.detach and os.fork() > 0:
        os._exit(0)  # before anything is imported that has threads or exit handlers

    from nagaya.errors import NagayaError
    from nagaya.paths import Paths
    from nagaya.plane.holder import run

    try:
        run(Paths.default(), arguments.ready_fd)
    except NagayaError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
