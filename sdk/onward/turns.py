"""Whose turn it is: what callers wait for reaches them one after the other, in the order of the log.

Code that takes the first of several results goes by what it has seen when it looks. That has to be the same in every
attempt, and the log does not tell how long after one result the next one came. So the next is given when the one before
has had its effect: when the event loop has come to rest. It is so the first time as on replay.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

logger = logging.getLogger(__name__)

SETTLE_TURNS = 8
"""After so many turns of the event loop what was given has had its effect, also where the loop never rests."""

NEVER = 2**63 - 1
"""An offset after every other."""

_NOTHING: deque[object] = deque()


class Turns:
    """The order in which one attempt gives its code what it waits for.

    Args:
        blocked: Tells whether what stands at an offset has to wait for something that has not come yet. `look` asks
            again.
    """

    def __init__(self, blocked: Callable[[int], bool] | None = None) -> None:
        self._blocked = blocked
        self._loop = asyncio.get_running_loop()
        self._ready = _ready_of(self._loop)
        """What the loop has to do now. With a loop that does not tell, turns are counted."""
        self.newest = 0
        """The offset up to which everything was given that reached anybody."""
        self._pending: list[tuple[int, bool, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._left = 0
        """Turns until what was given last has had its effect."""
        self._last: asyncio.Task[Any] | None = None
        """Who was given something last. What that one does with it has had its effect when it asks again."""
        self._scheduled = False
        self._spare: list[Callable[[], None]] = []
        """What nobody waits for."""
        self._spare_left = 0
        """Turns until it is done in any case."""

    @property
    def first(self) -> int:
        """The offset that is waited for and comes first; 0 where nobody waits."""
        while self._pending and self._pending[0][3].done():
            heappop(self._pending)  # Whoever waited was cancelled.
        return self._pending[0][0] if self._pending else 0

    async def turn(self, offset: int, *, yields: bool = False, after: bool = False) -> None:
        """Wait until it is the turn of what stands at `offset`.

        Args:
            offset: Its place in the log.
            yields: Let the event loop have a turn in any case: much that is there already comes in a row.
            after: It has no place of its own. It came after what stands there, and before what stands next.
        """
        if not yields and self.at_once(offset):
            return
        future = self._loop.create_future()
        heappush(self._pending, (offset, after, next(self._numbers), future))
        self.look()
        await future
        self._came(offset)
        self._last = asyncio.current_task(self._loop)

    def at_once(self, offset: int) -> bool:
        """Tell whether it is the turn of what stands at `offset` already, and if so take it."""
        task = asyncio.current_task(self._loop)
        if self._pending or (self._left and task is not self._last):
            return False
        if self._blocked is not None and self._blocked(offset):
            return False
        self._came(offset)
        self._last = task
        self._left = SETTLE_TURNS
        if not self._scheduled:
            self.look()
        return True

    @property
    def at_rest(self) -> bool:
        """Whether nobody waits for a turn, and what was given last has had its effect."""
        return not self.first and not self._left

    def when_at_rest(self, work: Callable[[], None]) -> None:
        """Do something that nobody waits for when the loop has nothing else to do, or else after SETTLE_TURNS."""
        if not self._spare:
            self._spare_left = SETTLE_TURNS
        self._spare.append(work)
        self.look()

    def rest(self) -> None:
        """Do now what `when_at_rest` was given."""
        spare, self._spare = self._spare, []
        for work in spare:
            try:
                work()
            except Exception:
                logger.exception("something that nobody waited for failed")

    def look(self) -> None:
        """See whether somebody's turn has come."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _came(self, offset: int) -> None:
        if self.newest < offset < NEVER:
            self.newest = offset

    def _given(self, task: asyncio.Task[Any] | None) -> None:
        self._last = task
        self._left = SETTLE_TURNS
        self.look()

    def _pump(self) -> None:
        self._scheduled = False
        at_rest = self._ready == _NOTHING
        if self._spare:
            if at_rest or not self._spare_left:
                self.rest()
            else:
                self._spare_left -= 1
                self.look()
        if self._left and not at_rest:
            self._left -= 1
            self.look()
            return
        self._left = 0
        self._last = None
        offset = self.first
        if offset and not (self._blocked is not None and self._blocked(offset)):
            future = heappop(self._pending)[3]
            future.set_result(None)
            self._given(None)


def _ready_of(loop: asyncio.AbstractEventLoop) -> deque[Any] | None:
    """Return the callbacks that a loop has to call now; None where it is neither asyncio's own nor uvloop."""
    ready: deque[Any] | None = getattr(loop, "_ready", None)
    if ready is not None:
        return ready
    # uvloop shows it to nobody but the collector. Counted turns would be eight where most often one is enough.
    mark = loop.call_soon(_nothing)
    mark.cancel()
    return next((one for one in gc.get_referents(loop) if isinstance(one, deque) and one and one[-1] is mark), None)


def _nothing() -> None:
    pass
