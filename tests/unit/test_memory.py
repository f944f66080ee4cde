"""What the log in memory can do beyond the promises of every log: be away, be slow, and lose its executor."""

from __future__ import annotations

import asyncio

import pytest

from onward.log import UNSENT_EVENTS_MAX, AttemptFenced
from onward.memory import MemoryRun
from onward.v1.event_pb2 import Event, RunStateChanged, StatusUpdated
from onward.v1.run_pb2 import RUN_STATE_RUNNING


def status(message: str) -> Event:
    return Event(status_updated=StatusUpdated(message=message))


async def test_nothing_arrives_while_the_store_is_away() -> None:
    """Posted events wait, and an append returns once the store is back."""
    run = MemoryRun()
    log = run.begin()
    with run.offline():
        log.post(status("a"))
        appending = asyncio.ensure_future(log.append(status("b")))
        await asyncio.sleep(0)
        assert len(run.events) == 1
        assert not appending.done()
    assert await appending == 3


async def test_room_runs_out_while_the_store_is_away() -> None:
    """User code may be ahead by so many events, then it waits."""
    run = MemoryRun()
    log = run.begin()
    with run.offline():
        for number in range(UNSENT_EVENTS_MAX - 1):
            log.post(status(str(number)))
        await log.room()
        assert not log.crowded
        log.post(status("one too many"))
        assert log.crowded
        waiting = asyncio.ensure_future(log.room())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
    assert len(run.events) == UNSENT_EVENTS_MAX + 1


async def test_an_attempt_dies_right_after_an_offset() -> None:
    """The event at the offset is in the log; whoever wrote it never learns."""
    run = MemoryRun()
    log = run.begin(dies_after=2)
    with pytest.raises(AttemptFenced):
        await log.append(status("a"), status("b"))
    assert len(run.events) == 2


async def test_a_run_does_not_finish_into_a_state_that_is_no_end() -> None:
    """A mistake of the engine is loud."""
    log = MemoryRun().begin()
    with pytest.raises(ValueError, match="RUN_STATE_RUNNING"):
        await log.finish(Event(run_state_changed=RunStateChanged(state=RUN_STATE_RUNNING)))
