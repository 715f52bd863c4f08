"""The Python client: `with Client() as client: client.machines.create(spec).start()`.

Everything raises the errors of `nagaya.errors`, as the daemon raised them. docs/api.md has the API beneath.
What a program does not use is not imported, because a command of the command line is one request long.
"""

from nagaya.sdk.client import Client
from nagaya.sdk.launch import ensure_daemon
from nagaya.sdk.machines import Machine

__all__ = ["Client", "Machine", "ensure_daemon"]
