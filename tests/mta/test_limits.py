"""Quotas and the memory budget, with a clock of their own."""

from __future__ import annotations

import asyncio
import time

import pytest

from mta.smtp.limits import Hourly, MemoryBudget, Meter, Quota, Share, network_of

from .conftest import Clock


def test_an_hour_is_an_hour() -> None:
    clock = Clock(1000.0)
    hourly = Hourly(clock=clock)
    for _ in range(60):
        hourly.add("a", 1)
        clock.now += 60
    assert hourly.spent("a") == 60
    clock.now += 30 * 60
    assert 29 <= hourly.spent("a") <= 31
    clock.now += 3700
    assert hourly.spent("a") == 0
    assert hourly.spent("b") == 0


def test_names_are_bounded() -> None:
    hourly = Hourly(names=10, clock=Clock())
    for name in range(100):
        hourly.add(str(name), 1)
    assert sum(hourly.spent(str(name)) for name in range(100)) == 10


def test_quotas() -> None:
    clock = Clock()
    meter = Meter(clock)
    quota = Quota(connections=2, messages_per_hour=3, recipients_per_hour=5, bytes_per_hour=1000)
    assert [meter.enter("a", quota) for _ in range(3)] == [True, True, False]
    meter.leave("a")
    assert meter.enter("a", quota)
    assert meter.allows("a", quota, 1, 5, 1000)
    assert not meter.allows("a", quota, 1, 6, 0)
    assert not meter.allows("a", quota, 1, 1, 1001)
    meter.charge("a", 3, 3, 10)
    assert not meter.allows("a", quota, 1, 1, 1)
    assert meter.allows("b", quota, 1, 1, 1)
    clock.now += 3700
    assert meter.allows("a", quota, 1, 1, 1)
    assert meter.allows("a", Quota(), 10**9, 10**9, 10**12)


@pytest.mark.parametrize(
    ("client", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_client_is_counted_by_its_network(client: str, name: str) -> None:
    assert network_of(client) == name


async def test_memory_is_given_in_turn() -> None:
    budget, begun = MemoryBudget(100), Share()
    assert await budget.take(begun, 60, 0)
    assert not await budget.take(Share(), 60, 0.01)
    large = Share()
    first = asyncio.create_task(budget.take(large, 90, 10))
    await asyncio.sleep(0)
    second = asyncio.create_task(budget.take(Share(), 10, 10))
    await asyncio.sleep(0)
    assert not second.done(), "the small one does not overtake"
    more = asyncio.create_task(budget.take(begun, 30, 10))
    assert await more, "who holds some goes first"
    assert begun.octets == 90
    budget.give_back(begun)
    assert await first
    assert await second
    assert budget.taken == 100 == budget.most
    assert budget.refused == 1


async def test_one_that_gives_up_leaves_room_for_the_next() -> None:
    budget, first, next_one = MemoryBudget(100), Share(), Share()
    await budget.take(first, 60, 0)
    large = asyncio.create_task(budget.take(Share(), 100, 0.02))
    await asyncio.sleep(0)
    small = asyncio.create_task(budget.take(next_one, 40, 5))
    assert not await large
    assert await small
    gone = asyncio.create_task(budget.take(Share(), 10, 5))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    budget.give_back(first)
    budget.give_back(next_one)
    assert budget.taken == 0


async def test_what_is_larger_than_the_budget_goes_alone() -> None:
    budget, large = MemoryBudget(100), Share()
    assert await budget.take(large, 500, 0)
    assert not await budget.take(Share(), 1, 0)
    budget.give_back(large)
    assert await budget.take(Share(), 1, 0)
    assert not await budget.take(Share(), 500, 0)


async def test_what_is_granted_at_the_moment_of_giving_up_is_not_lost() -> None:
    budget, first, late = MemoryBudget(100), Share(), Share()
    await budget.take(first, 100, 0)
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(budget.take(late, 100, 0.01))
    await asyncio.sleep(0)
    at = loop.time() + 0.01
    loop.call_at(at - 1e-4, lambda: (time.sleep(0.002), budget.give_back(first)))  # then the timeout is due as well
    taken = await waiting
    assert taken == bool(late.octets), "who was told no has nothing"
    assert budget.taken == late.octets
    budget.give_back(late)
    assert budget.taken == 0
    assert await budget.take(Share(), 100, 0), "it is all free again"


async def test_one_holder_has_half_and_keeps_nobody_waiting() -> None:
    budget, mine = MemoryBudget(100), [Share("a") for _ in range(3)]
    assert await budget.take(mine[0], 40, 0)
    third = asyncio.create_task(budget.take(mine[1], 40, 5))
    await asyncio.sleep(0)
    assert not third.done(), "80 are more than half"
    assert await budget.take(Share("b"), 50, 0), "others do not wait for that"
    budget.give_back(mine[0])
    assert await third
    assert not await budget.take(mine[2], 11, 0)


async def test_a_message_larger_than_half_comes_in_when_its_holder_has_no_other() -> None:
    budget, large = MemoryBudget(100), Share("a")
    assert await budget.take(large, 90, 0)
    assert await budget.take(large, 10, 0), "and grows"


async def test_messages_that_grow_do_not_wait_for_each_other() -> None:
    budget = MemoryBudget(100)
    both = [Share("a"), Share("b")]
    for share in both:
        assert await budget.take(share, 50, 0)
    assert await budget.take(both[0], 50, 0), "one at a time may have more"
    other = asyncio.create_task(budget.take(both[1], 50, 5))
    await asyncio.sleep(0)
    assert not other.done()
    budget.give_back(both[0])
    assert await other
    budget.give_back(both[1])
    assert (budget.taken, budget.most) == (0, 150)
