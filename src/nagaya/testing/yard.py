"""Machines of the engine `uml` without daemon and plane: they boot a RAM disk, their log is the engine's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nagaya.engines.engine import Exit, Machine, ProcessId
from nagaya.engines.uml import UmlEngine
from nagaya.errors import TimeoutExpiredError
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.resources.cgroups import remove_base
from nagaya.spec import Boot, MachineSpec

# What the guest does is on its kernel's command line; con0 takes its output to the engine's log.
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec >/dev/tty0 2>&1
echo GUEST-READY
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in do=*) what=${word#do=} ;; esac
done
case $what in
poweroff) /bin/busybox poweroff -f ;;
reboot) /bin/busybox reboot -f ;;
panic) echo c >/proc/sysrq-trigger ;;
cad) echo 0 >/proc/sys/kernel/ctrl-alt-del; trap '/bin/busybox poweroff -f' INT; echo TRAP-SET ;;
count) while :; do n=$((n + 1)); echo COUNT $n; /bin/busybox sleep 0.1; done ;;
burn) while :; do :; done ;;
flood) /bin/busybox yes 0123456789abcdef0123456789abcdef ;;
forks) while :; do /bin/busybox sleep 1000 & done ;;
eat)
    /bin/busybox mount -t tmpfs -o size=60% t /mnt
    /bin/busybox dd if=/dev/zero of=/mnt/f bs=1M
    echo EATEN ;;
loads) i=0; while [ $i -lt 200 ]; do /bin/busybox true; i=$((i + 1)); done; echo LOADS-DONE ;;
hostfs)
    /bin/busybox grep -q hostfs /proc/filesystems && echo HAS-HOSTFS
    if /bin/busybox mount -t hostfs none /mnt; then
        echo MOUNTED; /bin/busybox find /mnt | /bin/busybox head -n 200; /bin/busybox cat /mnt/etc/passwd
    else
        echo NOT-MOUNTED
    fi
    echo HOSTFS-DONE ;;
esac
while :; do /bin/busybox sleep 1; done
"""


@dataclass
class Yard:
    """One Nagaya's worth of machines, without daemon and plane."""

    paths: Paths
    kernel: Kernel
    initrd: Path
    engine: UmlEngine = field(init=False)
    _machines: list[Machine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = UmlEngine(self.paths)

    def machine(self, do: str, **spec: Any) -> Machine:
        """A machine whose guest does `do`, with directories as the daemon makes them."""
        number = len(self._machines)
        uid = 61000 + os.getpid() % 1000 * 4 + number
        one = MachineSpec(
            name=f"m{number}",
            memory=spec.pop("memory", "48MiB"),
            boot=Boot(initrd=str(self.initrd), cmdline=f"con0=fd:1 do={do}"),
            **spec,
        )
        made = Machine(f"{number:012x}", one, self.paths.machine(f"{number:012x}"), uid, uid, self.kernel)
        made.paths.jail.mkdir(parents=True, mode=0o750)
        made.paths.state.mkdir(parents=True, mode=0o700)
        if os.geteuid() == 0:
            os.chown(made.paths.jail, 0, uid)
        self._machines.append(made)
        return made

    def keep(self, machine: Machine) -> None:
        """Clean up after `machine`, made of one that this yard made."""
        self._machines.append(machine)

    async def close(self) -> None:
        """Nothing of it is left: machines, control groups, zygote."""
        for machine in self._machines:
            await self.engine.cleanup(machine)
        zygote = await self.engine.prepare()
        os.kill(zygote.pid, signal.SIGTERM)
        await wait_until(lambda: not self.paths.zygote_socket.exists())
        remove_base(zygote.base)


async def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    """Poll until `true()`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutExpiredError(f"it did not happen within {seconds:g} s")
        await asyncio.sleep(0.005)


async def said(machine: Machine, text: str, seconds: float = 60) -> str:
    """Wait until the guest has printed `text`; the log so far."""
    log = machine.paths.engine_log
    await wait_until(lambda: log.exists() and text in log.read_text(errors="replace"), seconds)
    return log.read_text(errors="replace")


async def end_of(yard: Yard, machine: Machine, process: ProcessId, seconds: float = 60) -> Exit:
    """How it ended."""
    async with asyncio.timeout(seconds):
        return await yard.engine.wait(machine, process)


def write_initrd(path: Path, init: bytes = INIT.encode()) -> None:
    """A RAM disk with the host's static busybox and the program `init`."""
    parts = [_entry(name, 0o40755) for name in ("bin", "dev", "proc", "mnt")]
    parts.append(_entry("bin/busybox", 0o100755, Path("/bin/busybox").read_bytes()))
    parts += [_entry("init", 0o100755, init), _entry("TRAILER!!!", 0)]
    path.write_bytes(b"".join(parts))


def _entry(name: str, mode: int, content: bytes = b"") -> bytes:
    """One file of a newc archive (cpio(5))."""
    encoded = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


def pss_kib(pid: int) -> int:
    """Proportional set size of a process."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
