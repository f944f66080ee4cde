"""A cancelled run that another attempt cleans up after: its code is cancelled where it was, not on the way there."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from onward import component, status, workflow
from onward import map as omap
from onward.engine import Attempt
from onward.memory import MemoryRun
from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_CANCELLED,
    ATTEMPT_CAUSE_EXECUTOR_LOST,
    ATTEMPT_CAUSE_STARTED,
    AttemptCause,
    Event,
)
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, RUN_STATE_CANCELLING, RUN_STATE_RUNNING, Payload, Run

FOREVER_S = 3600.0
ran: list[str] = []
here = SimpleNamespace()


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()
    here.begun = asyncio.Event()
    here.wanted = 1


def attempt(flow: Any, memory: MemoryRun, cause: AttemptCause.ValueType) -> Attempt:
    log = memory.begin()
    state = RUN_STATE_CANCELLING if cause == ATTEMPT_CAUSE_CANCELLED else RUN_STATE_RUNNING
    return Attempt(
        flow,
        run=Run(run_id="r", namespace="n", workflow=flow.name, input=Payload(data=b"{}"), state=state),
        log=log,
        attempt=log.attempt,
        cause=cause,
        executor_id=f"e{log.attempt}",
        deployment="d",
    )


async def lost_then_cancelled(flow: Any) -> list[Event]:
    """Run until nothing happens any more, lose the executor, and have another one clean up. Returns its events."""
    memory = MemoryRun()
    first = attempt(flow, memory, ATTEMPT_CAUSE_STARTED)
    running = asyncio.create_task(first.run())
    async with asyncio.timeout(5):
        await here.begun.wait()
    memory.lose()
    first.abandon()
    await running
    ran.clear()
    after = memory.last_offset
    async with asyncio.timeout(5):
        await attempt(flow, memory, ATTEMPT_CAUSE_CANCELLED).run()
    assert memory.state == RUN_STATE_CANCELLED
    return memory.events[after:]


@component
async def step(name: str) -> str:
    ran.append(name)
    return name


@component
async def long(name: str) -> None:
    ran.append(name)
    here.wanted -= 1
    if here.wanted == 0:
        here.begun.set()
    try:
        await asyncio.sleep(FOREVER_S)
    finally:
        ran.append(f"{name} is stopped")


async def undo(done: list[str]) -> None:
    for name in done:
        await step(f"undo {name}")


async def test_what_was_done_is_undone_and_what_was_under_way_is_not_begun_again() -> None:
    @workflow
    async def flow() -> None:
        done: list[str] = []
        try:
            done += [await step("a")]
            done += [await step("b")]
            await long("c")
        except asyncio.CancelledError:
            status("undoing")
            await undo(done)
            raise

    events = await lost_then_cancelled(flow)
    assert ran == ["undo a", "undo b"]
    assert [event.status_updated.message for event in events if event.HasField("status_updated")] == ["undoing"]


async def test_it_is_cancelled_where_it_waits_for_something_else() -> None:
    """Code that waits for no component when it has caught up: an event, a plain sleep."""

    @workflow
    async def flow() -> None:
        done = [await step("a")]
        try:
            here.begun.set()
            await asyncio.sleep(FOREVER_S)
        finally:
            await undo(done)

    await lost_then_cancelled(flow)
    assert ran == ["undo a"]


async def test_branches_below_components_are_cancelled_where_each_of_them_was() -> None:
    @component
    async def branch(name: str) -> None:
        done: list[str] = []
        try:
            for number in range(3):
                done += [await step(f"{name}{number}")]
            await long(name)
        finally:
            await undo(done)

    @workflow
    async def flow() -> None:
        await omap(branch, ["x", "y"], concurrency=2)

    here.wanted = 2
    await lost_then_cancelled(flow)
    assert sorted(ran) == [f"undo {name}{number}" for name in "xy" for number in range(3)]


async def test_what_waits_between_remembered_steps_does_not_hold_up_the_cancellation() -> None:
    """Replay that comes to nothing any more is cancelled where it stands."""
    first = True

    @workflow
    async def flow() -> None:
        nonlocal first
        done = [await step("a")]
        try:
            await asyncio.sleep(0 if first else FOREVER_S)
            first = False
            done += [await step("b")]
            await long("c")
        finally:
            await undo(done)

    await lost_then_cancelled(flow)
    assert ran == ["undo a"]


async def test_an_attempt_that_is_cancelled_while_it_catches_up_catches_up_first() -> None:
    @workflow
    async def flow() -> None:
        done: list[str] = []
        try:
            for number in range(50):
                done += [await step(str(number))]
            await long("end")
        finally:
            await undo(done)

    memory = MemoryRun()
    first = attempt(flow, memory, ATTEMPT_CAUSE_STARTED)
    running = asyncio.create_task(first.run())
    await here.begun.wait()
    memory.lose()
    first.abandon()
    await running
    ran.clear()
    second = attempt(flow, memory, ATTEMPT_CAUSE_EXECUTOR_LOST)
    running = asyncio.create_task(second.run())
    await asyncio.sleep(0)
    second.cancel("enough")
    async with asyncio.timeout(5):
        await running
    assert ran == [f"undo {number}" for number in range(50)]
    assert memory.events[-1].run_state_changed.reason == "enough"


async def test_a_first_attempt_that_is_cancelled_before_it_begins_runs_nothing() -> None:
    @workflow
    async def flow() -> None:
        await step("a")

    memory = MemoryRun()
    await attempt(flow, memory, ATTEMPT_CAUSE_CANCELLED).run()
    assert (memory.state, ran) == (RUN_STATE_CANCELLED, [])


async def test_code_that_does_not_fit_the_log_any_more_ends_as_it_is() -> None:
    """Nobody has to resume what was cancelled; the log says that nothing was cleaned up."""
    edited = False

    @workflow
    async def flow() -> None:
        await step("other" if edited else "a")
        here.begun.set()
        try:
            await asyncio.sleep(FOREVER_S)
        finally:
            ran.append("undo")

    memory = MemoryRun()
    first = attempt(flow, memory, ATTEMPT_CAUSE_STARTED)
    running = asyncio.create_task(first.run())
    async with asyncio.timeout(5):
        await here.begun.wait()
    memory.lose()
    first.abandon()
    await running
    ran.clear()
    edited = True
    await attempt(flow, memory, ATTEMPT_CAUSE_CANCELLED).run()
    assert (memory.state, ran) == (RUN_STATE_CANCELLED, [])
    assert memory.events[-1].run_state_changed.reason.startswith("it could not clean up: ")
