"""qemu-img on image files, confined: the only thing that opens images of foreign formats.

Every file is named with its format and with what is below it, as far as we want it to be opened; what a
file's header says of backing files is never followed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from nagaya.errors import BuildError, ConflictError, SpecError, UnavailableError
from nagaya.images import confined
from nagaya.images.confined import Outcome, Plan
from nagaya.images.tools import find_tool
from nagaya.plane.copying import disk_full, require_space
from nagaya.progress import Progress

Driver = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"]

_PERCENT = re.compile(rb"\(([0-9.]+)/100%\)")
_LOCKED = re.compile(r'Failed to get (?:shared )?"[a-z ]+" lock')


@dataclass(frozen=True, slots=True)
class Node:
    """An image file and QEMU's name of its format."""

    path: Path
    driver: Driver


def graph(chain: Sequence[Node]) -> str:
    """How qemu-img is told of `chain`, top first; below the last one there is nothing."""
    below: dict[str, Any] | None = None
    for node in reversed(chain):
        options: dict[str, Any] = {
            "driver": node.driver,
            "file": {"driver": "file", "filename": str(node.path)},
        }
        if node.driver == "qcow2":
            options["backing"] = below
        below = options
    return f"json:{json.dumps(below)}"


@dataclass(frozen=True, slots=True)
class QemuImg:
    """Commands on image files, each in a jail of the user `uid` (0 without root)."""

    uid: int

    async def info(self, image: Node) -> dict[str, Any]:
        """What `qemu-img info` says of one file."""
        argv = ("info", "--output=json", graph([image]))
        answer: dict[str, Any] = json.loads((await self._run(argv, reads=[image.path])).output)
        return answer

    async def convert(
        self,
        chain: Sequence[Node],
        target: Path,
        driver: str,
        size: int,
        *,
        progress: Progress,
    ) -> None:
        """Copy the disk of `chain`, `size` bytes, into the new file `target`, which exists and is empty."""
        argv = ("convert", "-p", "-O", driver, graph(chain), str(target))
        bound = size + size // 8 + 2**26  # what a format's tables take at most
        await self._run(
            argv,
            reads=[node.path for node in chain],
            writes=[target],
            progress=_Steps(progress, "copy", target),
            file_size=bound,
        )

    async def check(self, image: Node, repair: bool) -> dict[str, Any]:
        """The report of `qemu-img check`, as JSON; `repair` gives leaked clusters back."""
        argv = ("check", "--output=json", *(("-r", "leaks") if repair else ()), graph([image]))
        outcome = await self._run(
            argv,
            reads=[] if repair else [image.path],
            writes=[image.path] if repair else [],
            good=(0, 2, 3),  # 2: errors found; 3: leaks found
        )
        report: dict[str, Any] = json.loads(outcome.output)
        return report

    async def map(self, chain: Sequence[Node]) -> list[dict[str, Any]]:
        """The extents of a disk: `start`, `length`, `depth` (the layer), `zero`, `data`, `offset`."""
        outcome = await self._run(("map", "--output=json", graph(chain)), reads=[node.path for node in chain])
        extents: list[dict[str, Any]] = json.loads(outcome.output)
        return extents

    async def _run(
        self,
        argv: Sequence[str],
        *,
        reads: Sequence[Path] = (),
        writes: Sequence[Path] = (),
        progress: _Steps | None = None,
        file_size: int = 2**62,
        good: Sequence[int] = (0,),
    ) -> Outcome:
        plan = Plan(
            argv=(str(find_tool("qemu-img")), *argv),
            uid=self.uid,
            reads=tuple(map(str, reads)),
            writes=tuple(map(str, writes)),
            file_size=file_size,
        )
        for path in (*reads, *writes):
            if not path.is_file():
                raise UnavailableError(f"the image file {path} is not there", path=str(path))
        outcome = await confined.run(plan, progress)
        if outcome.status not in good:
            _fail(argv[0], outcome, [*writes, *reads])
        return outcome


class _Steps:
    """qemu-img's own progress as ours, and an eye on the space that is left."""

    def __init__(self, progress: Progress, step: str, target: Path) -> None:
        self._progress, self._step, self._target = progress, step, target
        progress(step, 0.0)

    def __call__(self, output: bytes) -> None:
        percents = _PERCENT.findall(output)
        if percents:
            self._progress(self._step, min(1.0, float(percents[-1]) / 100))
        require_space(str(self._target))


def _fail(command: str, outcome: Outcome, files: Sequence[Path]) -> NoReturn:
    """The error for what qemu-img says."""
    text = outcome.message.decode(errors="replace").strip()
    text = re.sub(r"json:\{.*?\}+(?=[:' ]|$)", str(files[0]) if files else "", text)
    if outcome.status == confined.JAIL_FAILED:
        raise UnavailableError(text, hint="programs on image files need namespaces and seccomp of the kernel")
    if _LOCKED.search(text):
        raise ConflictError(
            f"an image file is in use: {text.splitlines()[0]}",
            hint="stop the machine or the program that has it; a snapshot can be read while its machine runs",
            files=[str(path) for path in files],
        )
    if "No space left on device" in text:
        raise disk_full(str(files[0]))
    how = f"status {outcome.status}" if outcome.status < 128 else f"signal {outcome.status & 0x7F}"
    if command in ("info", "convert"):
        raise SpecError(f"qemu-img {command} failed with {how}: {text}", command=command)
    raise BuildError(f"qemu-img {command} failed with {how}: {text}", command=command)
