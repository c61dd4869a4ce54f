"""Quotas and the memory budget, with a clock of their own."""

from __future__ import annotations

import asyncio

import pytest

from mta.smtp.limits import Hourly, MemoryBudget, Meter, Quota, network_of

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
    budget = MemoryBudget(100)
    assert await budget.take(60, 0)
    assert not await budget.take(60, 0.01)
    first = asyncio.create_task(budget.take(90, 10))
    await asyncio.sleep(0)
    second = asyncio.create_task(budget.take(10, 10))
    await asyncio.sleep(0)
    assert not second.done(), "the small one does not overtake"
    more = asyncio.create_task(budget.take(30, 10, more=True))
    assert await more, "who holds some goes first"
    budget.give_back(60)
    budget.give_back(30)
    assert await first
    assert await second
    assert budget.taken == 100 == budget.most
    assert budget.refused == 1


async def test_one_that_gives_up_leaves_room_for_the_next() -> None:
    budget = MemoryBudget(100)
    await budget.take(60, 0)
    large = asyncio.create_task(budget.take(100, 0.02))
    await asyncio.sleep(0)
    small = asyncio.create_task(budget.take(40, 5))
    assert not await large
    assert await small
    gone = asyncio.create_task(budget.take(10, 5))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    budget.give_back(100)
    assert budget.taken == 0


async def test_what_is_larger_than_the_budget_goes_alone() -> None:
    budget = MemoryBudget(100)
    assert await budget.take(500, 0)
    assert not await budget.take(1, 0)
    budget.give_back(500)
    assert await budget.take(1, 0)
    assert not await budget.take(500, 0)
