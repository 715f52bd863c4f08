"""Where Nagaya keeps its files: the system's directories as root, the user's own otherwise.

`NAGAYA_RUN_DIR`, `NAGAYA_STATE_DIR` and `NAGAYA_CACHE_DIR` override each one; tests and a second,
independent Nagaya on the same host use them. Unix socket addresses hold 107 bytes, so `run` must be short.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MachinePaths:
    """The files of one machine: `run` lasts until the host reboots, `state` until the machine is deleted."""

    run: Path
    state: Path

    @property
    def jail(self) -> Path:
        """The only host directory that the machine's processes see, at the same path inside their root."""
        return self.run / "jail"

    def device_socket(self, device: str) -> Path:
        """vhost-user socket of `device` ("disk0", "console", "rng"): the plane listens, engines connect."""
        return self.jail / f"{device}.sock"

    @property
    def console_socket(self) -> Path:
        """Host side of the console: raw bytes both ways, the scrollback's end first. The plane listens."""
        return self.run / "console.sock"

    @property
    def agent_socket(self) -> Path:
        """Host side of the guest agent's virtio port: raw bytes, one client at a time. The plane listens."""
        return self.run / "agent.sock"

    @property
    def qmp_socket(self) -> Path:
        """The monitor of a machine of the kvm engine, mode 0600."""
        return self.run / "qmp.sock"

    @property
    def console_log(self) -> Path:
        """What the console printed, capped; the older half is `console.log.1`."""
        return self.state / "console.log"

    @property
    def engine_log(self) -> Path:
        """stdout and stderr of the engine's process, capped."""
        return self.state / "engine.log"

    @property
    def exit_file(self) -> Path:
        """JSON `{"pid", "start_time", "code", "signal", "at"}`, written by the zygote at its end."""
        return self.run / "exit.json"

    def disk(self, index: int) -> Path:
        """The thin overlay of disk `index`."""
        return self.state / f"disk{index}.qcow2"


@dataclass(frozen=True, slots=True)
class Paths:
    """The directories of one Nagaya."""

    run: Path
    state: Path
    cache: Path

    @classmethod
    def default(cls) -> Paths:
        """The directories of this process: system-wide for root, per user otherwise, or the overrides."""
        if os.geteuid() == 0:
            run, state, cache = Path("/run/nagaya"), Path("/var/lib/nagaya"), Path("/var/cache/nagaya")
        else:
            home = Path.home()
            run = Path(os.environ.get("XDG_RUNTIME_DIR", f"/tmp/nagaya-{os.geteuid()}")) / "nagaya"  # noqa: S108
            state = Path(os.environ.get("XDG_STATE_HOME", home / ".local/state")) / "nagaya"
            cache = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache")) / "nagaya"
        return cls(
            Path(os.environ.get("NAGAYA_RUN_DIR", run)),
            Path(os.environ.get("NAGAYA_STATE_DIR", state)),
            Path(os.environ.get("NAGAYA_CACHE_DIR", cache)),
        )

    def environment(self) -> dict[str, str]:
        """The overrides that make a child process use these directories."""
        return {
            "NAGAYA_RUN_DIR": str(self.run),
            "NAGAYA_STATE_DIR": str(self.state),
            "NAGAYA_CACHE_DIR": str(self.cache),
        }

    @property
    def api_socket(self) -> Path:
        return self.run / "nagaya.sock"

    @property
    def plane_socket(self) -> Path:
        """The holder's QMP service."""
        return self.run / "plane.sock"

    @property
    def zygote_socket(self) -> Path:
        return self.run / "zygote.sock"

    @property
    def database(self) -> Path:
        return self.state / "state.sqlite"

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def disks(self) -> Path:
        """The disks with a name of their own, a directory each."""
        return self.state / "disks"

    @property
    def kernels(self) -> Path:
        return self.state / "kernels"

    def machine(self, machine_id: str) -> MachinePaths:
        return MachinePaths(self.run / "machines" / machine_id, self.state / "machines" / machine_id)
