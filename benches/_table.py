"""What every bench prints: medians of interleaved rounds, their spread, and the ratio to each peer.

A bench runs as `python -m benches.NAME.run` from the top of the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal


def read_options(doc: str | None, argv: Sequence[str], **numbers: tuple[float, float]) -> argparse.Namespace:
    """The options of a bench: `--json`, `--quick`, and each of `numbers`: its default, and what is quick."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, _) in numbers.items():
        parser.add_argument(f"--{name}", type=type(default), help=f"default {default}")
    parser.add_argument("--json", type=Path, help="write all samples here")
    quick = " ".join(f"--{name} {few}" for name, (_, few) in numbers.items())
    parser.add_argument("--quick", action="store_true", help=f"a look, not a figure: {quick}")
    options = parser.parse_args(argv)
    for name, (default, few) in numbers.items():
        if getattr(options, name) is None:
            setattr(options, name, few if options.quick else default)
    return options


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: our samples and each peer's, one sample a round, all in `unit`.

    `targets` names, for a peer, the ratio (ours / peer) that we promise: at least it when higher is better,
    at most it when lower is.
    """

    name: str
    ours: Sequence[float]
    peers: Mapping[str, Sequence[float]]
    unit: str
    better: Literal["lower", "higher"]
    targets: Mapping[str, float] = field(default_factory=dict)

    def ratio_to(self, peer: str) -> float:
        """Ours / the peer's, at the median; round by round where both have the same rounds, so that a drift
        of the host falls out."""
        theirs = self.peers[peer]
        if len(theirs) == len(self.ours) and all(theirs):
            return median(a / b for a, b in zip(self.ours, theirs, strict=True))
        return ratio(median(self.ours), median(theirs))

    def meets(self, peer: str) -> bool | None:
        """Whether the promise to this peer holds; None if none was made."""
        if peer not in self.targets:
            return None
        have, want = self.ratio_to(peer), self.targets[peer]
        return have >= want if self.better == "higher" else have <= want


def ratio(ours: float, theirs: float) -> float:
    """Ours / theirs; infinite when theirs is zero."""
    return ours / theirs if theirs else float("inf")


def spread(samples: Sequence[float]) -> float:
    """Half of the range over the median: 0.05 reads as plus or minus 5%."""
    middle = median(samples)
    return (max(samples) - min(samples)) / 2 / middle if middle else 0.0


def report(
    title: str, rows: Sequence[Row], options: argparse.Namespace | None = None, **extra: Any
) -> list[Row]:
    """The end of every bench: print the table, write all samples where `--json` says, return the rows.

    A row has its name, ours, then for each peer its figure and our ratio to it; a ratio that misses its
    target is marked `!` with the target behind it. `extra` goes into the JSON document.
    """
    _print_table(title, rows)
    if options and options.json:
        options.json.write_text(_to_json(title, rows, **extra))
    return list(rows)


def host_line() -> str:
    """CPU, count, kernel and date: what a figure means nothing without."""
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"{_cpu_model()}, {os.cpu_count()} CPUs, Linux {platform.release()}, {date}"


def _print_table(title: str, rows: Sequence[Row]) -> None:
    peers = list(dict.fromkeys(peer for row in rows for peer in row.peers))
    header = ["", "unit", "ours", *(text for peer in peers for text in (peer, "ratio"))]
    lines = [header, *(_cells(row, peers) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    print(f"{title}\n{host_line()}\n")
    for line in lines:
        first = line[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        print("  ".join([first, *rest]).rstrip())


def _to_json(title: str, rows: Sequence[Row], **extra: Any) -> str:
    """The rows with all their samples, medians, spreads and ratios, and the host, as one JSON document."""
    table = [
        asdict(row)
        | {
            "median": median(row.ours),
            "spread": spread(row.ours),
            "ratios": {peer: row.ratio_to(peer) for peer in row.peers},
            "meets": {peer: row.meets(peer) for peer in row.targets},
        }
        for row in rows
    ]
    return json.dumps({"title": title, "host": host_line(), "rows": table, **extra}, indent=2)


def _cells(row: Row, peers: Sequence[str]) -> list[str]:
    cells = [row.name, row.unit, _figure(row.ours)]
    for peer in peers:
        if peer not in row.peers:
            cells += ["-", "-"]
            continue
        missed = row.meets(peer) is False
        mark = f"! {'<' if row.better == 'higher' else '>'}{row.targets[peer]:.2f}" if missed else ""
        cells += [_figure(row.peers[peer]), f"{row.ratio_to(peer):.2f}{mark}"]
    return cells


def _figure(samples: Sequence[float]) -> str:
    middle = median(samples)
    digits = 0 if abs(middle) >= 1000 else 1 if abs(middle) >= 100 else 2 if abs(middle) >= 1 else 3
    return f"{middle:,.{digits}f} ±{spread(samples):.0%}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
