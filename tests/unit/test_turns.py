"""The order in which what is waited for is given: one after the other, each when the one before has had its effect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from onward.turns import SETTLE_TURNS, Turns

LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


class Counting(Turns):
    """Counts how often it has looked."""

    looks = 0

    def look(self) -> None:
        self.looks += 1
        super().look()


@LOOPS
def test_a_loop_that_rests_is_seen_to_rest(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """On uvloop, too: there the next in turn waited for as many turns of the loop as where that never rests."""

    async def looks() -> int:
        turns = Counting()
        assert turns.at_once(1)
        await asyncio.create_task(turns.turn(2))
        return turns.looks

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(looks()) < SETTLE_TURNS


@LOOPS
def test_what_nobody_waits_for_is_done_once_the_loop_rests(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """After whatever else was to be done by then, and what that brought with it."""

    async def order() -> list[str]:
        turns, seen = Turns(), []
        done = asyncio.Event()

        def spare() -> None:
            seen.append("spare")
            done.set()

        async def waited_for() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append("waited for")

        turns.when_at_rest(spare)
        busy = asyncio.create_task(waited_for())
        await done.wait()
        assert busy.done()
        return seen

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(order()) == ["waited for"] * 3 + ["spare"]


@LOOPS
def test_it_is_done_where_the_loop_never_rests(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """And holds up nobody's turn."""

    async def turns_until_done() -> int:
        turns, done = Turns(), []
        turns.when_at_rest(lambda: done.append(True))
        assert turns.at_once(1)
        spun = 0
        while not done:
            await asyncio.sleep(0)
            spun += 1
        return spun

    with asyncio.Runner(loop_factory=loop) as runner:
        assert SETTLE_TURNS <= runner.run(turns_until_done()) <= SETTLE_TURNS + 2


async def test_it_can_be_had_at_once() -> None:
    """And then not a second time."""
    turns, done = Turns(), []
    turns.when_at_rest(lambda: done.append(True))
    turns.rest()
    assert done == [True]
    await turns.turn(1, yields=True)
    assert done == [True]
