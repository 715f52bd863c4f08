"""Boot: from the request to the first line of user space (BusyBox), and to multi-user (Debian with systemd).

The peer of the Debian figure is Debian's own User-mode Linux kernel with its initial RAM disk, the disk an
overlay served by qemu-storage-daemon. On a CPU with AMX that kernel cannot start a program at all; there
the peer runs with a preloaded `ptrace` that hands over the whole register set (xstate.c).
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benches._table import Row, report
from benches.guest._nagaya import MARKER, console_log, own_nagaya, wait_for_output
from nagaya.errors import UnavailableError
from nagaya.sdk import Client

ROUNDS = 5
MULTI_USER = b"multi-user.target"  # in systemd's status line "Reached target ..."
STATUS = "systemd.show_status=1"
WHOLE = 200.0  # ms, the promise of the BusyBox figure


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    with own_nagaya() as client:
        busybox = [_ours(client, "busybox", "128MiB", MARKER) for _ in range(ROUNDS + 4)]
        ours, peer = [], []
        for _ in range(ROUNDS):
            ours.append(_ours(client, "debian", "512MiB", MULTI_USER))
            peer.append(_debian_kernel(client))
    bound = {"the bound": [WHOLE] * len(busybox)}
    rows = [
        Row("BusyBox to its first line", busybox, bound, "ms", "lower", {"the bound": 1.0}),
        Row(
            "Debian to multi-user",
            ours,
            {"Debian's kernel + q-s-d": peer},
            "ms",
            "lower",
            {"Debian's kernel + q-s-d": 0.9},
        ),
    ]
    return report("Boot, from the request", rows)


def _ours(client: Client, image: str, memory: str, text: bytes) -> float:
    spec = {"name": "boot", "memory": memory, "disks": [{"image": image}], "boot": {"cmdline": STATUS}}
    machine = client.machines.create(spec)
    began = time.monotonic()
    machine.start()
    seen = wait_for_output(console_log(client, machine), text)
    machine.delete(force=True)
    return (seen - began) * 1e3


def _debian_kernel(client: Client) -> float:
    kernel = next(kernel for kernel in client.kernels.list() if kernel.name == "uml-debian")
    initrd = next(iter(sorted(client.paths.kernels.glob("uml-debian/initrd*"))))
    base = next(image for image in client.images.list() if image.name == "debian")
    with tempfile.TemporaryDirectory(prefix="ngb", dir="/dev/shm") as memory:
        top = Path(memory)
        blob = client.paths.images / f"{base.digest}.raw"
        overlay = client.paths.state / "peer.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", blob, "-F", "raw", overlay], check=True
        )
        began = time.monotonic()
        words = ["taskset", "-c", "1", kernel.path, "mem=512M", f"initrd={initrd}", f"uml_dir={memory}/"]
        words += [
            "con=none",
            "con0=null,fd:1",
            "ssl=none",
            "quiet",
            "console=tty0",
            "root=/dev/vda",
            "rw",
            STATUS,
        ]
        words += [f"virtio_uml.device={top / 'disk.sock'}:2"]
        environment = {"TMPDIR": memory, "PATH": os.environ["PATH"], **_whole_xstate(top)}
        try:
            with _storage_daemon(overlay, top / "disk.sock"), _group(words, environment, top / "console"):
                return (wait_for_output(top / "console", MULTI_USER, 120) - began) * 1e3
        finally:
            overlay.unlink()


@contextmanager
def _storage_daemon(overlay: Path, socket: Path) -> Iterator[None]:
    words = ["qemu-storage-daemon", "--object", "iothread,id=io"]
    words += ["--blockdev", f"driver=file,node-name=file,filename={overlay},aio=io_uring,cache.direct=on"]
    words += ["--blockdev", "driver=qcow2,node-name=disk,file=file,discard=unmap"]
    words += [
        "--export",
        f"type=vhost-user-blk,id=export,node-name=disk,writable=on,iothread=io,addr.type=unix,addr.path={socket}",
    ]
    with subprocess.Popen(words) as process:
        try:
            deadline = time.monotonic() + 10
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise UnavailableError("qemu-storage-daemon did not start")
                time.sleep(0.001)
            yield
        finally:
            process.kill()  # asked politely, it may wait for its client for ever


@contextmanager
def _group(words: list[str], environment: dict[str, str], output: Path) -> Iterator[None]:
    with (
        output.open("wb") as console,
        subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _whole_xstate(directory: Path) -> dict[str, str]:
    if " amx_tile" not in Path("/proc/cpuinfo").read_text():
        return {}
    library = directory / "xstate.so"
    source = Path(__file__).with_name("xstate.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library)}


if __name__ == "__main__":
    main()
