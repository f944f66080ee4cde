"""A time limit for what is waited for again and again, each time until another moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Alarm:
    """What asyncio.timeout does, with one timer for many waits.

    Chunks of a model's answer come in milliseconds, and each may take a minute: a timer made and cancelled for every
    one costs more than the chunk.
    """

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._set_for = 0.0
        self._until = 0.0
        self._task: asyncio.Task[object] | None = None
        """Who waits."""
        self._rang = False

    async def within(self, work: Awaitable[T], until: float) -> T:
        """Wait for something, no longer than until a time as time.monotonic() tells it.

        Raises:
            TimeoutError: It has come.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        before = task.cancelling()
        self._task, self._until, self._rang = task, until, False
        if self._timer is None or until < self._set_for:
            self._set(loop)
        try:
            return await work
        except asyncio.CancelledError:
            if self._rang and task.uncancel() <= before:
                raise TimeoutError from None
            raise
        finally:
            self._task = None

    def off(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        self.off()
        self._set_for = self._until
        self._timer = loop.call_later(self._until - time.monotonic(), self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._task is None:
            return  # the next wait sets it
        if time.monotonic() < self._until:
            self._set(loop)
            return
        self._rang = True
        self._task.cancel()
