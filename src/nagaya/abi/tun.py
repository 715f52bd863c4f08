"""Taps, the interfaces of the host whose other end is a file (linux/if_tun.h). Functions raise `OSError`."""

from __future__ import annotations

import fcntl
import os
import struct

IFNAMSIZ = 16

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
TUN_F_TSO_ECN = 0x08
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40


def open_tap(name: str, flags: int = IFF_NO_PI | IFF_VNET_HDR) -> int:
    """A descriptor of the tap `name`, which is made if there is none; it goes away with the descriptor.

    Frames begin with a virtio-net header unless `flags` lacks IFF_VNET_HDR. One descriptor at a time.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        attach(fd, name, flags)
    except OSError:
        os.close(fd)
        raise
    return fd


def attach(fd: int, name: str, flags: int = IFF_NO_PI | IFF_VNET_HDR) -> None:
    """Make an open tun device, or the device of the macvtap `name`, the other end of the interface `name`."""
    fcntl.ioctl(fd, TUNSETIFF, struct.pack(f"{IFNAMSIZ}sH22x", name.encode(), IFF_TAP | flags))


def set_header_size(fd: int, size: int) -> None:
    """Frames begin with a virtio-net header of `size` bytes, 10 or 12."""
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", size))


def set_offloads(fd: int, offloads: int) -> None:
    """What the owner takes on itself, TUN_F_*: the kernel sends it frames for which that is left."""
    fcntl.ioctl(fd, TUNSETOFFLOAD, offloads)


def persist(fd: int) -> None:
    """The tap of this descriptor outlives it."""
    fcntl.ioctl(fd, TUNSETPERSIST, 1)
