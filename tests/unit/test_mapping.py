"""The same component over many items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

import onward
from onward import ComponentError, component, testing, workflow
from onward.v1.event_pb2 import OUTCOME_CANCELLED, OUTCOME_ERROR, Event


@component
async def double(x: int) -> int:
    return x * 2


def started(events: list[Event]) -> dict[bytes, str]:
    return {e.component_started.input.data: e.component_id for e in events if e.HasField("component_started")}


async def test_results_come_in_the_order_of_the_items() -> None:
    """However long each takes."""

    async def slow_at_first(x: int) -> int:
        for _ in range(10 - x):
            await asyncio.sleep(0)
        return x

    assert await onward.map(slow_at_first, range(10)) == list(range(10))
    assert await onward.map(double, []) == []
    assert await onward.map(double, [1, 2, 3], concurrency=1) == [2, 4, 6]


async def test_items_may_come_over_time() -> None:
    """An asynchronous iterable is taken item by item."""

    async def items() -> AsyncIterator[int]:
        for number in range(5):
            await asyncio.sleep(0)
            yield number

    assert await onward.map(double, items()) == [0, 2, 4, 6, 8]


async def test_no_more_calls_run_than_allowed_and_no_more_items_are_taken() -> None:
    """Many items cost no more than a few."""
    running, most, taken = 0, 0, 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            assert taken - finished <= 3
            yield number

    finished = 0

    async def work(_: int) -> None:
        nonlocal running, most, finished
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        finished += 1

    await onward.map(work, items(), concurrency=3)
    assert (most, finished) == (3, 100)


async def test_the_first_error_cancels_the_rest_and_is_raised() -> None:
    """It is the error itself, and nothing runs on."""
    cleaned = []

    async def work(x: int) -> None:
        if x == 2:
            raise ValueError("two")
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(x)

    before = asyncio.all_tasks()
    with pytest.raises(ValueError, match="two"):
        await onward.map(work, range(100), concurrency=3)
    assert sorted(cleaned) == [0, 1]
    assert asyncio.all_tasks() == before


async def test_cancelling_a_map_cancels_its_calls() -> None:
    """And waits for them to clean up."""
    cleaned = []

    async def work(x: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(x)

    task = asyncio.create_task(onward.map(work, range(3)))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(cleaned) == [0, 1, 2]


async def test_a_failing_source_fails_the_map() -> None:
    """As any loop over it would."""

    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await onward.map(double, items())


async def test_the_source_is_closed() -> None:
    """Also where an error ended the map early."""
    closed = []

    async def items() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async def work(_: int) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await onward.map(work, items())
    assert closed == [True]


def test_concurrency_has_a_bound() -> None:
    """0 would wait for ever."""
    with pytest.raises(ValueError, match="1 or more"):
        _ = onward.map(double, [1], concurrency=0)


async def test_a_call_is_known_by_its_items_place() -> None:
    """Two maps of one component at once do not get mixed up, whoever is faster."""

    @component
    async def work(x: int) -> int:
        for _ in range(pace[x]):
            await asyncio.sleep(0)
        return x

    @workflow
    async def flow() -> tuple[list[int], list[int]]:
        return await asyncio.gather(
            onward.map(work, [0, 1, 2, 3], concurrency=2), onward.map(work, [4, 5, 6, 7], concurrency=2)
        )

    pace = [9, 1, 1, 1, 1, 9, 1, 9]
    one = started((await testing.run(flow)).events)
    pace = [1, 9, 9, 1, 9, 1, 9, 1]
    two = started((await testing.run(flow)).events)
    assert one == two
    assert len(set(one.values())) == 8


async def test_a_key_names_an_items_call() -> None:
    """For items whose order is their own."""

    @workflow
    async def flow(items: list[int]) -> list[int]:
        return await onward.map(double, items, key=str)

    one = started((await testing.run(flow, [1, 2, 3])).events)
    two = started((await testing.run(flow, [3, 1, 2])).events)
    assert one == two


async def test_inside_a_run_the_error_is_the_components() -> None:
    """And the calls that were cancelled are told so."""

    @component
    async def work(x: int) -> None:
        if x == 1:
            raise ValueError("one")
        await asyncio.Event().wait()

    @workflow
    async def flow() -> str:
        try:
            await onward.map(work, [0, 1])
        except ComponentError as error:
            return error.message
        return ""

    result = await testing.run(flow)
    assert result.output == "one"
    outcomes = {e.component_finished.outcome for e in result.events if e.HasField("component_finished")}
    assert outcomes == {OUTCOME_CANCELLED, OUTCOME_ERROR}


async def test_streams_are_mapped_whole() -> None:
    """Each speaks, since each is the outermost on its path."""

    @component
    async def words(text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word

    @workflow
    async def flow() -> list[str]:
        return await onward.map(words, ["a b", "c"])

    result = await testing.run(flow)
    assert result.output == ["ab", "c"]
    assert sorted(e.output_delta.text for e in result.events if e.HasField("output_delta")) == ["a", "b", "c"]
