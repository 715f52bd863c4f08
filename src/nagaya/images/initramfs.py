"""Small initial RAM disks: to try a new kernel, and for Debian's kernel, whose drivers are modules."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from nagaya.errors import UnavailableError
from nagaya.images.tools import find_tool

_DRIVERS = ("virtio_blk", "virtio_console", "virtio_net", "virtio_balloon", "vmw_vsock_virtio_transport")
_LOAD_AND_SWITCH = """#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
{modules}
root=/dev/vda mode=rw init=/sbin/init
for word in $(busybox cat /proc/cmdline); do
    case $word in root=*) root=${{word#*=}} ;; init=*) init=${{word#*=}} ;; ro) mode=ro ;; esac
done
tries=0
until [ -b "$root" ] || [ $((tries += 1)) -gt 500 ]; do busybox sleep 0.01; done
busybox mount -o "$mode" "$root" /root || busybox poweroff -f
busybox umount /proc
busybox mount -o move /dev /root/dev
exec busybox switch_root /root "$init"
"""
BOOT_MARKER = "nagaya: init started"
_TRY = f"#!/bin/busybox sh\necho '{BOOT_MARKER}'\nbusybox poweroff -f\n"


def write_boot_test(target: Path) -> None:
    """An initial RAM disk that prints `BOOT_MARKER` and switches the machine off."""
    _write(target, _TRY, ())


def write_module_loader(target: Path, modules: Path) -> None:
    """A RAM disk that loads the virtio drivers from `modules` (a /lib/modules/VERSION) and boots `root=`."""
    files = _with_dependencies(modules, _DRIVERS)
    loads = "\n".join(f"busybox insmod /modules/{file.name}" for file in files)
    _write(target, _LOAD_AND_SWITCH.format(modules=loads), files)


def _write(target: Path, init: str, modules: Iterable[Path]) -> None:
    busybox = find_tool("busybox")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".initramfs-") as temporary:
        root = Path(temporary) / "root"
        for directory in ("bin", "dev", "proc", "root", "modules"):
            (root / directory).mkdir(parents=True)
        shutil.copyfile(busybox.resolve(), root / "bin/busybox")
        (root / "bin/busybox").chmod(0o755)
        (root / "init").write_text(init)
        (root / "init").chmod(0o755)
        for module in modules:
            shutil.copyfile(module, root / "modules" / module.name)
        names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
        archive = Path(temporary) / "archive"
        with archive.open("wb") as output:
            subprocess.run(
                [busybox, "cpio", "-o", "-H", "newc"],
                input=names.encode(),
                stdout=output,
                stderr=subprocess.DEVNULL,
                cwd=root,
                check=True,
            )
        archive.chmod(0o644)
        archive.replace(target)


def _with_dependencies(modules: Path, names: Iterable[str]) -> list[Path]:
    """Module files in the order in which they must be loaded."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, dependencies = line.partition(":")
        needs[file] = dependencies.split()
    by_name = {Path(file).stem.replace("-", "_"): file for file in needs}
    order: list[str] = []
    for name in names:
        if name not in by_name:
            raise UnavailableError(
                f"module {name} is not in {modules}", hint="apt-get install --reinstall user-mode-linux"
            )
        file = by_name[name]
        order += [item for item in (*reversed(needs[file]), file) if item not in order]
    return [modules / file for file in order]
