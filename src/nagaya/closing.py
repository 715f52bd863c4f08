"""What owns something of the host and gives it back: a `with` block ends in `close`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """A context manager that closes itself at the end of its block."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Give everything back. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
