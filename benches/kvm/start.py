"""From the request to the guest's first byte: our engine with a warm zygote beside QEMU's microvm.

Both boot the same payload, whose first instructions write to the serial port, which both connect to a socket
of ours. Ours is jailed: uid, namespaces, empty root, seccomp, control group. QEMU is not.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benches._table import Row, report
from benches.kvm._guests import QEMU_CPU
from nagaya.engines.kvm import host_memory, launch_plan
from nagaya.engines.plan import LaunchPlan
from nagaya.paths import Paths
from nagaya.resources.cgroups import Cgroup, Limits
from nagaya.testing.kvm_yard import KvmYard
from nagaya.testing.payload import build
from nagaya.testing.scratch import make_directory

ROUNDS = 15
BOUND_MS = 15.0
QEMU = "microvm,accel=kvm,rtc=off,pit=off,pic=off"


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    top = make_directory()
    top.chmod(0o755)
    try:
        ours, theirs = asyncio.run(_measure(top))
    finally:
        shutil.rmtree(top)
    targets = {"QEMU microvm": 1 / 3, "the bound": 1.0}
    peers = {"QEMU microvm": theirs, "the bound": [BOUND_MS] * len(ours)}
    row = Row("request to first byte", ours, peers, "ms", "lower", targets)
    return report("Start of a kvm machine", [row])


async def _measure(top: Path) -> tuple[list[float], list[float]]:
    paths = Paths(top / "r", top / "s", top / "c")
    for directory in (paths.run, paths.state):
        directory.mkdir(mode=0o755)
    yard = KvmYard(paths)
    try:
        await yard.engine.prepare()
        await _ours(yard)  # the zygote's first fork
        _qemu(top)
        rounds = [(await _ours(yard), _qemu(top)) for _ in range(ROUNDS)]
    finally:
        await yard.close()
    return [ours for ours, _ in rounds], [theirs for _, theirs in rounds]


async def _ours(yard: KvmYard) -> float:
    machine = yard.machine("first", memory="64MiB")
    path = machine.paths.device_socket("serial")

    def plan(group: Cgroup) -> LaunchPlan:
        made = launch_plan(machine, group, Path(machine.kernel.path))
        return replace(made, config={**made.config, "serial": str(path)})

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        os.chown(path, machine.uid, machine.gid)
        listener.listen()
        listener.setblocking(False)
        started = time.perf_counter()
        launched = asyncio.create_task(
            yard.engine.jails.launch(machine, Limits(memory=host_memory(machine.spec)), plan)
        )
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(listener)
        with connection:
            connection.setblocking(False)
            await loop.sock_recv(connection, 1)
            took = (time.perf_counter() - started) * 1000
            await yard.engine.kill(machine, await launched)
    await yard.engine.cleanup(machine)
    return took


def _qemu(top: Path) -> float:
    path = top / "qemu.sock"
    command = ["qemu-system-x86_64", "-M", QEMU, "-cpu", QEMU_CPU, "-m", "64", "-nodefaults"]
    command += ["-no-user-config", "-display", "none"]
    command += ["-chardev", f"socket,id=serial,path={path}", "-serial", "chardev:serial"]
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen()
        started = time.perf_counter()
        process = subprocess.Popen([*command, "-kernel", str(build("first"))])
        connection, _ = listener.accept()
        with connection:
            said = connection.recv(1)
            took = (time.perf_counter() - started) * 1000
        process.kill()
        process.wait()
    if not said:
        raise RuntimeError(f"QEMU hung up before its guest's first byte, status {process.returncode}")
    return took


if __name__ == "__main__":
    main()
