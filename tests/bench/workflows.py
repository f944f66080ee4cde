"""What the bench runs: the user code of the suite's executor. The floor's executor calls the same functions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from onward import component, workflow


@component
async def first(topic: str) -> str:
    """Return a little."""
    return f"{topic}: outline"


@component
async def second(outline: str) -> str:
    """Return a little."""
    return f"{outline}, draft"


@component
async def third(draft: str) -> str:
    """Return a little."""
    return f"{draft}, done"


@workflow
async def three(topic: str) -> str:
    """Call three components, one after the other."""
    return await third(await second(await first(topic)))


@workflow
async def deltas(begin: float, count: int, period_ms: int) -> AsyncIterator[str]:
    """Yield what `stamps` does."""
    async for text in stamps(begin, count, period_ms):
        yield text


async def stamps(begin: float, count: int, period_ms: int) -> AsyncIterator[str]:
    """Yield the time in nanoseconds, `count` times, from `begin` (in seconds) on, one each `period_ms`.

    The pace is kept on average, however late the last one was, and by one that begins late.
    """
    due = max(begin, time.time())
    for _ in range(count):
        await asyncio.sleep(max(0.0, due - time.time()))
        yield str(time.time_ns())
        due += period_ms / 1000
