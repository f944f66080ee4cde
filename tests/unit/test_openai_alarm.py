"""One timer limits many waits, as asyncio.timeout would each of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from onward.openai.alarm import Alarm

LONG_S = 600.0


@pytest.fixture
async def alarm() -> AsyncIterator[Alarm]:
    made = Alarm()
    yield made
    made.off()


def at(seconds: float) -> float:
    return time.monotonic() + seconds


async def test_what_comes_in_time_is_given(alarm: Alarm) -> None:
    for number in range(3):
        assert await alarm.within(asyncio.sleep(0, number), at(LONG_S)) == number


async def test_what_does_not_come_is_given_up(alarm: Alarm) -> None:
    """Also when a wait before had more time, and when one before was given up."""
    await alarm.within(asyncio.sleep(0), at(LONG_S))
    for _ in range(2):
        waited = asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await alarm.within(waited, at(0.01))
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_later_wait_has_its_own_time(alarm: Alarm) -> None:
    """The timer of an earlier one does not end it."""
    until = at(0.01)
    await alarm.within(asyncio.sleep(0), until)
    passed = asyncio.Event()
    asyncio.get_running_loop().call_at(until + 0.02, passed.set)
    await alarm.within(passed.wait(), at(LONG_S))
    assert time.monotonic() > until


async def test_a_time_that_is_over_is_over_at_once(alarm: Alarm) -> None:
    with pytest.raises(TimeoutError):
        await alarm.within(asyncio.Event().wait(), at(-1))


async def test_who_is_cancelled_is_cancelled(alarm: Alarm) -> None:
    """It is not taken for the end of the time."""
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(alarm.within(work(), at(LONG_S)))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_errors_are_those_of_the_work(alarm: Alarm) -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await alarm.within(fail(), at(LONG_S))
