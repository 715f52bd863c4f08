"""Which engine runs a machine."""

from __future__ import annotations

from nagaya.engines.engine import Engine
from nagaya.engines.uml import UmlEngine
from nagaya.errors import UnsupportedError
from nagaya.spec import MachineSpec


def select_engine(spec: MachineSpec, uml: UmlEngine) -> Engine:
    """The engine for `spec.engine`; "auto" is `uml`. Raises `UnsupportedError` for those to come."""
    if spec.engine in ("auto", "uml"):
        return uml
    raise UnsupportedError(
        f"{spec.name}: engine: {spec.engine!r} is not built yet; allowed: 'auto', 'uml'", field="engine"
    )
