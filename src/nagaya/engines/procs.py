"""Processes by /proc; imported by the zygote, so it imports nothing itself."""

from __future__ import annotations


def start_time_of(pid: int) -> int:
    """Field 22 of /proc/PID/stat, clock ticks since boot. Raises `OSError` if there is no such process."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])
