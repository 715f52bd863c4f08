"""Starts a worker of the plane: `python -I -S worker.py <extension module> <control fd>`.

Run as a file, without site and without the package: a worker must be there a few milliseconds after one died.
`importlib.util` would cost four more.
"""

import os
import sys


def main(extension: str, control_fd: str) -> int:
    """The life of a worker; returns its exit status."""
    directory, name = os.path.split(extension)
    sys.path.append(directory)  # behind the standard library: nothing of ours is taken for a part of it
    core = __import__(name.partition(".")[0])
    status: int = core.worker_main(int(control_fd))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
