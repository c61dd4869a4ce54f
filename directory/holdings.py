"""What the directory holds, read by a process of its own: reading it and reading the files each keep a processor busy.

The process gets its options, the password among them, on its standard input, tells how far it is on its standard
output, and ends with whoever started it.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import msgspec

from directory.administration import AdministrationError, Administrator, AdministratorOptions


class _Told(msgspec.Struct, frozen=True):
    entries: int = 0
    ended: bool = False
    error: str = ""


class Reading(Protocol):
    """One reading under way. Wait for it, or cancel it."""

    entries: int
    """Read so far."""

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most that long."""
        ...

    def result(self) -> int:
        """How many entries there are, once it has ended. Raises `AdministrationError`."""
        ...

    def cancel(self) -> None:
        """End it, if it has not ended."""
        ...


def read(options: AdministratorOptions, folder: Path, apart: bool = True) -> Reading:
    """Begin to put into `folder` the buckets of `HeldEntry`, in a process of its own or in a thread.

    Raises OSError when no process can be started.
    """
    return _Process(options, folder) if apart else _Thread(options, folder)


class _Process:
    def __init__(self, options: AdministratorOptions, folder: Path) -> None:
        self.entries = 0
        self._last = _Told(error="the reading of the directory ended without a word")
        # -P keeps the current directory out of the search for modules.
        argv = (sys.executable, "-P", "-m", "directory.holdings")
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None  # noqa: S101 - PIPE was asked for
        with suppress(BrokenPipeError):  # it died already: `result` says so
            self._process.stdin.write(msgspec.json.encode({**asdict(options), "folder": folder}, enc_hook=str))
            self._process.stdin.close()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def wait(self, seconds: float) -> bool:
        self._listener.join(seconds)
        return not self._listener.is_alive()

    def result(self) -> int:
        self._listener.join()
        if not self._last.ended:
            raise AdministrationError(self._last.error)
        return self._last.entries

    def cancel(self) -> None:
        self._process.kill()
        self._listener.join()

    def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - PIPE was asked for
        with self._process.stdout as lines:
            for line in lines:
                told = msgspec.json.decode(line, type=_Told)
                self.entries = told.entries
                if told.ended or told.error:
                    self._last = told
        self._process.wait()


class _Thread:
    def __init__(self, options: AdministratorOptions, folder: Path) -> None:
        self.entries = 0
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self._future = self._threads.submit(self._read, options, folder)

    def wait(self, seconds: float) -> bool:
        return bool(wait((self._future,), seconds).done)

    def result(self) -> int:
        return self._future.result()

    def cancel(self) -> None:
        self._stop.set()
        self._threads.shutdown()

    def _read(self, options: AdministratorOptions, folder: Path) -> int:
        administrator = Administrator(options, self._stop)
        try:
            return administrator.read(folder, self._count)
        finally:
            administrator.close()

    def _count(self, entries: int) -> None:
        self.entries = entries


class _Asked(msgspec.Struct, frozen=True):
    uri: str
    base: str
    bind_dn: str
    password: str
    ca_file: str | None
    timeout_seconds: float
    patience_seconds: float
    folder: str


def main() -> None:
    gc.disable()  # entries hold no cycles, and looking for some among millions takes its time
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=_Asked)
    options = AdministratorOptions(
        asked.uri,
        asked.base,
        asked.bind_dn,
        asked.password,
        Path(asked.ca_file) if asked.ca_file else None,
        asked.timeout_seconds,
        asked.patience_seconds,
    )

    def tell(told: _Told) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
        sys.stdout.buffer.flush()  # fails when nobody listens any more, and that ends us

    administrator = Administrator(options)
    try:
        tell(_Told(administrator.read(Path(asked.folder), lambda entries: tell(_Told(entries))), ended=True))
    except AdministrationError as error:
        tell(_Told(error=str(error)))
    except OSError as error:
        tell(_Told(error=f"what the directory holds could not be written down: {error.strerror}"))
    finally:
        administrator.close()


if __name__ == "__main__":
    main()
