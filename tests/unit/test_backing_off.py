"""The waits between tries: a run that does nothing else parks for a long one, and goes on with its tries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.unit.test_replay import of

from onward import ComponentError, component, status, workflow
from onward.engine import Attempt
from onward.memory import MemoryRun
from onward.testing.waking import Clock
from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_CANCELLED,
    ATTEMPT_CAUSE_STARTED,
    ATTEMPT_CAUSE_WOKEN,
    WAIT_KIND_RETRY,
    AttemptCause,
    RunWaiting,
)
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, RUN_STATE_SUCCEEDED, RUN_STATE_WAITING, Payload, Run
from onward.views import fold
from onward.waits import PACE, Pace


class Busy(Exception):
    retry_after_s = 600.0


@pytest.fixture
def clock() -> Iterator[Clock]:
    """The time, which a test moves. A run parks as soon as the loop rests."""
    clock = Clock()
    token = PACE.set(Pace(clock=clock, quiet_s=0.0))
    yield clock
    PACE.reset(token)


async def begin(flow: Any, memory: MemoryRun, cause: AttemptCause.ValueType = ATTEMPT_CAUSE_STARTED) -> None:
    """Begin an attempt, and return when it has ended or parked the run."""
    log = memory.begin()
    run = Run(run_id="r", namespace="n", workflow=flow.name, input=Payload(data=b"{}"), state=memory.state)
    async with asyncio.timeout(20):
        await Attempt(flow, run=run, log=log, attempt=log.attempt, cause=cause, executor_id="e", deployment="d").run()


async def woken(flow: Any, memory: MemoryRun, clock: Clock) -> None:
    """Let the time come that a parked run waits for, and begin its next attempt."""
    clock.ahead_s += parked_for(memory).wake_time.ToNanoseconds() / 1e9 - clock()
    memory.wake()
    await begin(flow, memory, ATTEMPT_CAUSE_WOKEN)


def parked_for(memory: MemoryRun) -> RunWaiting:
    assert memory.state == RUN_STATE_WAITING, memory.events[-1]
    waiting: RunWaiting = memory.events[-1].run_waiting
    return waiting


@pytest.mark.parametrize("read", [False, True], ids=["awaited", "read as a stream"])
async def test_a_run_parks_between_tries_that_are_far_apart(clock: Clock, read: bool) -> None:
    """It says what for and until when. Then the next try begins: none is lost or given back."""
    tries = 0

    @component.retry(3, 0)
    async def busy() -> AsyncIterator[str]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Busy
        yield "at last"

    @workflow
    async def flow() -> str:
        return "".join([piece async for piece in busy()]) if read else await busy()

    memory = MemoryRun()
    await begin(flow, memory)
    for number in (1, 2):
        assert tries == number
        waiting = parked_for(memory)
        assert (waiting.reason, *waiting.kinds) == ("retry of busy", WAIT_KIND_RETRY)
        assert waiting.wake_time.ToNanoseconds() / 1e9 == pytest.approx(clock() + 600, abs=5)
        await woken(flow, memory, clock)
    assert memory.events[-1].run_state_changed.state == RUN_STATE_SUCCEEDED
    assert memory.events[-1].run_state_changed.output.data == b'"at last"'
    assert [one.try_number for one in of(memory.events, "component_retrying")] == [1, 2]


async def test_who_is_woken_early_waits_for_the_rest(clock: Clock) -> None:
    """By a person, or by a clock that is wrong."""
    tries = 0

    @component.retry(2, 0)
    async def busy() -> None:
        nonlocal tries
        tries += 1
        raise Busy

    @workflow
    async def flow() -> None:
        await busy()

    memory = MemoryRun()
    await begin(flow, memory)
    clock.ahead_s += 400
    memory.wake()
    await begin(flow, memory, ATTEMPT_CAUSE_WOKEN)
    assert tries == 1
    assert parked_for(memory).wake_time.ToNanoseconds() / 1e9 == pytest.approx(clock() + 200, abs=5)


async def test_a_run_that_does_something_else_stays(clock: Clock) -> None:
    """Until that has ended."""
    release, failed = asyncio.Event(), asyncio.Event()

    @component.retry(2, 0)
    async def busy() -> None:
        failed.set()
        raise Busy

    @component
    async def work() -> None:
        await release.wait()

    @workflow
    async def flow() -> None:
        await asyncio.gather(busy(), work())

    memory = MemoryRun()
    going = asyncio.create_task(begin(flow, memory))
    await failed.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    assert memory.state != RUN_STATE_WAITING
    release.set()
    await going
    assert parked_for(memory).reason == "retry of busy"


async def test_the_time_of_all_tries_wakes_the_run(clock: Clock) -> None:
    """It ends in the middle of a wait as ever."""

    @component.retry(2, 0).timeout(total="5m")
    async def busy() -> None:
        raise Busy

    @workflow
    async def flow() -> str:
        try:
            await busy()
        except ComponentError as error:
            return error.reason
        return ""

    memory = MemoryRun()
    await begin(flow, memory)
    assert parked_for(memory).wake_time.ToNanoseconds() / 1e9 == pytest.approx(clock() + 300, abs=5)
    await woken(flow, memory, clock)
    assert memory.events[-1].run_state_changed.output.data == b'"TIMEOUT"'


async def test_a_run_that_is_cancelled_between_tries_cleans_up(clock: Clock) -> None:
    """Its code gets CancelledError where it waits, and no try follows."""
    tries = 0

    @component.retry(2, 0)
    async def busy() -> None:
        nonlocal tries
        tries += 1
        raise Busy

    @workflow
    async def flow() -> None:
        try:
            await busy()
        except asyncio.CancelledError:
            status("cleaning")
            raise

    memory = MemoryRun()
    await begin(flow, memory)
    parked_for(memory)
    memory.cancel()
    await begin(flow, memory, ATTEMPT_CAUSE_CANCELLED)
    assert memory.state == RUN_STATE_CANCELLED
    assert [line.message for line in fold(memory.events).statuses] == ["cleaning"]
    assert tries == 1
