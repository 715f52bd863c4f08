"""Taps, the interfaces of the host whose other end is a file (linux/if_tun.h). Functions raise `OSError`."""

from __future__ import annotations

import fcntl
import os
import struct

TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8

IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000

TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40

_IFNAMSIZ = 16


def open_tap(name: str, flags: int = IFF_NO_PI | IFF_VNET_HDR) -> int:
    """A descriptor of the tap `name`, which is made if there is none; it goes away with the descriptor.

    Frames begin with a virtio-net header unless `flags` lacks IFF_VNET_HDR. One descriptor at a time.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        request = struct.pack(f"{_IFNAMSIZ}sH22x", name.encode(), IFF_TAP | flags)
        fcntl.ioctl(fd, TUNSETIFF, request)
    except OSError:
        os.close(fd)
        raise
    return fd


def persist(fd: int) -> None:
    """The tap of this descriptor outlives it."""
    fcntl.ioctl(fd, TUNSETPERSIST, 1)
