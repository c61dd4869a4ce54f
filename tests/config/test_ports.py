"""Ports stay the same from start to start, and no two servers get the same one."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from config.ports import choose

NAMES = ("imaps", "ldaps", "mllp")


def test_the_same_ports_again(tmp_path: Path) -> None:
    first = choose(NAMES, tmp_path / "ports.json", {})
    assert len(set(first.values())) == 3
    assert choose(NAMES, tmp_path / "ports.json", {}) == first
    assert json.loads((tmp_path / "ports.json").read_text()) == first


def test_no_outgoing_connection_may_have_one_before_its_server(tmp_path: Path) -> None:
    """Seconds pass until a server binds what was chosen for it: the kernel must not have given it away meanwhile."""
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    chosen = choose(NAMES, tmp_path / "ports.json", {"mllp": 0})
    assert all(1024 <= port < first_outgoing for port in chosen.values()), chosen


def test_a_remembered_port_that_is_taken_is_replaced(tmp_path: Path) -> None:
    first = choose(NAMES, tmp_path / "ports.json", {})
    with socket.create_server(("127.0.0.1", first["ldaps"])):
        second = choose(NAMES, tmp_path / "ports.json", {})
    assert second["ldaps"] != first["ldaps"]
    assert (second["imaps"], second["mllp"]) == (first["imaps"], first["mllp"])


def test_an_asked_for_port_is_nobody_elses(tmp_path: Path) -> None:
    first = choose(NAMES, tmp_path / "ports.json", {})
    chosen = choose(NAMES, tmp_path / "ports.json", {"mllp": first["imaps"]})
    assert chosen["mllp"] == first["imaps"]
    assert len(set(chosen.values())) == 3


@pytest.mark.parametrize(
    "left", ["", "{", "[1]", "null", '{"imaps": "993"}', '{"imaps": 70000}', '{"imaps": -1}', '{"imaps": true}']
)
def test_a_spoilt_memory_is_no_memory(tmp_path: Path, left: str) -> None:
    (tmp_path / "ports.json").write_text(left)
    assert all(1024 <= port < 65536 for port in choose(NAMES, tmp_path / "ports.json", {}).values())
