"""Processes by /proc."""

from __future__ import annotations

from pathlib import Path


def start_time_of(pid: int) -> int:
    """Field 22 of /proc/PID/stat, clock ticks since boot. Raises `OSError` if there is no such process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
