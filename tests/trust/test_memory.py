"""Keys stay in memory: nothing dumps, nothing swaps where the machine permits, no child inherits a way to them."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.trust.softhsm import LABEL, MODULE, make_token, needs_softhsm
from trust.memory import Guard

ROOT = Path(__file__).parents[2]


def child(program: str, *arguments: str, **options) -> dict:
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(program), *arguments],
        check=False,
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return json.loads(done.stdout)


_GUARDED = """
    import ctypes, json, resource, sys
    from pathlib import Path
    from trust.memory import guard_memory
    if sys.argv[1] != "as it is":
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (int(sys.argv[1]), int(sys.argv[1])))
    guard = guard_memory(lock=sys.argv[2] == "lock")
    grown = bytearray(64 << 20)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({
        "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "locked": guard.locked, "dumps_off": guard.dumps_off,
        "kilobytes": int(status["VmLck"].split()[0]),
    }))
"""


def test_no_dump_and_no_debugger() -> None:
    told = child(_GUARDED, "as it is", "no")
    assert told == {"dumpable": 0, "core": [0, 0], "locked": False, "dumps_off": True, "kilobytes": 0}


def test_locked_where_permitted() -> None:
    told = child(_GUARDED, "as it is", "lock")
    if not told["locked"]:
        pytest.skip("this machine does not permit locking memory")
    assert told["kilobytes"] > 64 << 10


def test_a_limited_process_is_not_locked_and_goes_on() -> None:
    """As an ordinary user under a limit of 64 KiB: a locked process could not even allocate."""
    options = {} if os.geteuid() else {"user": 65534, "group": 65534, "extra_groups": []}
    try:
        told = child(_GUARDED, str(64 << 10), "lock", **options)
    except PermissionError:
        pytest.skip("the interpreter is where an ordinary user may not go")
    assert not told["locked"]
    assert told["dumps_off"]


def test_what_is_degraded_is_said() -> None:
    assert Guard(dumps_off=True, locked=True, swap=True).degraded == ""
    assert Guard(dumps_off=True, locked=False, swap=False).degraded == ""
    assert "LimitMEMLOCK" in Guard(dumps_off=True, locked=False, swap=True).degraded
    assert "LimitCORE" in Guard(dumps_off=False, locked=True, swap=True).degraded


_PARENT = """
    import json, os, subprocess, sys
    from pathlib import Path
    from trust.generations import KeyUse
    from trust.pkcs11 import Token, TokenOptions
    from trust.softkeys import KeyKind
    from trust.vault import KeyVault
    token = Token(TokenOptions(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))) if sys.argv[2] else None
    vault = KeyVault.create(Path(sys.argv[1]), token)
    vault.request("a@b.example", KeyUse.SIGNING, KeyKind.P256, in_token=token is not None)
    look = "import json; from pathlib import Path;"
    look += "print(json.dumps([str(each.readlink()) for each in Path('/proc/self/fd').iterdir() if each.exists()]))"
    done = subprocess.run([sys.executable, "-c", look], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    print(done.stdout.decode())
"""


def test_a_child_inherits_no_file_of_the_vault(tmp_path) -> None:
    opened = child(_PARENT, str(tmp_path / "vault"), "")
    assert not any("vault" in each for each in opened)


@needs_softhsm
def test_a_child_inherits_no_file_of_the_token(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", "")
    pin = make_token(tmp_path / "hsm")
    opened = child(_PARENT, str(tmp_path / "vault"), str(MODULE), LABEL, str(pin))
    assert not any("vault" in each or "hsm" in each for each in opened)
