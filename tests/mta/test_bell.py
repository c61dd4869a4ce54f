"""The repeated turns of a task: what wakes it, what ends it, and that nothing rung is slept through."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mta.bell import Bell


class Turns:
    """Counts its turns and says each."""

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.taken = 0
        self.begun: asyncio.Queue[int] = asyncio.Queue()

    async def turn(self) -> float:
        self.taken += 1
        await self.begun.put(self.taken)
        await asyncio.sleep(0)
        return self.pause


async def test_a_turn_at_once_and_another_at_each_ring_from_any_thread() -> None:
    bell, turns = Bell(), Turns(3600)
    task = asyncio.create_task(bell.run(turns.turn))
    async with asyncio.timeout(10):
        assert await turns.begun.get() == 1
        threading.Thread(target=bell.ring).start()
        assert await turns.begun.get() == 2
        bell.ring_here()
        assert await turns.begun.get() == 3
        bell.stop()
        await task
    assert bell.silent and turns.taken == 3


async def test_a_ring_during_a_turn_is_answered_by_another_turn() -> None:
    bell, taken = Bell(), 0

    async def turn() -> float:
        nonlocal taken
        taken += 1
        bell.ring_here() if taken == 1 else bell.stop()
        return 3600

    async with asyncio.timeout(10):
        await bell.run(turn)
    assert taken == 2


async def test_no_sleep_when_none_is_asked_for_and_a_short_one_ends_by_itself() -> None:
    for pause in (0, 0.01):
        bell, turns = Bell(), Turns(pause)
        task = asyncio.create_task(bell.run(turns.turn))
        async with asyncio.timeout(10):
            for number in (1, 2, 3):
                assert await turns.begun.get() == number
            bell.stop()
            await task


async def test_the_last_thing_is_done_after_the_turn_under_way_and_is_waited_for() -> None:
    bell, order, begun, go_on = Bell(), [], asyncio.Event(), asyncio.Event()

    async def turn() -> float:
        begun.set()
        await go_on.wait()
        order.append("end of turn")
        return 3600

    async def last() -> None:
        await asyncio.sleep(0)
        order.append("last")

    task = asyncio.create_task(bell.run(turn, last))
    async with asyncio.timeout(10):
        await begun.wait()
        bell.stop()
        assert bell.stopping
        go_on.set()
        await bell.finished()
    assert order == ["end of turn", "last"]
    await task


async def test_stopped_before_it_began() -> None:
    bell, turns = Bell(), Turns(0)
    bell.ring()  # nobody is there to hear it
    bell.stop()
    async with asyncio.timeout(10):
        await bell.finished()  # nothing to wait for
        await bell.run(turns.turn)
        await bell.finished()
    assert turns.taken == 0


async def test_what_a_turn_raises_ends_the_task_and_nobody_waits_for_ever() -> None:
    bell = Bell()

    async def turn() -> float:
        raise OSError

    with pytest.raises(OSError):
        await bell.run(turn)
    async with asyncio.timeout(10):
        await bell.finished()
    assert bell.silent and not bell.stopping


def test_a_ring_after_the_end_of_the_loop_is_harmless() -> None:
    bell, turns = Bell(), Turns(3600)

    async def once() -> None:
        task = asyncio.create_task(bell.run(turns.turn))
        await turns.begun.get()
        bell.stop()
        await task

    asyncio.run(once())
    bell.ring()
