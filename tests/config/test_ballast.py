"""A gateway on a full disk has the ballast's room to work off what it holds."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from config.backup.sources import _NOT_KEPT
from config.ballast import LOW_OCTETS, OCTETS, PLENTY_OCTETS, Ballast


def test_it_is_given_up_when_the_disk_is_full_and_laid_down_when_there_is_plenty(tmp_path: Path) -> None:
    free, file = PLENTY_OCTETS, tmp_path / "ballast"
    ballast = Ballast(tmp_path, lambda: free)
    ballast.look()
    assert not file.exists(), "there is not plenty"
    free += 1
    ballast.look()
    found = file.stat()
    assert (found.st_size, found.st_mode & 0o777) == (OCTETS, 0o600)
    assert found.st_blocks * 512 >= OCTETS, "a hole would give no room back"
    free = LOW_OCTETS
    ballast.look()
    assert file.exists(), "it is low, and there is still room"
    free -= 1
    ballast.look()
    assert not file.exists()
    ballast.look()
    assert not file.exists()
    assert file.name in _NOT_KEPT, "no backup carries it"


def test_a_disk_that_refuses_leaves_nothing_and_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "posix_fallocate", refusing)
    Ballast(tmp_path, lambda: PLENTY_OCTETS * 2).look()
    assert list(tmp_path.iterdir()) == []
    Ballast(tmp_path / "missing").look()


async def test_it_looks_until_it_is_stopped(tmp_path: Path) -> None:
    looked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def free() -> int:
        loop.call_soon_threadsafe(looked.set)
        return 0

    ballast = Ballast(tmp_path, free)
    running = asyncio.create_task(ballast.run())
    async with asyncio.timeout(10):
        await looked.wait()
        await ballast.stop()
        await running
