"""Which engine runs a machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nagaya.engines.engine import Engine
from nagaya.engines.kvm import KvmEngine
from nagaya.engines.uml import UmlEngine
from nagaya.errors import NagayaError, UnsupportedError
from nagaya.spec import MachineSpec


@dataclass(frozen=True, slots=True)
class Engines:
    """The engines of one daemon.

    `fast` says whether the host's CPU runs guest kernels itself (VT-x, AMD-V); `kernels` is the directory of
    guest kernels.
    """

    uml: UmlEngine
    kvm: KvmEngine
    fast: Callable[[], bool]
    kernels: Path

    def select(self, spec: MachineSpec) -> Engine:
        """The engine for `spec.engine`. Raises `UnsupportedError` for one that is not built yet.

        "auto" is `kvm` where the CPU runs guest kernels itself, our kernel for it is built and the machine
        fits; `uml` otherwise, and for a machine that names another kernel.
        """
        if spec.engine == "uml":
            return self.uml
        if spec.engine == "kvm":
            return self.kvm
        if spec.engine == "auto":
            return self.kvm if self._suits_kvm(spec) else self.uml
        raise UnsupportedError(
            f"{spec.name}: engine: {spec.engine!r} is not built yet; allowed: 'auto', 'kvm', 'uml'",
            field="engine",
        )

    def _suits_kvm(self, spec: MachineSpec) -> bool:
        if spec.boot.kernel not in ("", "kvm") or not (self.kernels / "kvm").exists() or not self.fast():
            return False
        try:
            self.kvm.check(spec)
        except NagayaError:
            return False
        return True
