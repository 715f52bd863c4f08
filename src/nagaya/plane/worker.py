"""Starts a worker of the plane: `python -I -S worker.py <extension module> <control fd>`.

Run as a file, without site and without the package: a worker must be there a few milliseconds after one died.
"""

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader


def main(extension: str, control_fd: str) -> int:
    """The life of a worker; returns its exit status."""
    loader = ExtensionFileLoader("nagaya._core", extension)
    spec = spec_from_loader("nagaya._core", loader)
    if spec is None:
        raise ImportError(f"{extension} is not an extension module")
    core = module_from_spec(spec)
    loader.exec_module(core)
    status: int = core.worker_main(int(control_fd))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
