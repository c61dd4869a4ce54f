"""A deadline for libldap's TLS handshake, which has none of its own where libldap is built with GnuTLS (Debian).

Against a server that accepts the connection and then says nothing (frozen, or behind a dead balancer), libldap 2.5
loops for ever inside one call, whatever LDAP_OPT_NETWORK_TIMEOUT says. The only way out is to shut the socket down from
another thread; python-ldap does not show it during the call, so it is found among this process's sockets. Needs the
/proc of Linux; elsewhere there is no deadline.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

_LDAPS_PORT = 636
_AGAIN_SECONDS = 0.05


@contextmanager
def handshake_deadline(uri: str, seconds: float) -> Iterator[None]:
    """Within this block, a connection to the ldaps `uri` that is still being made after `seconds` is cut.

    The one who waits for it then gets `ldap.SERVER_DOWN`. Sockets that were open before are left alone; a connection
    another thread makes to the same server during the block may be cut too, so make them one at a time. Raises OSError
    when the host has no address.
    """
    parts = urlsplit(uri)
    port = parts.port or _LDAPS_PORT
    peers = {found[4][:2] for found in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)}
    done = threading.Event()
    cutter = threading.Thread(target=_cut_until, args=(done, seconds, peers, set(_sockets())), daemon=True)
    cutter.start()
    try:
        yield
    finally:
        done.set()


def _cut_until(done: threading.Event, seconds: float, peers: set[tuple[object, ...]], before: set[str]) -> None:
    """Again and again: the socket may not have been open yet when the time was over."""
    if done.wait(seconds):
        return
    while True:
        _cut(peers, before)
        if done.wait(_AGAIN_SECONDS):
            return


def _sockets() -> dict[str, int]:
    """This process's sockets: their kernel names (`socket:[inode]`) and descriptors."""
    found: dict[str, int] = {}
    with suppress(FileNotFoundError):
        for link in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                name = str(link.readlink())
                if name.startswith("socket:"):
                    found[name] = int(link.name)
    return found


def _cut(peers: set[tuple[object, ...]], before: set[str]) -> None:
    for name, descriptor in _sockets().items():
        if name in before:
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.getpeername()[:2] in peers:
                connection.shutdown(socket.SHUT_RDWR)
