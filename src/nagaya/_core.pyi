"""The contract of the Rust core (crates/python). `nagaya.plane` and `nagaya.kvm` wrap it."""

from collections.abc import Sequence

__version__: str

class Plane:
    """The holder's Rust half: speaks vhost-user, owns the fds that outlive a worker, supervises the workers.

    Runs threads of its own; every method returns quickly and releases the GIL. Raises `ValueError` on a
    configuration that breaks the contract and `OSError` on a refusal of the kernel.
    """

    def __init__(self, worker_argv: Sequence[str]) -> None:
        """`worker_argv` starts a worker; the number of its control fd, 0, is appended as the last argument."""

    def device_add(self, config: str, fds: Sequence[int]) -> None:
        """Serve a device. `config` is JSON, one of

        `{"driver": "blk", "id", "worker", "queues": 1, "queue_size": 256, "read_only": false, "serial": "",
          "direct": true, "layers": [{"format": "raw" | "qcow2"}, ...]}`, fds `[listener, layer 0, layer 1, ...]`,
          layer 0 on top; only layer 0 is ever written. A disk without a file has one layer and no fd for it:
          `{"format": "null" | "simulated", "model": ...}` with the fields of `nagaya.plane.config.Model`;
        `{"driver": "console", "id", "worker", "ports": [{"name": "", "console": true},
          {"name": "org.qemu.guest_agent.0", "console": false}]}`, fds `[listener, port 0, port 1, ...]`, each
          port a connected SOCK_STREAM;
        `{"driver": "rng", "id", "worker"}`, fds `[listener]`;
        `{"driver": "balloon", "id", "worker", "size": 0, "stats_ms": 0}`, fds `[listener]`: its guest is to give `size` bytes, and is
          asked for statistics every `stats_ms`, if that is not 0;
        `{"driver": "mem", "id", "worker", "start", "size", "requested": 0}`, fds `[listener]`: virtio-mem, whose region
          begins at guest address `start`; all are bytes, and multiples of the block size (2 MiB up to 128 GiB);
        `{"driver": "net", "id", "worker", "network", "mac", "mtu": 1500, "queues": 1, "queue_size": 256, "link": true,
          "rules": {...}}`, fds `[listener]`: a port of a network, all of whose devices share a worker; `rules` are those
          of docs/plane.md, "Networks";
        `{"driver": "uplink", "id", "worker", "network", "kind": "tap" | "stream", "uso": false}`, fds `[tap or socket]`,
          which do not block: a tap with virtio-net headers of 12 bytes (`uso`: it takes UDP that is to be cut), or a
          stream of frames, each after 4 bytes of length. `UPLINK_LOST` (`id`, `errno`) says that it cannot be read.

        Devices with the same `worker` name share one worker process. The fds are duplicated, the caller keeps its own.
        Returns when the worker has opened a blk device's layers; raises `OSError` if it cannot.
        """

    def device_del(self, id: str) -> None:
        """Stop serving; waits for requests in flight. Raises `KeyError` if there is no such device."""

    def set_faults(self, id: str, faults: str) -> None:
        """Lay faults upon a blk device, or with "null" end them; they last as long as the device and are in effect when
        this returns. `faults` is JSON `{"latency_us": 0, "jitter_us": 0, "error_rate": 0.0, "error": "EIO" | "ENOSPC",
        "torn_write_rate": 0.0, "stuck": false, "full": false, "operations": ["read" | "write" | "flush" | "discard", ...],
        "seed": 0}`; no operations are all. Raises `KeyError` if there is no such device."""

    def job_start(self, config: str, fds: Sequence[int]) -> None:
        """Begin host work, `{"driver": "copy", "id", "worker", "direct": true, "layers": [...], "shares": [...]}`,
        fds `[layer 0, layer 1, ..., target]`: what the layers hold is copied to the target, which is made as large.
        Returns when the worker has opened them; raises `OSError` if it cannot. The event `JOB_ENDED` (`id`, `errno`,
        0 if all is done) tells the end; until `job_end` it is kept, and goes on if its worker dies. `query` has it
        among the devices, with `copied` and `to_copy` in bytes.
        """

    def job_end(self, id: str) -> None:
        """Forget a job, also before its end. Raises `KeyError` if there is no such job."""

    def set_shares(self, nodes: str) -> None:
        """Share all disks by `nodes` from now on, in all workers, also those to come: JSON
        `[{"id", "parent": null, "reservation_iops": 0, "reservation": 0, "limit_iops": null, "limit": null,
        "weight": 100, "latency_p99_us": null} | {"id", "remove": true}]`. A blk device's configuration may carry
        such a list as `"shares"`. Raises `ValueError` for a node that would be above itself.
        """

    def set_network_shares(self, nodes: str) -> None:
        """The same for networks, whose nodes are a tree of their own; a net device's configuration may carry them."""

    def query_arbiter(self) -> str:
        """JSON `[{"worker", "resource", "window", "in_flight", "waiting", "nodes": [{"id", "parent", the knobs, "dispatched",
        "joined" (those that the device got as a part of another), "bytes", "waiting", "in_flight"}]}]`, a row for each worker that has disks or a network
        (`resource`: "disk" or "network") and answers within a second."""

    def query_demand(self, anew: bool) -> str:
        """What is asked of each disk of the host and how it answers, enough to replay it: JSON `[{"worker", "cells":
        [{"number", "kind", "bytes", "load", "count", "times_ns": 17 quantiles}], "patterns": [{"id", "recorded_us", "mix":
        [{"kind", "count", "bytes"}], "periods": [{"number", "count", "gap_us", "span_us", "requests", "depth", "think_us"}],
        "squares": [gaps, spans], "latency": [[bucket, count]], "p99_us"}]}]` (docs/capacity.md). With `anew` the next
        answer has only what comes from now on. Cells forget by themselves, too."""

    def set_layers(self, id: str, config: str, fds: Sequence[int]) -> None:
        """Serve a blk device from other image files: `config` as for `device_add`, with other `layers` alone; `fds` are
        theirs. The guest waits some milliseconds; what it wrote before is in the old files, durable. If the disk
        has grown, the frontend is told. Raises `KeyError`, `ValueError` if more would change, and `OSError` if the
        files cannot be opened: it goes on with the old ones then.
        """

    def query(self) -> str:
        """JSON `{"devices": [{"id", "driver", "worker", "connected", "reads", "writes", "flushes", "discards",
        "read_bytes", "written_bytes", "errors", "inflight", "spaceless",
        "flush_error": errno of a failed flush or 0, "faults": {...} | null, "faulted": count, "violations": {"kind": count},
        "last_violation": str | null}],
        "workers": [{"name", "pid": null while none runs, "generation", "devices"}]}`."""

    def query_ports(self, network: str | None) -> str:
        """JSON `[{"id", "network", "mac": null of an uplink, "link", "connected", "rx_packets", "rx_bytes", "tx_packets",
        "tx_bytes", "drops": {"reason": count}, "fdb": addresses learnt, "faults": null if there are none, "captured"}]`, of one network or of all. Drops are those of
        up to 50 ms ago."""

    def order_port(self, id: str, order: str, fds: Sequence[int]) -> str:
        """Do something to a port of a network, in effect when this returns; the answer is JSON. `order` is JSON:
        `{"type": "set", "rules": {...}, "link": bool}`, `{"type": "faults", "plan": {...} | null}`, `{"type": "capture",
        "snaplen", "limit"}` with the fd of a file or pipe to append pcap records to, `{"type": "capture_stop"}`, which answers
        `{"packets", "missed"}`, or null if there was none, `{"type": "flows", "limit"}`, which answers rows of `query-flows`.
        Raises `KeyError`, `ValueError` and `OSError`."""

    def set_balloon(self, id: str, wish: str) -> None:
        """Tell the guest of a balloon device how many bytes to give, or ask it for statistics so often: JSON `{"size",
        "stats_ms"}`, of which one may be left out. Raises `KeyError` and `ValueError`."""

    def query_balloons(self) -> str:
        """JSON rows `{"id", "size", "actual", "driver", "inflated", "deflated", "reported", "taken_back", "stats_ms", "stats":
        {...} | null, "stats_at": ns of CLOCK_MONOTONIC | null}`, those of `nagaya.plane.balloons.BalloonStatus`."""
    def set_memory(self, id: str, requested: int) -> None:
        """Ask the guest of a mem device to have so many bytes plugged. Raises `KeyError`, and `ValueError` unless they are
        whole blocks within the region."""

    def query_memory(self) -> str:
        """JSON `[{"id", "start", "size", "block", "requested", "plugged", "connected"}]` of all mem devices, in bytes."""

    def event_fd(self) -> int:
        """An eventfd that is readable while `take_events` has something."""

    def take_events(self) -> list[str]:
        """JSON events since the last call: `{"event": "DEVICE_CONNECTED" | "DEVICE_DISCONNECTED" | "DEVICE_FLUSH_FAILED" |
        "DEVICE_NO_SPACE" | "DEVICE_SPACE" | "DEVICE_VIOLATION" | "WORKER_EXITED" | "WORKER_STARTED", "data": {...}}`."""

    def close(self) -> None:
        """Stop all devices and workers and join all threads."""

class HeapImage:
    """The objects of this process as they are now, in a sealed file that its forks share.

    The process must have one thread. From then on its memory of objects is a private mapping of that file; nothing else
    changes.
    """

    def __init__(self) -> None:
        """Raises `OSError`."""

    def restore(self, maps: int) -> int:
        """In a fork: give back the pages that are as they were, copied or not; how many bytes. A second call does nothing.

        `maps` is open on this process' own /proc/PID/maps, from its beginning (proc_pid_maps(5)). Every other thread must
        be without the GIL, and not in a call that writes into an object. Raises `OSError`.
        """

class VhostFrontend:
    """A connection to a vhost-user backend. `nagaya.kvm.frontend` wraps it.

    Every method releases the GIL and returns within `timeout` seconds. They raise `OSError` with the name of the
    request that failed: `TimeoutError`, `ConnectionResetError` (it hung up), `PermissionError` (it refused). After an
    error the connection is closed and every later call fails, but for a refused `write_config`.
    """

    features: int
    """Virtio features that the backend offers."""
    queues: int
    """How many queues it has; 0 if it cannot say."""
    has_config: bool
    """Whether it has a configuration space."""

    def __init__(self, path: str, timeout: float) -> None:
        """Connect to the unix socket at `path` and negotiate the protocol."""

    def start(
        self,
        features: int,
        regions: Sequence[tuple[int, int, int, int, int]],
        rings: Sequence[tuple[int, int, int, int, int, int, int, int, int]],
    ) -> None:
        """Agree on `features`, hand over memory and start queues.

        A region is (guest-physical address, size, address in this process, fd, offset in it); a ring is (index, size,
        next available entry, descriptor table, available ring, used ring, kick, call, err): addresses of this process,
        three eventfds.
        """

    def stop(self, indices: Sequence[int]) -> list[int]:
        """Stop queues; returns each one's next available entry when the backend is done with their memory."""

    def read_config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the configuration space."""

    def write_config(self, offset: int, content: bytes) -> None:
        """Write to the configuration space, as the guest does."""

    def socket_fd(self) -> int:
        """Readable, between calls, only when the backend has hung up."""

    def request_fd(self) -> int:
        """Readable when `take_request` has something; -1 if the backend never will."""

    def take_request(self) -> bool:
        """Take one request of the backend. Whether it was "the configuration has changed"."""

    def close(self) -> None:
        """Hang up. A second call does nothing."""

def worker_main(control_fd: int) -> int:
    """The whole life of a worker process; returns its exit status when the holder closes the control fd."""

def qcow2_create(path: str, size: int, backing_path: str, backing_format: str) -> None:
    """Create an empty qcow2 of `size` bytes, 0600, O_EXCL, at `path`; with `backing_path` != "" an overlay of it."""

def seccomp_compile(policy: str) -> bytes:
    """Compile `{"default": "allow"|"errno:N"|"kill", "on_match": ..., "syscalls": ["read", ...]}` to a classic BPF
    program (array of `struct sock_filter`) for this architecture. Raises `ValueError` for an unknown name."""

def simulate(scenario: str) -> str:
    """Replay recorded demand through the real arbiter in simulated time; releases the GIL, takes at most about ten
    seconds of a CPU, and has the same answer for the same seed. `scenario` is JSON `{"cells", "capacity_iops": 0,
    "capacity": 0, "nodes": [as for set_shares], "patterns", "seconds", "warm_up": 0, "seed": 0}`, cells and patterns as
    `query_demand` has them. The answer is JSON `{"leaves": [{"id", "iops", "bytes", "mean_us", "p50_us", "p99_us",
    "waited_us", "under_way"}], "window", "seconds", "load", "known_load", "guessed"}`. Raises `ValueError`."""
