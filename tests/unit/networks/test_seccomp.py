"""The filters of dnsmasq and of the metadata service, tried on this kernel."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nagaya.networks.seccomp import (
    DNSMASQ_PROTOCOLS,
    DNSMASQ_RULES,
    METADATA_RULES,
    dnsmasq_filters,
    metadata_filters,
)

TRY = "import ctypes, errno, os, socket, sys\n{setup}\ntry:\n    {attempt}\nexcept OSError as error:\n"
TRY += "    sys.exit(errno.errorcode[error.errno])\n"
OURS = "from nagaya.networks import seccomp\nfrom nagaya.abi import linux\n"
OURS += "filters = seccomp.metadata_filters()\nlinux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)\n"
OURS += "seccomp.install(filters)\n"
ATTEMPTS = {
    "packet filters by netlink": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)", "EPERM"),
    "IPsec by netlink": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 6)", "EPERM"),
    "frames": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "EPERM"),
    "other protocols": ("socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)", "EPERM"),
    "names of interfaces": ("__import__('fcntl').ioctl(0, 0x8923, bytes(40))", "EPERM"),
    "shares of the CPU": ("os.sched_rr_get_interval(0)", "ENOSYS"),
    "priorities": ("os.setpriority(0, 0, 0)", "ENOSYS"),
}


def attempt(script: str, *prefix: str) -> str:
    """What ended it: the name of an error, "" if nothing was refused."""
    done = subprocess.run(
        [*prefix, sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )
    return done.stderr.strip()


@pytest.mark.parametrize(("what", "expected"), ATTEMPTS.values(), ids=ATTEMPTS)
def test_dnsmasq_can_not_have(what: str, expected: str) -> None:
    ours = (sys.executable, "-m", "nagaya.networks.seccomp")
    assert attempt(TRY.format(setup="", attempt=what), *ours) == expected


@pytest.mark.parametrize(
    "what",
    [
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).setsockopt(socket.IPPROTO_IPV6, 26, 1)",
        "os.waitpid(os.fork() or os._exit(0), 0)",
        "open('/etc/hosts').read()",
    ],
)
def test_dnsmasq_has_what_it_needs(what: str) -> None:
    assert attempt(TRY.format(setup="", attempt=what), sys.executable, "-m", "nagaya.networks.seccomp") == ""


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("socket.socket()", "ENOSYS"),
        ("os.fork()", "ENOSYS"),
        ("os.execv('/bin/true', ['true'])", "ENOSYS"),
        ("open('/tmp/x', 'w')", "EPERM"),
        ("socket.socketpair(socket.AF_UNIX)", ""),
        ("open('/etc/hosts').read()", ""),
    ],
)
def test_what_the_metadata_service_can_have(what: str, expected: str) -> None:
    assert attempt(TRY.format(setup=OURS, attempt=what)) == expected


def test_no_number_has_two_rules_in_one_filter() -> None:
    for rules in (DNSMASQ_RULES, DNSMASQ_PROTOCOLS, METADATA_RULES):
        numbers = [rule.number for rule in rules]
        assert len(numbers) == len(set(numbers)), "the first rule of a number decides alone"
    assert (len(dnsmasq_filters()), len(metadata_filters())) == (3, 2)
