"""Places where a test can have the daemon killed, to prove that the next one finishes or undoes the work.

`NAGAYA_FAILPOINT=<step>` makes the process end itself by SIGKILL there; without it a step costs a look-up.
"""

from __future__ import annotations

import os
import signal
from typing import Final, Literal

Step = Literal[
    "create:recorded",
    "create:disks",
    "start:recorded",
    "start:directories",
    "start:devices",
    "start:engine",
    "start:running",
    "set:recorded",
    "set:applied",
    "attach:leased",
    "attach:served",
    "attach:plugged",
    "detach:recorded",
    "detach:unplugged",
    "detach:forgotten",
    "connect:served",
    "connect:plugged",
    "disconnect:unplugged",
    "disconnect:recorded",
    "stop:recorded",
    "stop:asked",
    "stop:ended",
    "stop:cleaned",
    "delete:recorded",
    "delete:files",
    "wait:queued",
    "home:moved",
]

_armed: Final = os.environ.get("NAGAYA_FAILPOINT", "")


def reach(step: Step) -> None:
    """Go on, unless this step is armed."""
    if step == _armed:
        os.kill(os.getpid(), signal.SIGKILL)
