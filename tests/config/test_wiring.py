"""What the composition root itself decides: one process per state, room for other destinations, logs without texts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import structlog

from config import logs
from config.gateway.store import own
from config.gateway.targets import worker_options
from config.settings import SettingsError
from config.wiring import log_loop_error


async def test_one_process_owns_a_state_and_a_successor_waits_for_it(tmp_path: Path) -> None:
    lock = tmp_path / "serve.lock"
    held = await own(lock, 10.0)
    with pytest.raises(SettingsError, match="another relais serve"):
        await own(lock, 0.05)
    waiting = asyncio.create_task(own(lock, 10.0))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    os.close(held)
    os.close(await waiting)


def test_a_stalled_destination_leaves_places_for_others() -> None:
    for configured in (1, 8):
        options = worker_options(configured)
        assert options.per_destination == configured
        assert options.concurrency > options.per_destination


async def test_what_a_task_dies_of_is_logged_without_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.get_running_loop().set_exception_handler(log_loop_error)
    with structlog.testing.capture_logs(processors=[logs._without_exception_text]) as captured:

        async def dies() -> None:
            raise ValueError("patient ESSAI-UN 279035121518989")

        task = asyncio.create_task(dies())
        await asyncio.wait((task,))
        del task
        await asyncio.sleep(0)
    assert captured[0]["exception"] == "ValueError"
    assert "ESSAI" not in str(captured)
