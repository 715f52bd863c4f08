"""A guest kernel in the store, as images, engines and the daemon pass it around."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kernel:
    """A guest kernel in the store."""

    name: str
    path: str
    origin: str = ""  # "built from linux-source-6.1 6.1.176-1", "package user-mode-linux 6.1um4"
    builtin_virtio: bool = True  # False: virtio drivers are modules, and `initrd` loads them
    initrd: str = ""  # absolute path of the initial RAM disk that this kernel needs; empty: none
    cmdline: str = ""  # what this kernel wants on its command line, before anything else: "lpj=33931264"
