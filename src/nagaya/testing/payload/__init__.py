"""Payload guests: bare-metal programs, built with the system's gcc, for tests and benches of the kvm engine.

A payload is one C file beside this package's runtime (payload.h says what it may use). It sets itself up in
ring 0 and runs in ring 3 with access to all ports and memory, so it has native speed also where ring 0 is
emulated. The same ELF file boots by the Linux 64-bit protocol (its entry point) and by PVH (its note, as
QEMU's microvm does).

    elf = build("hello")                      # guests/hello.c of this package
    elf = build(Path("tests/guest/mine.c"))   # any file; it may include payload.h, pci.h, virtio.h

Output is on the first serial port. The last line is `EXIT status`: 0 is success, 1 follows a line
`FAILED ...`, 2 a line `FAULT ...` with the exception. Then the payload powers the machine off: QEMU's
isa-debug-exit at 0xf4, ACPI's sleep control register, a triple fault. A guest that is an .S file is linked
alone, without runtime.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from nagaya.errors import BuildError, NotFoundError
from nagaya.paths import Paths

HERE = Path(__file__).parent
_FLAGS = [
    *("-std=gnu11", "-O2", "-g0", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
    *("-ffreestanding", "-static", "-nostdlib", "-fno-pie", "-no-pie", "-mcmodel=small", "-mno-red-zone"),
    *(
        "-fno-stack-protector",
        "-fno-asynchronous-unwind-tables",
        "-fcf-protection=none",
        "-fno-strict-aliasing",
    ),
    "-fno-tree-loop-distribute-patterns",  # or memset becomes a call of memset
    *("-ffunction-sections", "-fdata-sections"),
    "-Wl,--gc-sections,--build-id=none,-z,noexecstack,--no-warn-rwx-segments",
]


def build(guest: str | Path, *defines: str) -> Path:
    """The ELF file of a guest: by name one of guests/, else a .c or .S file. `defines` are `NAME=VALUE`.

    Built once for each content, into Nagaya's cache directory. Raises `NotFoundError` if there is no such
    guest or no gcc, and `BuildError` with the compiler's words.
    """
    source = _find(guest) if isinstance(guest, str) else guest
    if not source.is_file():
        raise NotFoundError(f"there is no payload {source}")
    library = sorted(path for path in HERE.iterdir() if path.suffix in (".S", ".c", ".h", ".ld"))
    key = hashlib.sha256("\0".join((*_FLAGS, *defines)).encode())
    headers = sorted({*source.parent.glob("*.h"), *(HERE / "guests").glob("*.h")})
    for path in (*library, *headers, source):
        key.update(path.read_bytes())
    cache = Paths.default().cache / "payloads"
    target = cache / f"{source.stem}-{key.hexdigest()[:16]}.elf"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        units = [] if source.suffix == ".S" else [path for path in library if path.suffix in (".S", ".c")]
        _compile([*units, source], defines, target)
    return target


def guests() -> list[str]:
    """The names that `build` knows."""
    return sorted(path.stem for path in (HERE / "guests").iterdir() if path.suffix in (".c", ".S"))


def _find(name: str) -> Path:
    for suffix in (".c", ".S"):
        path = HERE / "guests" / f"{name}{suffix}"
        if path.is_file():
            return path
    raise NotFoundError(f"there is no payload {name!r}; there are {', '.join(guests())}")


def _compile(units: list[Path], defines: tuple[str, ...], target: Path) -> None:
    gcc = shutil.which("gcc")
    if gcc is None:
        raise NotFoundError("payload guests need gcc", hint="apt install gcc")
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".new", delete=False) as partial:
        command = [gcc, *_FLAGS, *(f"-D{one}" for one in defines), f"-I{HERE}", f"-T{HERE / 'payload.ld'}"]
        done = subprocess.run(
            [*command, *map(str, units), "-o", partial.name], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            Path(partial.name).unlink()
            raise BuildError(f"gcc cannot build the payload {units[-1].name}:\n{done.stderr.strip()}")
    Path(partial.name).chmod(0o644)  # machines in their jails read it as users of their own
    Path(partial.name).rename(target)
