"""A synchronisation in a process of its own, for a gateway that has mail to carry: a nation keeps a processor busy.

The process gets its options, passwords among them, on its standard input, gives way to others, and gives the report
back on its standard output. SIGTERM ends it in good order; so does the end of whoever started it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from directory.runs import RunReport
from directory.synchronisation import BusyError, Synchronisation, SynchronisationOptions

_NICE = 5


class ApartError(Exception):
    """The process ended without a report; the text says how."""


class _Asked(msgspec.Struct, frozen=True):
    options: SynchronisationOptions
    paths: list[Path]
    now: datetime


class _Told(msgspec.Struct, frozen=True):
    report: RunReport | None = None
    busy: str = ""
    failed: str = ""


def run_apart(
    options: SynchronisationOptions, paths: list[Path], stop: threading.Event, now: datetime | None = None
) -> RunReport:
    """`Synchronisation.run` in another process; blocks. `now`: the moment it begins, default the clock's.

    Once `stop` is set it ends soon, `interrupted`. Raises `BusyError`; `ApartError` when the process could not work.
    """
    asked = _Asked(options, paths, now or datetime.now(UTC))
    argv = (sys.executable, "-P", "-m", "directory.apart")
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None  # noqa: S101 - PIPE was asked for
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            if stop.is_set():
                process.terminate()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with process.stdout, process.stdin as stdin:
            stdin.write(len(encoded := msgspec.json.encode(asked, enc_hook=str)).to_bytes(8, "big") + encoded)
            stdin.flush()
            answer = process.stdout.read()  # its standard input stays open meanwhile: its end would end the process
    except BrokenPipeError:
        answer = b""
    finally:
        ended.set()
        watcher.join()
        status = process.wait()
    try:
        told = msgspec.json.decode(answer, type=_Told)
    except msgspec.DecodeError:
        raise ApartError(f"the synchronisation ended with status {status} and no report") from None
    if told.busy:
        raise BusyError(told.busy)
    if told.report is None:
        raise ApartError(told.failed)
    return told.report


def main() -> None:
    os.nice(_NICE)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's: whoever started us decides
    incoming = sys.stdin.buffer
    asked = msgspec.json.decode(incoming.read(int.from_bytes(incoming.read(8), "big")), type=_Asked, dec_hook=_path)

    def watch() -> None:
        incoming.read(1)  # nothing comes but the end
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    told = _run(asked, stop)
    sys.stdout.buffer.write(msgspec.json.encode(told))
    sys.stdout.buffer.flush()
    os._exit(0)  # the thread above still reads


def _run(asked: _Asked, stop: threading.Event) -> _Told:
    clock: Callable[[], datetime] = _clock(asked.now)
    try:
        return _Told(Synchronisation(asked.options).run(asked.paths, stop=stop, now=clock))
    except BusyError as error:
        return _Told(busy=str(error))
    except OSError as error:
        return _Told(failed=f"{asked.options.folder} cannot be used: {error.strerror or type(error).__name__}")


def _clock(began: datetime) -> Callable[[], datetime]:
    ahead = began - datetime.now(UTC)
    return lambda: datetime.now(UTC) + ahead


def _path(kind: type[Any], value: Any) -> Any:
    return kind(value)


if __name__ == "__main__":
    main()
