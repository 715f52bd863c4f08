"""`python -m nagaya.daemon.units DIRECTORY`."""

import sys
from pathlib import Path

from nagaya.daemon.units import install

if len(sys.argv) != 2:
    sys.exit("usage: python -m nagaya.daemon.units DIRECTORY")
for written in install(Path(sys.argv[1])):
    print(written)  # noqa: T201
