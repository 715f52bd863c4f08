"""The engine `kvm`: a machine is a process of our own VMM in a jail (docs/engines.md)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from nagaya.engines.check import Refusal, refuse
from nagaya.engines.engine import Exit, GuestState, Machine, ProcessId
from nagaya.engines.exits import classify_kvm, read_tail
from nagaya.engines.jailed import Jails
from nagaya.engines.launch import ZygoteInfo
from nagaya.engines.pidfd import alive
from nagaya.engines.plan import Bind, LaunchPlan
from nagaya.engines.qmp import ask, ask_and_see
from nagaya.engines.seccomp import kvm_filters
from nagaya.errors import MachineFailedError, NotFoundError, UnavailableError
from nagaya.kvm.config import DeviceConfig, DeviceKind, MachineConfig
from nagaya.kvm.system import DEVICE, Kvm
from nagaya.kvm.unpack import unpack
from nagaya.kvm.vm import MAX_VCPUS
from nagaya.paths import MachinePaths, Paths
from nagaya.resources.cgroups import Cgroup, Limits
from nagaya.resources.hotmemory import hot_memory
from nagaya.spec import MIB, EngineName, MachineSpec
from nagaya.units import human_size

MEMORY_MIN = 16 * MIB  # a kernel of 5 MiB, unpacked, its initial RAM disk and its tables
# What a machine takes of the host beyond guest memory: the VMM's own pages, and KVM's tables for 4 KiB pages,
# 8 bytes a page twice over.
OVERHEAD = 48 * MIB
OVERHEAD_SHARE = 128
LOG_LIMIT = 256 * 1024
UNPLUG_S = 20.0  # that a guest has to let go of a disk: it writes back what it holds
THREADS = 8  # beyond those of the vCPUs
NOFILE = 4096  # a disk takes 3 descriptors and 3 a queue, and has 64 queues at most
SERIAL = "serial"  # its socket is beside the devices'
# What a kernel needs where KVM emulates its ring 0: the emulator knows no POPCNT, CMPXCHG16B, STAC, XSAVE.
_EMULATED_MODEL = "x86-64-v1"
_EMULATED_CMDLINE = ("clearcpuid=308,151", "noxsave", "mitigations=off")
_KERNEL = "/kernel"
_INITRD = "/initrd"
_KINDS: dict[str, DeviceKind] = {
    "disk": "blk",
    "console": "console",
    "rng": "rng",
    "balloon": "balloon",
    "mem": "mem",
    "net": "net",
}
_IDS = uuid.UUID("5f4b7c1e-9d0a-4f5e-8a53-6e61676179a1")  # namespace of our machines' UUIDs


class KvmEngine:
    """Runs machines in our VMM, on any host with /dev/kvm. One instance a daemon."""

    name: EngineName = "kvm"
    serial_console = True

    def __init__(
        self, paths: Paths, jails: Jails | None = None, fast: Callable[[], bool] = lambda: True
    ) -> None:
        """`jails`: what engines of one daemon share. `fast`: whether the CPU runs guest kernels itself."""
        self.jails = jails or Jails(paths)
        self._fast = fast
        self._unpacked = paths.cache / "unpacked"

    def check(self, spec: MachineSpec) -> None:
        """Raise `UnsupportedError` naming the field, or what KVM lacks on this host."""
        self.jails.cpus.check(spec)
        with Kvm() as kvm:
            most = min(kvm.max_vcpus, MAX_VCPUS)
        size = spec.memory.size
        refuse(
            spec,
            self.name,
            (
                (spec.cpus > most, "cpus", spec.cpus, f"KVM on this host has {most} at most"),
                (size < MEMORY_MIN, "memory.size", human_size(size), f"at least {human_size(MEMORY_MIN)}"),
                (size % 4096 != 0, "memory.size", f"{size} bytes", "a multiple of 4 KiB"),
                *_hot_refusals(spec),
            ),
        )

    async def prepare(self) -> ZygoteInfo:
        """Make sure that the zygote runs; `start` does it too. Worth calling before the first start."""
        return await self.jails.prepare()

    async def start(self, machine: Machine) -> ProcessId:
        """Launch the jailed process; its vhost-user sockets listen already. Returns when its vCPUs run."""
        kernel = await asyncio.to_thread(unpack, Path(machine.kernel.path), self._unpacked)
        fast = await asyncio.to_thread(self._fast)
        limits = Limits(
            memory=host_memory(machine.spec),
            cpu_weight=machine.spec.cpu.weight,
            cpu_limit=machine.spec.cpu.limit,
            pids=machine.spec.cpus + THREADS,
            cpus=self.jails.cpus.several(machine),
        )
        return await self.jails.launch(
            machine, limits, lambda group: launch_plan(machine, group, kernel, fast=fast)
        )

    async def request_shutdown(self, machine: Machine, process: ProcessId) -> None:
        """Press the power button. Returns at once; the guest decides."""
        if alive(process):
            await self._ask(machine, "system_powerdown")

    async def kill(self, machine: Machine, process: ProcessId) -> None:
        """End the machine now, paused or not. Idempotent; returns when it is gone."""
        await self.jails.kill(machine, process)

    async def pause(self, machine: Machine, process: ProcessId) -> None:
        """Take the vCPUs out of the guest, whose clock runs on and says that it was stopped. Idempotent."""
        await self._change(machine, process, "stop", "paused")

    async def resume(self, machine: Machine, process: ProcessId) -> None:
        """Let them run again. Idempotent."""
        await self._change(machine, process, "cont", "resumed")

    async def hold(self, machine: Machine, memory: int) -> None:
        """Let it have so much guest memory."""
        await self.jails.hold(machine, host_memory(machine.spec) - machine.spec.memory.size + memory)

    async def adjust(self, machine: Machine) -> None:
        """Hold a running machine to the cpu knobs that its spec has now."""
        await self.jails.adjust(machine, self.jails.cpus.several(machine))

    async def plug(self, machine: Machine, process: ProcessId, device: str) -> None:
        """Put the vhost-user disk or NIC `device` into one of the machine's four slots."""
        address = {"type": "unix", "data": {"path": str(machine.paths.device_socket(device))}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        await self._ask(machine, "chardev-add", {"id": device, "backend": backend})
        try:
            if _kind(device) == "net":
                await self._ask(
                    machine, "netdev_add", {"type": "vhost-user", "id": device, "chardev": device}
                )
                card = {"driver": "virtio-net-pci", "id": device, "netdev": device}
            else:
                card = {"driver": "vhost-user-blk-pci", "id": device, "chardev": device}
            await self._ask(machine, "device_add", card)
        except BaseException:
            await self._forget_backend(machine, device)
            raise

    async def unplug(self, machine: Machine, process: ProcessId, device: str) -> None:
        """Ask the guest to let go of it, and wait for that; of one that was half plugged, undo the half."""
        monitor = machine.paths.qmp_socket
        with contextlib.suppress(NotFoundError):
            await ask_and_see(machine.spec.name, monitor, "device_del", {"id": device}, UNPLUG_S)
        with contextlib.suppress(UnavailableError):  # the device has gone, and now perhaps the machine
            await self._forget_backend(machine, device)

    async def state(self, machine: Machine, process: ProcessId) -> GuestState:
        """What the machine does now."""
        if not alive(process):
            return GuestState.GONE
        status = (await self._ask(machine, "query-status"))["status"]
        return GuestState.PAUSED if status == "paused" else GuestState.RUNNING

    async def wait(self, machine: Machine, process: ProcessId) -> Exit:
        """Wait until the process has ended and say why. Works for an adopted process too."""
        self.jails.adopt(machine, process)
        ended = await self.jails.wait(machine, process)
        return classify_kvm(
            ended.status,
            ended.log,
            console=read_tail(machine.paths.console_log),
            killed=ended.killed,
            oom_kills=ended.oom_kills,
        )

    async def cleanup(self, machine: Machine) -> None:
        """End what is left of the machine, known or not, and remove what `start` made. Idempotent."""
        await self.jails.cleanup(machine)
        with contextlib.suppress(FileNotFoundError):
            machine.paths.qmp_socket.unlink()

    async def _forget_backend(self, machine: Machine, device: str) -> None:
        for command in ("netdev_del", "chardev-remove"):
            with contextlib.suppress(NotFoundError):
                await self._ask(machine, command, {"id": device})

    async def _change(self, machine: Machine, process: ProcessId, command: str, done: str) -> None:
        if not alive(process):
            raise MachineFailedError(f"{machine.spec.name} cannot be {done}: its process has ended")
        await self._ask(machine, command)

    async def _ask(
        self, machine: Machine, command: str, arguments: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        answer: dict[str, object] = await ask(machine.spec.name, machine.paths.qmp_socket, command, arguments)
        return answer


def host_memory(spec: MachineSpec) -> int:
    """Bytes of host memory that the machine's process may use, guest memory included."""
    most = spec.memory.max or spec.memory.size  # KVM's tables are for all that the guest may ever have
    return spec.memory.size + most // OVERHEAD_SHARE + OVERHEAD


def launch_plan(machine: Machine, group: Cgroup, kernel: Path, *, fast: bool = True) -> LaunchPlan:
    """The whole plan; `kernel` is unpacked already. `fast`: the CPU runs guest kernels itself."""
    paths = machine.paths
    rooted = os.geteuid() == 0
    return LaunchPlan(
        machine=machine.id,
        call="kvm",
        config=machine_config(machine, fast=fast).to_json(),
        opens={"kvm": DEVICE},
        reads={"maps": "/proc/self/maps"},
        listens={"qmp": str(paths.qmp_socket)},
        uid=machine.uid if rooted else 0,  # not root: the zygote's user namespace knows only us, as 0
        gid=machine.gid if rooted else 0,
        hostname=machine.spec.name,
        exit_file=str(paths.exit_file),
        log=str(paths.engine_log),
        log_limit=LOG_LIMIT,
        binds=_binds(machine, kernel),
        cgroup=group.v2,
        tasks=group.tasks_files,
        rlimits={"core": 0, "nofile": NOFILE, "memlock": 0, "msgqueue": 0},
        seccomp=kvm_filters(),
    )


def machine_config(machine: Machine, *, fast: bool = True) -> MachineConfig:
    """The machine as its process is told."""
    spec = machine.spec
    hot = hot_memory(spec.memory)
    return MachineConfig(
        name=spec.name,
        uuid=str(uuid.uuid5(_IDS, machine.id)),
        memory=hot.boot if hot else spec.memory.size,
        hot_memory=hot.size if hot else 0,
        cpus=spec.cpus,
        cpu_model=_EMULATED_MODEL if spec.cpu_model == "host" and not fast else spec.cpu_model,
        kernel=_KERNEL,
        initrd=_INITRD if _initrd(machine) else "",
        cmdline=" ".join((*(() if fast else _EMULATED_CMDLINE), *_command_line(machine))),
        devices=tuple(_device(machine.paths, name) for name in machine.devices),
        serial=str(machine.paths.device_socket(SERIAL)) if "console" in machine.devices else "",
    )


def _hot_refusals(spec: MachineSpec) -> tuple[Refusal, ...]:
    hot = hot_memory(spec.memory)
    if hot is None:
        return ()
    blocks = f"memory.size and whole blocks of {human_size(hot.block)}"
    least = f"at least {human_size(MEMORY_MIN + hot.block)}"
    shown = human_size(spec.memory.max or 0)
    return (
        (hot.requested % hot.block != 0 or hot.size % hot.block != 0, "memory.max", shown, blocks),
        (hot.boot < MEMORY_MIN, "memory.max", shown, least),
    )


def _device(paths: MachinePaths, name: str) -> DeviceConfig:
    return DeviceConfig(name, _kind(name), str(paths.device_socket(name)))


def _kind(device: str) -> DeviceKind:
    return _KINDS[device.rstrip("0123456789")]


def _command_line(machine: Machine) -> tuple[str, ...]:
    """The kernel's arguments, in the order in which later ones win."""
    spec = machine.spec
    root = ("root=/dev/vda", "ro" if spec.disks[0].read_only else "rw") if spec.disks else ()
    return (
        *machine.kernel.cmdline.split(),
        *root,
        "console=ttyS0",
        "quiet",
        f"nagaya.hostname={spec.name}",
        *spec.boot.cmdline.split(),
    )


def _initrd(machine: Machine) -> str:
    return machine.spec.boot.initrd or machine.kernel.initrd


def _binds(machine: Machine, kernel: Path) -> tuple[Bind, ...]:
    jail = str(machine.paths.jail)
    binds = [Bind(jail, jail), Bind(str(kernel), _KERNEL)]
    initrd = _initrd(machine)
    if initrd:
        if not Path(initrd).is_file():
            raise UnavailableError(f"boot.initrd: there is no file {initrd}", field="boot.initrd")
        binds.append(Bind(initrd, _INITRD))
    return tuple(binds)
