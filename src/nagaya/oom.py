"""In which order the host's out-of-memory killer would take processes, when nothing else has helped.

The kernel takes the process with the most points: its memory as thousandths of all there is, plus its
`oom_score_adj` (proc(5); mm/oom_kill.c, oom_badness). Between `WITHIN` and `BEYOND` are a thousand and more,
which no memory makes up for, and also where nobody may go below 0 (CAP_SYS_RESOURCE) and `WITHIN` is 0. So
machines that use more than they were promised come first, then the host's other work, machines within their
promise, and the daemon, the zygote and the plane last of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

HOST = -999  # daemon, zygote and plane; not -1000, which would leave a host with nothing to kill
WITHIN = -500
ORDINARY = 0
BEYOND = 1000
_PASSES = 5  # for processes that are forked while their parents are being told


def set_score(pid: int | str, score: int, proc: Path = Path("/proc")) -> bool:
    """Give a process that score, or without the right to go below what it has, 0. Whether that changed it."""
    file = proc / str(pid) / "oom_score_adj"
    try:
        if int(file.read_text()) == score:
            return False
        try:
            file.write_text(str(score))
        except PermissionError:
            if score >= 0 or int(file.read_text()) == ORDINARY:
                return False
            file.write_text(str(ORDINARY))
    except OSError:  # it has just ended, or is another user's
        return False
    return True


def protect_self() -> None:
    """Let this process, and what it starts, be taken last; a service manager may have said so already."""
    if int(Path("/proc/self/oom_score_adj").read_text()) > HOST:
        set_score("self", HOST)


def rank(pids: Callable[[], Iterable[int]], score: int) -> None:
    """Give all processes of a machine that score, those too that they fork meanwhile."""
    for _ in range(_PASSES):
        if not sum(set_score(pid, score) for pid in pids()):
            return
