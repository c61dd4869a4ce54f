"""Children: restarted when they die, whatever their restart meets; never orphaned, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

from config import supervise
from config.logs import without_addresses
from config.supervise import StartError, Supervisor


class Server:
    """A process that runs `first`, writes `up`, then runs `program`; `prepare` fails as told."""

    def __init__(self, place: Path, program: str = "import signal; signal.pause()", *, first: str = "") -> None:
        self.up = place / "up"
        self.program = f"{first}\nimport pathlib; pathlib.Path({str(self.up)!r}).touch()\n{program}"
        self.failures: list[Exception] = []
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1
        self.up.unlink(missing_ok=True)
        if self.failures:
            raise self.failures.pop(0)

    def command(self) -> tuple[str, ...]:
        return (sys.executable, "-c", self.program)

    def ready(self) -> bool:
        return self.up.exists()


@asynccontextmanager
async def supervising(place: Path) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(place)
    try:
        with structlog.testing.capture_logs():
            yield supervisor
    finally:
        await supervisor.stop(5)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - processes have no event for it
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_started_restarted_stopped(tmp_path: Path) -> None:
    server = Server(tmp_path)
    async with supervising(tmp_path) as supervisor:
        await supervisor.start("one", server)
        first = supervisor.pids()["one"]
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.pids()["one"] != first and server.ready())
        second = supervisor.pids()["one"]
        assert alive(second)
    assert not alive(second)
    assert server.prepared == 2


async def test_a_restart_that_fails_is_tried_again(tmp_path: Path) -> None:
    server = Server(tmp_path)
    async with supervising(tmp_path) as supervisor:
        await supervisor.start("one", server)
        first = supervisor.pids()["one"]
        server.failures = [OSError(28, "No space left on device"), ValueError("the configuration is refused")]
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.pids()["one"] != first and server.ready())
        assert server.prepared == 4


async def test_stop_ends_the_others_when_one_keeper_has_failed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    supervisor = Supervisor(tmp_path)
    await supervisor.start("a", Server(tmp_path / "a"))
    await supervisor.start("b", Server(tmp_path / "b"))
    pids = supervisor.pids()
    broken = supervisor._children[1]
    assert broken.keeper is not None
    broken.keeper.cancel()

    async def bug() -> None:
        raise LookupError

    broken.keeper = asyncio.create_task(bug())
    await supervisor.stop(5)
    assert not any(alive(pid) for pid in pids.values())


@pytest.mark.parametrize("patience", [5.0, 0.0], ids=["soon", "after a slow start"])
async def test_one_that_stops_at_once_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """As after a kill of the supervisor: the port or the lock is still held for a moment."""
    monkeypatch.setattr(supervise, "_START_AGAIN_SECONDS", patience)
    held = tmp_path / "held"
    held.touch()
    server = Server(tmp_path, "signal.pause()")
    server.program = f"import os, signal, sys; os.path.exists({str(held)!r}) and sys.exit(3); " + server.program
    async with supervising(tmp_path) as supervisor:
        starting = asyncio.create_task(supervisor.start("one", server))
        await until(lambda: server.prepared == 2)
        held.unlink()
        await starting
        assert alive(supervisor.pids()["one"])


async def test_one_that_never_starts_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "_START_AGAIN_SECONDS", 0.0)
    server = Server(tmp_path)
    server.program = "raise SystemExit(3)"
    async with supervising(tmp_path) as supervisor:
        with pytest.raises(StartError, match=r"status 3: see .*one\.log"):
            await supervisor.start("one", server)
        silent = Server(tmp_path)
        silent.program = "import signal; signal.pause()"
        with pytest.raises(StartError, match=r"did not answer within 0\.2 s"):
            await supervisor.start("two", silent, 0.2)
        silent.failures = [LookupError("a file is missing")]
        with pytest.raises(StartError, match="cannot be started: a file is missing"):
            await supervisor.start("three", silent)
        pids = supervisor.pids()
    assert not any(alive(pid) for pid in pids.values()), "one that was not ready in time is ended too"


async def test_a_child_that_ignores_sigterm_is_killed_with_what_it_started(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.program = (
        "import pathlib, signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"child = subprocess.Popen(['sleep', '600']); pathlib.Path({str(server.up)!r}).write_text(str(child.pid));"
        "signal.pause()"
    )
    supervisor = Supervisor(tmp_path)
    await supervisor.start("deaf", server)
    await until(lambda: bool(server.up.read_text()))
    grandchild, pid = int(server.up.read_text()), supervisor.pids()["deaf"]
    with structlog.testing.capture_logs() as captured:
        await supervisor.stop(0.2)
    assert [entry["event"] for entry in captured] == ["child.killed"]
    assert not alive(pid)
    await until(lambda: not alive(grandchild))


async def test_what_children_print_is_cleaned(tmp_path: Path) -> None:
    """Even when it does not end its lines, and after a restart."""
    server = Server(
        tmp_path, "import signal; print('to 1@x.fr', 'y' * 200000, sep='\\n'); print('a@b.fr'); signal.pause()"
    )
    server.program = server.program.replace("signal.pause()", "sys.stdout.flush(); signal.pause()", 1)
    server.program = "import sys; " + server.program
    async with supervising(tmp_path) as supervisor:
        await supervisor.start("one", server, clean=without_addresses)
        log = supervisor.log("one")
        await until(lambda: log.read_text().count("<address>\n") == 2)
        os.kill(supervisor.pids()["one"], signal.SIGKILL)
        await until(lambda: log.read_text().count("<address>\n") == 4)
        assert "@" not in log.read_text() and log.stat().st_mode & 0o777 == 0o600


async def test_what_children_print_is_private(tmp_path: Path) -> None:
    server = Server(tmp_path, "import signal; print('hello', flush=True); signal.pause()")
    async with supervising(tmp_path) as supervisor:
        await supervisor.start("one", server)
        await until(lambda: supervisor.log("one").read_text() == "hello\n")
        assert supervisor.log("one").stat().st_mode & 0o777 == 0o600


async def test_what_others_need_to_the_last_is_ended_last(tmp_path: Path) -> None:
    ended = tmp_path / "ended"

    def telling(name: str) -> Server:
        place = tmp_path / name
        place.mkdir()
        return Server(
            place,
            "signal.pause()",
            first="import signal, sys\n"
            f"def end(*_):\n    open({str(ended)!r}, 'a').write({name!r} + ' ')\n    sys.exit()\n"
            "signal.signal(signal.SIGTERM, end)",
        )

    async with supervising(tmp_path) as supervisor:
        await supervisor.start("first", telling("first"), outlives=True)
        await supervisor.start("second", telling("second"))
        await supervisor.start("third", telling("third"), outlives=True)
        await supervisor.start("fourth", telling("fourth"))
    assert ended.read_text().split() == ["fourth", "second", "third", "first"]
