"""How what a Nagaya makes on its host is called, so that it is found again after any crash.

The run directory tells one Nagaya of a host from another, so its hash is in every name.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

METADATA_PORT = 16925  # of the host's address in each network
ANY_INTERFACE = "ngy-*"  # of all Nagayas of the host, as nftables matches names
_OWN, _NETWORK = 4, 7  # hex digits; with "ngy-" they fill the 15 characters of an interface's name


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one Nagaya, by its run directory."""

    run: Path

    @property
    def prefix(self) -> str:
        """How the names of its interfaces begin."""
        return f"ngy-{_hash(str(self.run))[:_OWN]}"

    def interface(self, network: str) -> str:
        """The interface of `network`, at most 15 characters."""
        return self.prefix + _hash(f"{self.run}\0{network}")[:_NETWORK]

    def mac(self, network: str) -> str:
        """The host's MAC address in it: always the same, and high, for a bridge takes its lowest."""
        digits = _hash(f"mac {self.run}\0{network}")[:10]
        return ":".join(["fe", *(digits[at : at + 2] for at in range(0, 10, 2))])

    def alias(self, network: str) -> str:
        """What `ip link` shows beside the interface, and what says that it is ours."""
        return f"nagaya network {network} of {self.run}"[:255]

    @property
    def table(self) -> str:
        """Its nftables table, of the family inet."""
        return f"nagaya_{_hash(str(self.run))[:8]}"

    @property
    def directory(self) -> Path:
        """The records, configurations and sockets of its networks, a directory each."""
        return self.run / "networks"


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()
