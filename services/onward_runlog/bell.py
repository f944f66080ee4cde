"""Wakes the one task that waits for it."""

from __future__ import annotations

import asyncio


class Bell:
    """An asyncio.Event for one task that serves for ever: a ring counts once, and is over when it was answered.

    Unlike that it does not ask at each wait for the running loop, and with it the kernel for the process.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake who waits, or who waits next."""
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def answer(self) -> None:
        """Wait until it was rung since the last answer."""
        if not self._rung:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._rung = False
