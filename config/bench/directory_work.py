"""One step of `relais bench directory` in a process of its own: `python -m config.bench.directory_work`.

What to do comes as one JSON object on standard input, what came of it goes to standard output as another, with the most
memory this process had (`peak_octets`, resident pages as the kernel counts them, interpreter included). Whoever starts
it watches the memory of its children meanwhile: see `run`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from config import allocator
from config.bench import directory_nation as nation
from config.bench.child import BenchError, memory_of_tree, resident

_SAMPLE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Done:
    """What a step said, and what it cost."""

    answer: dict[str, Any]
    seconds: float
    """By the clock, from before the process was started to its end."""
    peak_mb: float
    """Of the process alone; megabytes of 10**6 octets."""
    with_children_peak_mb: float
    """Most that it and its children had at one moment, looked at five times a second. Pages of a mapped database
    count for whoever maps them."""


def run(what: str, **asked: Any) -> Done:
    """Do one step. Raises `BenchError` when it fails."""
    began = time.monotonic()
    command = [sys.executable, "-P", "-m", "config.bench.directory_work"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/") as process:
        ended, most = threading.Event(), 0.0

        def watch() -> None:
            nonlocal most
            while not ended.wait(_SAMPLE_SECONDS):
                most = max(most, memory_of_tree(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            said, words = process.communicate(json.dumps({"what": what} | asked, default=str).encode())
        except BaseException:
            process.terminate()
            raise
        finally:
            ended.set()
            watcher.join()
    if process.returncode:
        raise BenchError(f"{what} failed: {words.decode(errors='replace').strip()[-500:]}")
    seconds = time.monotonic() - began
    answer = json.loads(said)
    peak = answer["peak_octets"] / 1e6
    return Done(answer, seconds, peak, max(most / 1e6, peak))


def _generate(asked: dict[str, Any]) -> dict[str, Any]:
    for day, folder in enumerate(asked["folders"]):
        nation.generate(Path(folder), asked["situations"], day, asked["changed"])
    return {}


def _ldif(asked: dict[str, Any]) -> dict[str, Any]:
    """Exactly what the first load gives to slapadd, as one file."""
    from directory import schema
    from directory.ldif import to_ldif

    target = Path(asked["target"])
    count = 0
    with target.open("wb", buffering=1 << 20) as file:
        for entry in schema.skeleton(asked["base"]):
            file.write(to_ldif(entry))
        for entry in _entries(asked):
            file.write(to_ldif(entry))
            count += 1
    return {"entries": count, "octets": target.stat().st_size}


def _load(asked: dict[str, Any]) -> dict[str, Any]:
    from config.bench.directory_server import slapd_of

    slapd = slapd_of(Path(asked["state"]), Path(asked["place"]), asked["port"])
    slapd.prepare()
    return {"entries": slapd.load(_entries(asked))}


def _entries(asked: dict[str, Any]) -> Any:
    from directory.load import entries

    files = nation.files_of(Path(asked["files"]))
    return entries(
        files["mssante"],
        files["practice"],
        asked["base"],
        nation.certified(Path(asked["certificates"])),
        skills=files["skills"],
        diplomas=files["diplomas"],
        scratch=Path(asked["scratch"]),
    )


def _sync(asked: dict[str, Any]) -> dict[str, Any]:
    import msgspec

    from config.bench.directory_server import BASE, PASSWORD
    from directory.administration import AdministratorOptions
    from directory.synchronisation import Synchronisation, SynchronisationOptions

    administrator = AdministratorOptions(asked["uri"], BASE, asked["bind_dn"], PASSWORD, Path(asked["ca"]))
    options = SynchronisationOptions(administrator, Path(asked["folder"]))
    now = datetime.fromisoformat(asked["now"]).astimezone(UTC)
    began = time.monotonic()
    report = Synchronisation(options).run([Path(asked["files"])], now=lambda: now)
    return {"report": msgspec.to_builtins(report), "seconds": time.monotonic() - began}


def _changes(asked: dict[str, Any]) -> dict[str, Any]:
    return {"changes": [len(nation.changes(Path(one), Path(next_day))) for one, next_day in pairwise(asked["folders"])]}


_STEPS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "generate": _generate,
    "ldif": _ldif,
    "load": _load,
    "sync": _sync,
    "changes": _changes,
}


def main() -> None:
    """See the module."""
    allocator.keep_freed_memory()  # as every process of ours does
    asked = json.load(sys.stdin)
    answer = _STEPS[asked["what"]](asked)
    print(json.dumps(answer | {"peak_octets": resident("VmHWM:")}))


if __name__ == "__main__":
    main()
