"""Runs without end: a run goes on as another one with an empty log."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

import onward
from onward import component, testing, workflow
from onward.continuing import successor
from onward.testing import Result
from onward.v1.errand_pb2 import ContinueRun, Errand
from onward.v1.run_pb2 import Run


@component
async def poll(cursor: int) -> int:
    return cursor + 1


@workflow
async def watch(cursor: int = 0, until: int = 0) -> int:
    cursor = await poll(cursor)
    if cursor < until:
        onward.continue_as(watch, cursor, until=until)
    return cursor


def following(result: Result[Any]) -> ContinueRun:
    [errand] = [Errand.FromString(errand) for errand in result.errands]
    return errand.continue_run


async def test_a_run_goes_on_as_another_one() -> None:
    """It succeeded, without an output of its own, and says as which."""
    result = await testing.run(watch, until=5)
    assert (result.state, result.continued_with) == ("SUCCEEDED", {"cursor": 1, "until": 5})
    end = result.events[-1].run_state_changed
    assert not end.HasField("output")
    assert end.continued_as_run_id == following(result).submit.start.run_id != ""
    assert result.view.continued_as == end.continued_as_run_id
    with pytest.raises(ValueError, match="goes on as another one"):
        _ = result.output
    assert (await testing.run(watch, until=0)).continued_with is None


async def test_it_is_the_same_run_wherever_the_one_before_died() -> None:
    """Its name is made from that one's log."""
    undisturbed = following(await testing.run(watch, until=5))
    for point in (2, 3, 4, testing.before_end()):
        with testing.crash(point):
            assert following(await testing.run(watch, until=5)).submit == undisturbed.submit


@pytest.mark.parametrize(("schedule_s", "begins_s"), [(None, 100), (200, 200), (-62_135_596_800, 100)])
async def test_the_time_limit_of_the_one_that_follows_is_as_long(schedule_s: int | None, begins_s: int) -> None:
    """It counts from the moment at which this one could begin: that was not before it was asked for."""
    journal = SimpleNamespace(
        secret=b"secret",
        trace_parent="",
        waits=SimpleNamespace(untaken=lambda: ({}, 0)),
        run=Run(workflow="watch", create_time=Timestamp(seconds=100), deadline=Timestamp(seconds=begins_s + 60)),
    )
    if schedule_s is not None:
        journal.run.schedule_time.CopyFrom(Timestamp(seconds=schedule_s))
    assert successor(cast("Any", journal), b"{}").submit.start.run_timeout.ToTimedelta().total_seconds() == 60


async def test_no_handler_is_in_its_way() -> None:
    """Retries, fallbacks, `except Exception` and TaskGroups let it pass."""

    @workflow.retry(attempts=3).fallback(0)
    async def stubborn(cursor: int = 0) -> int:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(leave(cursor))
        except Exception:  # noqa: BLE001
            return -1
        return 0

    async def leave(cursor: int) -> None:
        onward.continue_as(stubborn, cursor + 1)

    assert (await testing.run(stubborn)).continued_with == {"cursor": 1}


async def test_it_is_for_the_workflow_itself() -> None:
    """Not for a component, another workflow or code outside a run."""

    @component
    async def inner() -> None:
        onward.continue_as(watch)

    @workflow
    async def outer() -> list[str]:
        told = []
        for call in (inner(), watch(until=3)):
            try:
                await call
            except onward.ComponentError as error:
                told.append(error.type)
        with pytest.raises(TypeError, match="not as watch"):
            onward.continue_as(watch)
        return told

    assert (await testing.run(outer)).output == ["RuntimeError", "RuntimeError"]
    with pytest.raises(RuntimeError, match="of a run"):
        onward.continue_as(watch)


async def test_a_parent_waits_for_the_last_of_them() -> None:
    """And gets its output."""

    @workflow
    async def parent() -> int:
        return await (await onward.start_child(watch, until=4)).result()

    result = await testing.run(parent)
    assert result.output == 4
    assert len(result.children) == 4
    assert [child.continued_with is None for child in result.children] == [False, False, False, True]


async def test_a_child_that_goes_on_is_cancelled_as_what_it_is_now() -> None:
    """The one before has ended."""

    @workflow
    async def patient(cursor: int = 0) -> None:
        if cursor:
            await onward.signal("never")
        onward.continue_as(patient, cursor + 1)

    @workflow
    async def parent() -> str:
        child = await onward.start_child(patient)
        await onward.sleep("1m")
        await child.cancel()
        try:
            await child.result()
        except onward.ComponentError as error:
            return error.reason
        return "?"

    result = await testing.run(parent)
    assert result.output == "CANCELLED"
    assert [child.state for child in result.children] == ["SUCCEEDED", "CANCELLED"]


async def test_signals_that_nobody_took_go_along() -> None:
    """In their order; those that were taken do not."""

    @workflow
    async def chat(taken: int = 0) -> list[int]:
        first = await onward.signal("say", int)
        if not taken:
            await onward.sleep("1m")
            onward.continue_as(chat, first)
        return [taken, first, await onward.signal("say", int)]

    @workflow
    async def parent() -> list[int]:
        return await (await onward.start_child(chat)).result()

    values = iter([1, 2, 3, 4, 5, 6])
    with testing.signals({"say": lambda _: next(values)}):
        result = await testing.run(parent)
    assert result.output[:2] == [1, 2]
