"""What this host can and cannot do for networks, found by looking for what is needed."""

from __future__ import annotations

import os
from pathlib import Path

from nagaya.networks.programs import find_program
from nagaya.spec import NetworkSpec

_PACKAGES = {
    "nft": "nftables",
    "dnsmasq": "dnsmasq-base",
    "setpriv": "util-linux",
    "prlimit": "util-linux",
    "passt": "passt",
}
_USER_NAMESPACES = {  # settings with which only root makes user namespaces, in which passt shuts itself
    Path("/proc/sys/user/max_user_namespaces"): "sysctl user.max_user_namespaces=10000",
    Path("/proc/sys/kernel/unprivileged_userns_clone"): "sysctl kernel.unprivileged_userns_clone=1",
}


def refusal(spec: NetworkSpec) -> str:
    """Why this host cannot have a network of that mode, and what to do; "" if it can."""
    if spec.mode == "user":
        return _missing("passt", "setpriv", "prlimit") or _no_user_namespaces()
    if os.geteuid() != 0:
        return "only root can make network interfaces: run the daemon as root, or use mode user"
    if not Path("/dev/net/tun").exists() and spec.mode != "macvtap":
        return "the host has no /dev/net/tun: modprobe tun; in a container, give it the device"
    if spec.mode in ("bridge", "macvtap"):
        return ""
    served = ("dnsmasq", "setpriv", "prlimit") if spec.dhcp or spec.dns else ()
    return _missing("nft", *served)


def _no_user_namespaces() -> str:
    for setting, mend in _USER_NAMESPACES.items():
        if setting.exists() and setting.read_text().strip() == "0":
            return f"this host lets only root make user namespaces, which passt needs: {mend}"
    return ""


def _missing(*programs: str) -> str:
    missing = [name for name in programs if find_program(name) is None]
    packages = " ".join(dict.fromkeys(_PACKAGES[name] for name in missing))
    return f"{' and '.join(missing)} not installed: apt-get install {packages}" if missing else ""
