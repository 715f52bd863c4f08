"""Machines of the kvm engine without daemon and plane: no devices, their console is the engine's log."""

from __future__ import annotations

import os
import signal
from typing import Any

from nagaya.engines.engine import Machine, ProcessId
from nagaya.engines.kvm import KvmEngine
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.resources.cgroups import remove_base
from nagaya.spec import Boot, MachineSpec
from nagaya.testing.payload import build
from nagaya.testing.yard import wait_until


class KvmYard:
    """One Nagaya's worth of them; needs root. `close` it."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.engine = KvmEngine(paths)
        self.machines: list[Machine] = []

    def machine(self, payload: str = "acts", **spec: Any) -> Machine:
        """One with directories as the daemon makes them; by default its guest says READY and idles."""
        number = len(self.machines)
        uid = 61000 + os.getpid() % 1000 * 4 + number
        fields = {"name": f"m{number}", "memory": "32MiB", "boot": Boot(cmdline="do=0"), **spec}
        one = MachineSpec(engine="kvm", **fields)
        kernel = Kernel("guest", str(build(payload)))
        machine = Machine(f"{number:012x}", one, self.paths.machine(f"{number:012x}"), uid, uid, kernel)
        machine.paths.jail.mkdir(parents=True, mode=0o750)
        machine.paths.state.mkdir(parents=True, mode=0o700)
        os.chown(machine.paths.jail, 0, uid)
        self.machines.append(machine)
        return machine

    async def start(self, machine: Machine) -> ProcessId:
        """Start it and wait until its guest runs."""
        process = await self.engine.start(machine)
        log = machine.paths.engine_log
        await wait_until(lambda: "READY" in log.read_text())
        return process

    async def close(self) -> None:
        """Nothing of it is left: machines, control groups, zygote."""
        for machine in self.machines:
            await self.engine.cleanup(machine)
        zygote = await self.engine.prepare()
        os.kill(zygote.pid, signal.SIGTERM)
        await wait_until(lambda: not self.paths.zygote_socket.exists())
        remove_base(zygote.base)
