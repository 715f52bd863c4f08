"""`python -m nagaya.networks.metadata_listener`: listens for the metadata service and ends with 0.

A machine waits for that much only: its connections wait in the kernel while what answers them
(`nagaya.networks.metadata`) is loaded in the background, which takes three times as long as all that is here.
Imports are few for that reason.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

CONNECTIONS = 256  # that wait


def main(arguments: Sequence[str] | None = None) -> int:
    """Listen, go into the background, load the service and be it."""
    parser = argparse.ArgumentParser(prog="python -m nagaya.networks.metadata_listener")
    parser.add_argument("--interface", required=True, help="the only one that is heard")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--uid", type=int, required=True, help="the user that it becomes")
    parser.add_argument("directory", help="of the documents")
    parser.add_argument("address", nargs="+", help="the host's in the network")
    options = parser.parse_args(arguments)
    try:
        os.close(os.open(options.directory, os.O_DIRECTORY))  # a network that is gone needs no service
        listeners = [_listen((address, options.port), options.interface) for address in options.address]
        if os.fork() > 0:
            os._exit(0)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    os.setsid()
    _silence()
    from nagaya.networks import metadata

    metadata.serve(options.directory, options.uid, listeners)
    return 0


def _listen(address: tuple[str, int], interface: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(CONNECTIONS)
    return listener


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


if __name__ == "__main__":
    sys.exit(main())
