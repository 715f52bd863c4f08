"""A key for a machine: its guest agent lets it in and says by which host keys the machine is known.

The guest agent is a wire between the host and that one guest. So nobody on a network can take the machine's
place, and nothing has to be fetched or waited for when the guest boots.
"""

from __future__ import annotations

import re

from nagaya.daemon.parts import Agent
from nagaya.errors import NotFoundError, ProtocolError, UnavailableError
from nagaya.models.login import LoginAnswer

SECONDS = 30.0  # a guest that still boots takes its time
HOST_KEYS_MAX = 16  # ssh knows five types
USER_PATTERN = r"^[a-z_][a-z0-9_-]{0,31}$"  # useradd(8)
KEY_PATTERN = (
    r"^(ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]{1,64} [A-Za-z0-9+/]{16,8192}={0,2}( [\x20-\x7e]{0,255})?$"
)
_HOST_KEY = re.compile(r"(?:ssh|ecdsa)-[a-z0-9-]{1,64} [A-Za-z0-9+/]{16,8192}={0,2}")
_NO_USER, _NO_SERVER = 67, 69  # EX_NOUSER, EX_UNAVAILABLE of sysexits(3)

# $1 is the user, standard input the key. What belongs to the user is written as the user.
_SCRIPT = f"""
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
id "$1" >/dev/null 2>&1 || exit {_NO_USER}
command -v sshd >/dev/null || exit {_NO_SERVER}
set -- "$1" "$(cat)"
su -s /bin/sh "$1" -c 'set -eu
    umask 077
    cd
    mkdir -p .ssh
    grep -qxF "$0" .ssh/authorized_keys 2>/dev/null || echo "$0" >>.ssh/authorized_keys' "$2" >&2 || exit
if ! ls /etc/ssh/ssh_host_*_key.pub >/dev/null 2>&1; then
    systemctl start nagaya-ssh-host-key.service >&2 || ssh-keygen -A >&2 || exit
fi
cat /etc/ssh/ssh_host_*_key.pub
"""


async def admit(agent: Agent, machine: str, user: str, key: str) -> LoginAnswer:
    """Let `key` in as `user`. Raises `NotFoundError`, `UnavailableError` or `ProtocolError`."""
    argv = ["/bin/sh", "-uc", _SCRIPT, "sh", user]
    status, out, err, _cut = await agent.exec(argv, env={}, stdin=key.encode(), seconds=SECONDS)
    if status == _NO_USER:
        raise NotFoundError(f"{machine} has no user {user!r}", machine=machine)
    if status == _NO_SERVER:
        raise UnavailableError(
            f"{machine} has no ssh server",
            hint=f"images of kind debian have one; nagaya console {machine} needs none",
            machine=machine,
        )
    if status != 0:
        said = err.decode(errors="replace").strip()[-500:]
        raise ProtocolError(
            f"{machine}: the key could not be let in, status {status}: {said}", machine=machine
        )
    return LoginAnswer(user, host_keys(machine, out))


def host_keys(machine: str, listing: bytes) -> list[str]:
    """The keys in what a guest printed, which may be anything. Raises `ProtocolError` if there is none."""
    lines = listing.decode("ascii", errors="replace").splitlines()
    found = [match[0] for match in map(_HOST_KEY.match, lines) if match][:HOST_KEYS_MAX]
    if not found:
        raise ProtocolError(f"{machine} tells no host key of its ssh server", machine=machine)
    return found
