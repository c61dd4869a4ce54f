"""Loopback ports that stay the same from one start to the next: mail clients and partners need no new settings."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

_FIRST = 20_000
_BLOCK = 16
_BLOCKS = 790
_LAST = _FIRST + _BLOCKS * _BLOCK
"""Behind the last one: Linux gives outgoing connections ports from 32768 on (ip_local_port_range)."""


def choose(names: Sequence[str], remembered: Path, wanted: Mapping[str, int]) -> dict[str, int]:
    """A free port for every name: the one asked for, else the remembered one if it is still free, else a new one.

    An asked-for port is taken as it is; whoever binds it reports that it is in use.
    """
    before = _remembered(remembered)
    chosen = {name: port for name in names if (port := wanted.get(name, 0))}
    # Held open until all are chosen, so that no two names get the same one.
    held: list[socket.socket] = []
    try:
        for name in names:  # before any new one, which else might be a port remembered for another name
            known = before.get(name, 0)
            if known and name not in chosen and known not in chosen.values() and _hold(known, held):
                chosen[name] = known
        for name in names:
            while name not in chosen:
                port = _new(held)
                if port not in chosen.values():
                    chosen[name] = port
    finally:
        for probe in held:
            probe.close()
    remembered.write_text(json.dumps(chosen, indent=1))
    return chosen


def _remembered(path: Path) -> dict[str, int]:
    """Last time's ports; what a kill cut short or somebody edited is as good as nothing."""
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(before, dict):
        return {}
    return {name: port for name, port in before.items() if type(port) is int and 0 < port < 65536}


def _new(held: list[socket.socket]) -> int:
    """A port that nobody has, and that nobody is likely to have when it is bound: below those that the kernel gives to
    outgoing connections, and each process looks from a place of its own; where these are all taken, any."""
    start = _FIRST + os.getpid() % _BLOCKS * _BLOCK
    for port in chain(range(start, _LAST), range(_FIRST, start)):
        if _hold(port, held):
            return port
    return _hold(0, held)


def _hold(port: int, held: list[socket.socket]) -> int:
    """Bind the port (0: any) and keep it; 0 when it is taken."""
    # SO_REUSEADDR, for connections of the last start may still be ending; with it our own probes exclude nobody.
    if port in {probe.getsockname()[1] for probe in held}:
        return 0
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        probe.close()
        return 0
    held.append(probe)
    return int(probe.getsockname()[1])
