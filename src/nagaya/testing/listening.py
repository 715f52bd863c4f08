"""Whether somebody listens on a unix socket."""

from __future__ import annotations

from pathlib import Path

_LISTENS = "00010000"  # __SO_ACCEPTCON (linux/net.h)


def is_listening(path: Path | str) -> bool:
    """Whether somebody listens at `path`. The file is there earlier, and refuses connections until then."""
    sockets = map(str.split, Path("/proc/net/unix").read_text().splitlines())
    return any(words[3] == _LISTENS and words[-1] == str(path) for words in sockets)
