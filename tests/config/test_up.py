"""`relais up` asked to end before it is up: it ends at once and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.private import service_directory, until


def processes_of(state: Path) -> list[int]:
    """Ids of the processes whose command line names the state."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(state).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("moment", "number"), [("log", signal.SIGTERM), ("log", signal.SIGHUP), ("log/slapd.log", signal.SIGINT)]
)
def test_a_signal_while_starting(moment: str, number: signal.Signals) -> None:
    with service_directory() as place:
        state = place / "state"
        up = subprocess.Popen(
            [sys.executable, "-P", "-m", "config", "up", "--state", str(state)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
        )
        try:
            until((state / moment).exists, 30, moment)
            status = Path(f"/proc/{up.pid}/status").read_text()
            assert "Uid:\t0" not in status, "privileges are dropped before anything is started"
            up.send_signal(number)
            _, said = up.communicate(timeout=90)
        finally:
            up.kill()
            up.communicate()
        assert up.returncode == 0, said.decode()
        assert b"Traceback" not in said
        assert processes_of(state) == []
        assert not (state / "endpoints.json").exists()


@pytest.mark.parametrize("state", ["a file", "/proc/relais-cannot"])
def test_an_impossible_state_is_a_sentence(state: str) -> None:
    with service_directory() as place:
        (place / "a file").write_text("not ours")
        said = subprocess.run(
            [sys.executable, "-P", "-m", "config", "up", "--state", str(place / state)],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            cwd="/",
        )
    assert said.returncode == 1
    assert "Traceback" not in said.stderr and "directory" in said.stderr
