"""Places in the pool: nobody who needs one is left waiting while there is one."""

from __future__ import annotations

import asyncio

from mta.smtp.destination import Destination
from mta.smtp.pool import Pool, PoolOptions


class Waiting(Destination):
    """A destination that wants a connection, or wants none any more."""

    def __init__(self, pool: Pool, *, needs: bool) -> None:
        super().__init__(pool, open_one=lambda: asyncio.sleep(0))  # type: ignore[arg-type]
        self.pool, self.needs, self.got = pool, needs, False

    def dispatch(self) -> None:
        if self.needs and self.pool.take_place(self):
            self.needs, self.got = False, True


async def test_a_place_that_the_first_in_line_does_not_need_goes_to_the_next() -> None:
    pool = Pool(PoolOptions(connections=1))
    holder, first, second, third = (Waiting(pool, needs=True) for _ in range(4))
    for each in (holder, first, second, third):
        each.dispatch()
    assert [each.got for each in (holder, first, second, third)] == [True, False, False, False]
    first.needs = False
    pool.give_place()
    await asyncio.sleep(0)
    assert [each.got for each in (first, second, third)] == [False, True, False], "one place, one taker"
    pool.give_place()
    await asyncio.sleep(0)
    assert third.got
    assert pool.connections == 1
