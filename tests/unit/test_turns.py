"""The order in which what is waited for is given: one after the other, each when the one before has had its effect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from onward.turns import SETTLE_TURNS, Turns


class Counting(Turns):
    """Counts how often it has looked."""

    looks = 0

    def look(self) -> None:
        self.looks += 1
        super().look()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_loop_that_rests_is_seen_to_rest(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """On uvloop, too: there the next in turn waited for as many turns of the loop as where that never rests."""

    async def looks() -> int:
        turns = Counting()
        assert turns.at_once(1)
        await asyncio.create_task(turns.turn(2))
        return turns.looks

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(looks()) < SETTLE_TURNS
