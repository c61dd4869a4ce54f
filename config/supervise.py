"""Child processes that live exactly as long as we do: started in order, restarted when they die, never orphaned.

Each child is its own session; the kernel terminates it should the supervisor be killed (`PR_SET_PDEATHSIG`), and
`stop` terminates the children in reverse order and waits for them. What a child prints goes to a log file of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from config.privileges import die_with_parent

log = structlog.get_logger(__name__)

_START_AGAIN_SECONDS = 5.0
_LAST_WORDS_SECONDS = 1.0
"""For what a child that has ended still had to say."""


class PrivateServer(Protocol):
    """What the supervisor needs to know of slapd, Dovecot or a gateway."""

    def prepare(self) -> None:
        """Write configuration, clear what a killed predecessor left; called before every start."""
        ...

    def command(self) -> Sequence[str]:
        """argv of the server, staying in the foreground."""
        ...

    def ready(self) -> bool:
        """Whether it answers now; blocking up to a second or so, called in a thread."""
        ...


class StartError(Exception):
    """A child did not become ready; the message names it and its log file."""


@dataclass
class _Child:
    name: str
    server: PrivateServer
    process: asyncio.subprocess.Process
    clean: Callable[[bytes], bytes] | None = None
    outlives: bool = False
    holds_keys: bool = False
    keeper: asyncio.Task[None] | None = None


class Supervisor:
    """Owns the children of one `relais up`."""

    def __init__(self, log_directory: Path) -> None:
        self._log_directory = log_directory
        self._children: list[_Child] = []
        self._copies: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(
        self,
        name: str,
        server: PrivateServer,
        seconds: float = 60.0,
        *,
        clean: Callable[[bytes], bytes] | None = None,
        outlives: bool = False,
        holds_keys: bool = False,
    ) -> None:
        """Start one child and return when it is ready; raises `StartError`.

        A child that stops at once is tried again for a few seconds, and at least once however slow the machine is: one
        of a killed supervisor's may still be ending, or somebody had its port for a moment.
        `clean` is applied to each line the child prints before it is written to its log. One that `outlives` the others
        is ended after them: they need it to the last. Only one that `holds_keys` is told of systemd's credentials.
        """
        loop = asyncio.get_running_loop()
        begun, starts = loop.time(), 1
        process = await self._first(name, server, clean, holds_keys)
        child = _Child(name, server, process, clean, outlives, holds_keys)
        self._children.append(child)
        while not await asyncio.to_thread(server.ready):
            status = child.process.returncode
            if status is not None:
                if starts > 1 and loop.time() > begun + _START_AGAIN_SECONDS:
                    raise StartError(f"{name} stopped at start with status {status}: see {self.log(name)}")
                _kill_session(child.process.pid)
                await asyncio.sleep(0.5)
                child.process = await self._first(name, server, clean, holds_keys)
                starts += 1
            if loop.time() > begun + seconds:
                raise StartError(f"{name} did not answer within {seconds:g} s: see {self.log(name)}")
            await asyncio.sleep(0.02)
        child.keeper = asyncio.create_task(self._keep(child), name=f"keep {name}")

    def log(self, name: str) -> Path:
        """Where a child's output goes."""
        return self._log_directory / f"{name}.log"

    def pids(self) -> dict[str, int]:
        """Process ids by name, for `relais doctor` and the tests that kill."""
        return {child.name: child.process.pid for child in self._children}

    async def stop(self, seconds: float = 10.0) -> None:
        """Terminate all children, last started first and those that outlive the others at the end, and wait; what does
        not end in time is killed."""
        self._stopping = True
        ending = self._children[::-1]
        ending.sort(key=lambda child: child.outlives)
        for child in ending:
            if child.keeper is not None:
                child.keeper.cancel()
                await asyncio.gather(child.keeper, return_exceptions=True)
            await _end(child.process, seconds)
        self._children.clear()
        if self._copies:
            await asyncio.wait(self._copies, timeout=_LAST_WORDS_SECONDS)

    async def _first(
        self, name: str, server: PrivateServer, clean: Callable[[bytes], bytes] | None, holds_keys: bool
    ) -> asyncio.subprocess.Process:
        try:
            return await self._spawn(name, server, clean, holds_keys)
        except Exception as error:  # each server has its own ways to say what it lacks
            raise StartError(f"{name} cannot be started: {error}") from error

    async def _spawn(
        self, name: str, server: PrivateServer, clean: Callable[[bytes], bytes] | None, holds_keys: bool
    ) -> asyncio.subprocess.Process:
        await asyncio.to_thread(server.prepare)
        output = os.open(self.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *server.command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output if clean is None else asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                env=None if holds_keys else _without_credentials(),
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
            if clean is not None and process.stdout is not None:
                copy = asyncio.create_task(_copy(process.stdout, os.dup(output), clean), name=f"log {name}")
                self._copies.add(copy)
                copy.add_done_callback(self._copies.discard)
            return process
        finally:
            os.close(output)

    async def _keep(self, child: _Child) -> None:
        """Restart the child for ever, slower while it keeps dying at once."""
        pause = 0.0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            status = await child.process.wait()
            if self._stopping:
                return
            pause = 0.0 if loop.time() - started > 10.0 else min(max(pause * 2, 0.1), 10.0)
            log.warning("child.died", child=child.name, status=status, restart_in=pause)
            _kill_session(child.process.pid)
            await asyncio.sleep(pause)
            while True:
                try:
                    child.process = await self._spawn(child.name, child.server, child.clean, child.holds_keys)
                    break
                except Exception as error:  # a full disk, a file that is gone: whatever it is, it may pass
                    log.error("child.not-restarted", child=child.name, exc_info=error)
                    pause = min(max(pause * 2, 0.5), 10.0)
                    await asyncio.sleep(pause)


def _without_credentials() -> dict[str, str]:
    """The environment without the way to the key-encryption key and PINs that systemd hands over."""
    return {name: value for name, value in os.environ.items() if name != "CREDENTIALS_DIRECTORY"}


async def _copy(lines: asyncio.StreamReader, output: int, clean: Callable[[bytes], bytes]) -> None:
    """What a child prints, line by line, until all who hold its pipe are gone."""
    try:
        while True:
            try:
                line = await lines.readline()
            except ValueError:  # longer than the reader takes: not worth a child that cannot print any more
                continue
            if not line:
                return
            with contextlib.suppress(OSError):  # a full disk costs log lines, not the child
                os.write(output, clean(line))
    finally:
        os.close(output)


def _kill_session(leader: int) -> None:
    """What a killed master left of its session (Dovecot's workers hold its sockets) must go before it starts again."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


async def _end(process: asyncio.subprocess.Process, seconds: float) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            log.warning("child.killed", pid=process.pid)
    _kill_session(process.pid)
    await process.wait()
