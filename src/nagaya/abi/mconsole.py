"""User-mode Linux's management console: datagrams on a unix socket (arch/um/drivers/mconsole.h)."""

from __future__ import annotations

import ctypes

MCONSOLE_MAGIC = 0xCAFEBABE
MCONSOLE_VERSION = 2
MCONSOLE_MAX_DATA = 512


class MconsoleRequest(ctypes.Structure):
    """struct mconsole_request. A command's length must be below MCONSOLE_MAX_DATA."""

    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("len", ctypes.c_uint32),
        ("data", ctypes.c_char * MCONSOLE_MAX_DATA),
    )


class MconsoleReply(ctypes.Structure):
    """struct mconsole_reply. `len` counts the final NUL; `more` says that another datagram follows."""

    _fields_ = (
        ("err", ctypes.c_uint32),
        ("more", ctypes.c_uint32),
        ("len", ctypes.c_uint32),
        ("data", ctypes.c_char * MCONSOLE_MAX_DATA),
    )


class MconsoleNotify(ctypes.Structure):
    """struct mconsole_notify: what the guest's kernel sends to the socket given as `mconsole=notify:PATH`."""

    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("type", ctypes.c_int),
        ("len", ctypes.c_uint32),
        ("data", ctypes.c_char * MCONSOLE_MAX_DATA),
    )
