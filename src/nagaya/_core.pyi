"""The contract of the Rust core (crates/python). `nagaya.plane` wraps it; nothing else imports it."""

from collections.abc import Sequence

__version__: str

class Plane:
    """The holder's Rust half: speaks vhost-user, owns the fds that outlive a worker, supervises the workers.

    Runs threads of its own; every method returns quickly and releases the GIL. Raises `ValueError` on a
    configuration that breaks the contract and `OSError` on a refusal of the kernel.
    """

    def __init__(self, worker_argv: Sequence[str]) -> None:
        """`worker_argv` starts a worker; the number of its control fd is appended as the last argument."""

    def device_add(self, config: str, fds: Sequence[int]) -> None:
        """Serve a device. `config` is JSON, one of

        `{"driver": "blk", "id", "worker", "queues": 1, "queue_size": 256, "read_only": false, "serial": "",
          "direct": true, "layers": [{"format": "raw" | "qcow2"}, ...]}`, fds `[listener, layer 0, layer 1, ...]`,
          layer 0 on top; only layer 0 is ever written;
        `{"driver": "console", "id", "worker", "ports": [{"name": "", "console": true},
          {"name": "org.qemu.guest_agent.0", "console": false}]}`, fds `[listener, port 0, port 1, ...]`, each
          port a connected SOCK_STREAM;
        `{"driver": "rng", "id", "worker"}`, fds `[listener]`.

        Devices with the same `worker` name share one worker process. The fds are duplicated, the caller keeps its own.
        Returns when the worker has opened a blk device's layers; raises `OSError` if it cannot.
        """

    def device_del(self, id: str) -> None:
        """Stop serving; waits for requests in flight. Raises `KeyError` if there is no such device."""

    def query(self) -> str:
        """JSON `{"devices": [{"id", "driver", "worker", "connected", "reads", "writes", "flushes", "discards",
        "read_bytes", "written_bytes", "errors", "inflight", "violations": {"kind": count}, "last_violation": str | null}],
        "workers": [{"name", "pid", "generation", "devices"}]}`."""

    def event_fd(self) -> int:
        """An eventfd that is readable while `take_events` has something."""

    def take_events(self) -> list[str]:
        """JSON events since the last call: `{"event": "DEVICE_CONNECTED" | "DEVICE_DISCONNECTED" |
        "DEVICE_VIOLATION" | "WORKER_EXITED" | "WORKER_STARTED", "data": {...}}`."""

    def close(self) -> None:
        """Stop all devices and workers and join all threads."""

def worker_main(control_fd: int) -> int:
    """The whole life of a worker process; returns its exit status when the holder closes the control fd."""

def qcow2_create(path: str, size: int, backing_path: str, backing_format: str) -> None:
    """Create an empty qcow2 of `size` bytes, 0600, O_EXCL, at `path`; with `backing_path` != "" an overlay of it."""

def seccomp_compile(policy: str) -> bytes:
    """Compile `{"default": "allow"|"errno:N"|"kill", "on_match": ..., "syscalls": ["read", ...]}` to a classic BPF
    program (array of `struct sock_filter`) for this architecture. Raises `ValueError` for an unknown name."""
