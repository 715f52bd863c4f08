"""The process of one machine, once it is in its jail (docs/engines.md).

The main thread runs an event loop: monitor, serial stream, what backends say. Everything here is imported
before the jail closes, for in it there is no file to import from.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nagaya import __version__
from nagaya.errors import ConflictError, NagayaError
from nagaya.kvm.config import DeviceConfig, MachineConfig
from nagaya.kvm.ending import Ending, Reason
from nagaya.kvm.machine import Device, Machine
from nagaya.kvm.monitor import Monitor, VcpuInfo
from nagaya.kvm.pci_info import describe
from nagaya.kvm.serial_link import SerialLink
from nagaya.kvm.system import Kvm
from nagaya.qmp import QmpServer

if TYPE_CHECKING:
    from nagaya._core import HeapImage

_LISTEN_BACKLOG = 16
_SETTLED_S = 1.0  # from the guest's start to when little of what Python has written to is in use
_FAREWELL_S = 1.0  # for clients of the monitor to hear of the end
_SHUTDOWN_CAUSES = {
    Reason.POWEROFF: "guest-shutdown",
    Reason.RESET: "guest-reset",
    Reason.PANIC: "guest-panic",
    Reason.QUIT: "host-qmp-quit",
    Reason.FAULT: "host-error",
    Reason.FAILED: "host-error",
}
_ASKED = Ending(Reason.RESET, "the monitor asked for a reset")
_STATES = {
    Reason.PANIC: "guest-panicked",
    Reason.FAULT: "internal-error",
    Reason.FAILED: "internal-error",
}


def main(
    body: Mapping[str, Any],
    fds: Mapping[str, int],
    ready: Callable[[], None],
    image: HeapImage | None = None,
) -> None:
    """Be the machine that `body` describes (`MachineConfig`). Does not return.

    `fds` may have "kvm", the open device, and "qmp", a listening socket; without them they are opened and
    made. `ready` is called when the guest runs. `image` is of the process that this was forked from; it is of
    use with "maps", this process' own /proc/PID/maps. Raises `NagayaError` if the guest does not come to run.
    """
    config = MachineConfig.from_json(body)
    with asyncio.Runner() as runner:
        process = runner.run(_set_up(config, fds))
        ready()
        gc.enable()  # off in the zygote, and of no use while a machine is assembled
        try:
            ending = runner.run(process.run(image, fds.get("maps")))
        except BaseException as error:  # whatever it was: the machine is over, and its end has a cause
            ending = Ending(Reason.FAILED, f"internal error: {type(error).__name__}: {error}")
            _say(traceback.format_exc())
        _say(f"\n{ending.to_line()}\n")  # a line of its own, also behind a guest that shares standard output
        os._exit(ending.status)  # the kernel takes everything back at once


def _say(text: str) -> None:
    """To the log, whose reader is the zygote, if it lives."""
    with contextlib.suppress(OSError):
        os.write(1, text.encode(errors="replace"))


async def _set_up(config: MachineConfig, fds: Mapping[str, int]) -> Process:
    process = Process(config, Kvm(fds.get("kvm", -1)), _listener(config, fds))
    process.power_on()
    return process


class Process:
    """One machine and all that leads out of it. Implements what `Machine` and `Monitor` ask for."""

    def __init__(self, config: MachineConfig, system: Kvm, listener: socket.socket | None) -> None:
        """`listener`: where the monitor's clients come in."""
        self.name = config.name
        self.uuid = config.uuid
        self._config = config
        self._system = system
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[Ending] = self._loop.create_future()
        self._server = QmpServer(__version__)
        self._paused = False
        Monitor(self, self._server)

    def power_on(self) -> None:
        """Assemble the machine and let its guest run. Raises `NagayaError`."""
        self._machine = machine = Machine(self._config, self._system, self)
        try:
            self._serial = SerialLink(self._config.serial, machine.lock)
            self._serial.attach(machine.serial)
            for device in machine.devices.values():
                self._watch(device)
            machine.start()
        except BaseException:
            machine.close()
            raise

    async def run(self, image: HeapImage | None = None, maps: int | None = None) -> Ending:
        """Serve until the end, and say why; soon, share with `image` again what is as it was there."""
        served = asyncio.create_task(self._serve())
        if image is not None and maps is not None:
            self._loop.call_later(_SETTLED_S, self._settle, image, maps)
        try:
            while True:
                ending = await self._over
                if ending.reason is not Reason.RESET or self._config.reboot == "exit":
                    break
                self._reboot(ending)
        finally:
            self._serial.close()
        reason = _SHUTDOWN_CAUSES[ending.reason]
        self._server.emit("SHUTDOWN", {"guest": reason.startswith("guest-"), "reason": reason})
        served.cancel()
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            await asyncio.wait_for(served, _FAREWELL_S)
        return ending

    async def _serve(self) -> None:
        if self._listener is not None:
            await self._server.serve(self._listener)

    def _reboot(self, ending: Ending) -> None:
        """Power off and on: nothing is left of the old guest but its configuration."""
        guest = ending is not _ASKED
        reason = "guest-reset" if guest else "host-qmp-system-reset"
        self._server.emit("RESET", {"guest": guest, "reason": reason})
        for device in self._machine.devices.values():
            self._loop.remove_reader(device.backend.fd)
        self._serial.close()
        self._machine.close()
        self._over = self._loop.create_future()
        self._paused = False
        self.power_on()

    def _settle(self, image: HeapImage, maps: int) -> None:
        """Most pages that Python has written to since the fork are as they were, and of no use now.

        The guest stands still for some milliseconds: a system call of its vCPUs could write to an object that
        is just being compared.
        """
        if self._machine.ending is not None:
            return  # with all descriptors
        self._machine.pause()
        try:
            with contextlib.suppress(OSError):  # then it takes more memory
                image.restore(maps)
        finally:
            os.close(maps)
            if not self._paused:
                self._machine.resume()

    def _watch(self, device: Device) -> None:
        self._loop.add_reader(device.backend.fd, lambda: self._machine.attend(device))

    # What the machine tells (`Outside`), from any thread

    def serial_output(self, content: bytes) -> int:
        """Bytes of the first serial port."""
        return self._serial.output(content)

    def serial_room(self) -> None:
        """The first serial port takes input again."""
        self._serial.room()

    def ended(self, ending: Ending) -> None:
        """The guest cannot or will not go on."""
        self._soon(self._end, ending, self._machine)

    def crash_loaded(self) -> None:
        """The guest's kernel goes on in its crash kernel."""
        self._soon(self._server.emit, "GUEST_CRASHLOADED", {"action": "run"})

    def ejected(self, device_id: str) -> None:
        """The guest has let go of a device."""
        self._soon(self._forget, device_id)

    def _soon(self, call: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the machine
            self._loop.call_soon_threadsafe(call, *arguments)

    def _end(self, ending: Ending, machine: Machine) -> None:
        if machine is not self._machine:
            return  # one that is gone, after a reset
        if ending.reason is Reason.PANIC:
            self._server.emit("GUEST_PANICKED", {"action": "poweroff"})
        if not self._over.done():
            self._over.set_result(ending)

    def _forget(self, device_id: str) -> None:
        device = self._machine.devices.get(device_id)
        if device is not None:
            self._loop.remove_reader(device.backend.fd)
            self._machine.remove(device_id)
            self._server.emit(
                "DEVICE_DELETED", {"device": device_id, "path": f"/machine/peripheral/{device_id}"}
            )

    # What the monitor asks for (`Controlled`)

    @property
    def status(self) -> str:
        """RunState of the QMP schema."""
        ending = self._machine.ending
        if ending is None:
            return "paused" if self._paused else "running"
        return _STATES.get(ending.reason, "shutdown")

    def pause(self) -> bool:
        """Stop all vCPUs. False if they stood still already."""
        if self._paused or self._machine.ending is not None:
            return False
        self._machine.pause()
        self._paused = True
        return True

    def resume(self) -> bool:
        """Let them run. False if they did."""
        if self._machine.ending is not None:
            raise ConflictError(f"{self.name} has ended, it cannot run on")
        if not self._paused:
            return False
        self._paused = False
        self._machine.resume()
        return True

    def power_down(self) -> None:
        """Press the power button."""
        self._machine.power_down()

    def reset(self) -> None:
        """Start the guest anew soon, or end with `Reason.RESET`."""
        self._end(_ASKED, self._machine)

    def quit(self) -> None:
        """End."""
        self._end(Ending(Reason.QUIT), self._machine)

    def vcpus(self) -> Sequence[VcpuInfo]:
        """All of them, with their threads."""
        return [VcpuInfo(index, tid) for index, tid in sorted(self._machine.vcpus.thread_ids.items())]

    def pci(self) -> list[dict[str, object]]:
        """Elements of PciInfo."""
        with self._machine.lock:
            return describe(self._machine)

    def plug(self, device: DeviceConfig) -> None:
        """Add a device while the guest runs."""
        self._machine.plug(device)
        self._watch(self._machine.devices[device.id])

    def unplug(self, device_id: str) -> None:
        """Ask the guest to let go of a device."""
        self._machine.unplug(device_id)


def _listener(config: MachineConfig, fds: Mapping[str, int]) -> socket.socket | None:
    if "qmp" in fds:
        listener = socket.socket(fileno=fds["qmp"])
        listener.setblocking(False)
        return listener
    if not config.qmp:
        return None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        Path(config.qmp).unlink(missing_ok=True)
        listener.bind(config.qmp)
    except OSError as error:
        listener.close()
        raise NagayaError(f"the monitor cannot listen on {config.qmp}: {error.strerror}") from error
    listener.listen(_LISTEN_BACKLOG)
    return listener
