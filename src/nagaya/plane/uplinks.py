"""What is behind an uplink: opened and kept by the holder, so a worker that dies takes nothing with it."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from nagaya.abi import tun
from nagaya.closing import Closing
from nagaya.errors import ConflictError, NagayaError, NotFoundError, ResourceError
from nagaya.plane.config import UplinkDevice

_HEADER_BYTES = 12  # struct virtio_net_hdr_mrg_rxbuf
_OFFLOADS = tun.TUN_F_CSUM | tun.TUN_F_TSO4 | tun.TUN_F_TSO6 | tun.TUN_F_TSO_ECN
_USO = tun.TUN_F_USO4 | tun.TUN_F_USO6


class OpenUplink(Closing):
    """The open tap or socket of `device`; `uso` is whether the tap takes UDP that is to be cut.

    A tap or macvtap must exist already, in this process's network namespace. Raises a `NagayaError` that
    names what is missing.
    """

    def __init__(self, device: UplinkDevice) -> None:
        self.uso = False
        if device.kind == "stream":
            self.fd = _connect(device)
            return
        self.fd = _open_tap(device)
        try:
            self._set_up(device)
        except OSError as error:
            self.close()
            raise _refused(device, error) from error

    def _set_up(self, device: UplinkDevice) -> None:
        tun.attach(self.fd, device.interface)
        tun.set_header_size(self.fd, _HEADER_BYTES)
        try:
            tun.set_offloads(self.fd, _OFFLOADS | _USO)
            self.uso = True
        except OSError:  # Linux before 6.2 does not know USO
            tun.set_offloads(self.fd, _OFFLOADS)

    def close(self) -> None:
        """Close it. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open_tap(device: UplinkDevice) -> int:
    try:
        index = socket.if_nametoindex(device.interface)  # TUNSETIFF would make one that does not exist
    except OSError as error:
        raise NotFoundError(
            f"interface {device.interface} of uplink {device.id} does not exist", interface=device.interface
        ) from error
    path = Path("/dev/net/tun" if device.kind == "tap" else f"/dev/tap{index}")
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be opened for uplink {device.id}: {error.strerror}",
            hint="taps need the kernel module tun and its device; `nagaya doctor` tells more",
            path=str(path),
        ) from error


def _connect(device: UplinkDevice) -> int:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(5)
        stream.connect(device.path)
        stream.setblocking(False)
    except OSError as error:
        stream.close()
        raise ResourceError(
            f"nobody answers at {device.path} for uplink {device.id}: {error.strerror or error}",
            path=device.path,
        ) from error
    return stream.detach()


def _refused(device: UplinkDevice, error: OSError) -> NagayaError:
    if error.errno == errno.EBUSY:
        return ConflictError(
            f"interface {device.interface} of uplink {device.id} is in use by another process",
            interface=device.interface,
        )
    return ResourceError(
        f"interface {device.interface} of uplink {device.id} cannot be used: {error.strerror}",
        hint="it must be a tap that was made without multi_queue",
        interface=device.interface,
        errno=error.errno,
    )
