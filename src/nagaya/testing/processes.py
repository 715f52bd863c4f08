"""The end of processes that tests did not fork, such as a daemon."""

from __future__ import annotations

import os
import select
import signal

PATIENCE_S = 60.0


def end(pid: int, number: int = 0) -> None:
    """Signal a process, 0 for nothing, and wait until it has ended. Raises `TimeoutError` if it does not."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, number)
        if not select.select([process], [], [], PATIENCE_S)[0]:
            raise TimeoutError(f"process {pid} did not end within {PATIENCE_S:g} s of signal {number}")
    finally:
        os.close(process)
