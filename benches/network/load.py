"""What machines do in the benches of networks. Runs as a program, inside a network namespace; prints JSON.

    load.py sink PORT START SLICE           count what comes by TCP, by sender and slice of time
    load.py bulk HOST PORT END              send by TCP as much as goes
    load.py echo PORT                       send back each datagram
    load.py ask HOST PORT RATE START END    so many UDP round trips a second; in us, from START on

Those that serve do so until standard input ends. Times are seconds of the monotonic clock, which all
processes of a host have in common.
"""

from __future__ import annotations

import contextlib
import json
import math
import selectors
import socket
import sys
import time

CHUNK = 256 << 10
PATIENCE_S = 1.0  # a datagram that takes longer is lost, and counts as that


def sink(port: int, start: float, slice_s: float) -> object:
    """Bytes by sender's address, for each slice from `start` on."""
    counts: dict[str, list[int]] = {}
    room = bytearray(CHUNK)
    with selectors.DefaultSelector() as selector, socket.create_server(("", port), backlog=16) as server:
        selector.register(server, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return counts
                if key.fileobj is server:
                    connection, (peer, _) = server.accept()
                    selector.register(connection, selectors.EVENT_READ, peer)
                    continue
                length = 0
                with contextlib.suppress(ConnectionResetError):
                    length = key.fileobj.recv_into(room)  # type: ignore[union-attr]  # the only other kind
                if not length:
                    selector.unregister(key.fileobj)
                    continue
                place = math.floor((time.monotonic() - start) / slice_s)
                if place >= 0:
                    slices = counts.setdefault(key.data, [])
                    slices.extend([0] * (place + 1 - len(slices)))
                    slices[place] += length


def bulk(host: str, port: int, end: float) -> object:
    """Bytes that went into the socket."""
    sent, chunk = 0, bytes(CHUNK)
    with socket.create_connection((host, port), timeout=5) as connection:
        connection.settimeout(0.2)
        while time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                sent += connection.send(chunk)
        # What is on its way still is nobody's any more.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    return sent


def echo(port: int) -> object:
    """How many there were."""
    count = 0
    with selectors.DefaultSelector() as selector, socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("", port))
        selector.register(server, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return count
                text, peer = server.recvfrom(2048)
                server.sendto(text, peer)
                count += 1


def ask(host: str, port: int, rate: float, start: float, end: float) -> object:
    """Each round trip."""
    found = []
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect((host, port))
        client.settimeout(PATIENCE_S)
        due = time.monotonic()
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic()
            client.send(b"?" * 64)
            with contextlib.suppress(TimeoutError):
                client.recv(2048)
            now = time.monotonic()
            if sent >= start:
                found.append((now - sent) * 1e6)
            due = max(due + 1 / rate, now)
    return found


def main(words: list[str]) -> None:
    """Do what the first word says with the others."""
    name, *rest = words
    if name == "sink":
        said = sink(int(rest[0]), float(rest[1]), float(rest[2]))
    elif name == "bulk":
        said = bulk(rest[0], int(rest[1]), float(rest[2]))
    elif name == "echo":
        said = echo(int(rest[0]))
    else:
        said = ask(rest[0], int(rest[1]), *map(float, rest[2:5]))
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
