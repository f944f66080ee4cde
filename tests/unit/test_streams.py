"""Streaming components inside a run: what is written, when it reaches whom, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from onward import ComponentError, component, status, testing, workflow
from onward.engine import Attempt
from onward.journal import DELTA_CHARS_MAX
from onward.log import EVENT_BYTES_MAX, INLINE_BYTES_MAX
from onward.memory import MemoryRun
from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_STARTED,
    CHANNEL_ITEM,
    CHANNEL_TEXT,
    OUTCOME_CANCELLED,
    OUTCOME_ERROR,
    OUTCOME_OK,
    ComponentFinished,
    Event,
)
from onward.v1.run_pb2 import Run


@component
async def words(text: str) -> AsyncIterator[str]:
    for word in text.split():
        yield word


@component
async def count(to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number


@component
async def echo(value: Any) -> Any:
    return value


async def read(stream: AsyncIterator[Any], seen: list[Any]) -> None:
    """Read to the end, item by item."""
    async for item in stream:
        seen.append(item)  # noqa: PERF401 - what was seen before an error counts


def ids(events: list[Event]) -> dict[str, str]:
    return {
        event.component_id: event.component_started.name for event in events if event.HasField("component_started")
    } | {"": "body"}


def told(events: list[Event]) -> list[tuple[str, Any]]:
    """Who showed which text or item."""
    names = ids(events)
    return [
        (
            names[event.component_id],
            event.output_delta.text
            if event.output_delta.channel == CHANNEL_TEXT
            else json.loads(event.output_delta.value.data),
        )
        for event in events
        if event.HasField("output_delta")
    ]


def finished(events: list[Event], name: str) -> ComponentFinished:
    names = ids(events)
    (one,) = [
        event.component_finished
        for event in events
        if event.HasField("component_finished") and names[event.component_id] == name
    ]
    return one


async def test_each_item_is_a_delta() -> None:
    """Text on the text channel, anything else as an item."""

    @workflow
    async def flow() -> list[Any]:
        return [await words("a b"), await count(2)]

    result = await testing.run(flow)
    assert result.output == ["ab", [0, 1]]
    assert told(result.events) == [("words", "a"), ("words", "b"), ("count", 0), ("count", 1)]
    channels = [event.output_delta.channel for event in result.events if event.HasField("output_delta")]
    assert channels == [CHANNEL_TEXT, CHANNEL_TEXT, CHANNEL_ITEM, CHANNEL_ITEM]
    assert finished(result.events, "words").output.data == b'"ab"'
    assert finished(result.events, "count").output.data == b"[0,1]"


@pytest.mark.parametrize("item", [None, "", 0, False, [], {}, 0.0])
async def test_falsy_items_are_items(item: Any) -> None:
    """Awaited and read, each arrives and each is shown."""

    @component
    async def twice(item: Any) -> AsyncIterator[Any]:
        yield item
        yield item

    @workflow
    async def flow(item: Any) -> list[Any]:
        return [await twice(item), [one async for one in twice(item)]]

    result = await testing.run(flow, item)
    assert result.output == [[item, item], [item, item]]
    assert told(result.events) == [("twice", item)] * 4


async def test_text_is_whole_code_points() -> None:
    """Surrogates that make a pair become their character; lone ones a replacement."""

    @component
    async def odd() -> AsyncIterator[str]:
        yield "🍵é"
        yield "\ud83d\ude00"
        yield "\ud83d"

    @workflow
    async def flow() -> int:
        return len(await odd())

    assert [text for _, text in told((await testing.run(flow)).events)] == ["🍵é", "😀", "\ufffd"]


@pytest.mark.parametrize("read", [True, False])
async def test_a_long_text_becomes_several_deltas(read: bool) -> None:
    """No event comes near its limit, and together they are the text."""
    text = "🍵" * (3 * DELTA_CHARS_MAX + 5)

    @component
    async def novel() -> AsyncIterator[str]:
        yield text

    @workflow
    async def flow() -> int:
        return len("".join([part async for part in novel()]) if read else await novel())

    result = await testing.run(flow)
    assert result.output == len(text)
    assert len(told(result.events)) == 4
    assert "".join(part for _, part in told(result.events)) == text
    assert max(len(event.SerializeToString()) for event in result.events) < EVENT_BYTES_MAX / 2
    assert finished(result.events, "novel").output.size == 4 * len(text) + 2


async def test_a_large_item_is_kept_beside_the_log() -> None:
    """Its delta names it."""

    @component
    async def large() -> AsyncIterator[list[str]]:
        yield ["x" * INLINE_BYTES_MAX]

    @workflow
    async def flow() -> int:
        return len((await large())[0][0])

    result = await testing.run(flow)
    assert result.output == INLINE_BYTES_MAX
    (delta,) = [event.output_delta for event in result.events if event.HasField("output_delta")]
    assert delta.value.WhichOneof("value") == "blob_uri"
    assert delta.value.size == INLINE_BYTES_MAX + 4


async def test_an_item_without_a_json_form_fails_the_component() -> None:
    """Once: another try would not help."""
    begun = []

    @component.retry(3, 0)
    async def sockets() -> AsyncIterator[object]:
        begun.append(True)
        yield object()

    @workflow
    async def flow() -> str:
        try:
            await sockets()
        except ComponentError as error:
            return error.message
        return ""

    output = (await testing.run(flow)).output
    assert "sockets yielded a object that has no JSON form" in output
    assert begun == [True]


# One voice


async def test_a_stream_inside_a_stream_is_silent() -> None:
    """Text is written once, by the outermost on its path, whether the inner one is awaited or read."""

    @component
    async def article(topic: str) -> AsyncIterator[str]:
        yield await words("in tro")
        async for word in words(topic):
            yield word
        yield await summary()

    @component
    async def summary() -> str:
        return await words("the end")

    @workflow
    async def flow() -> str:
        return await article("tea time")

    result = await testing.run(flow)
    assert result.output == "introteatimetheend"
    assert told(result.events) == [
        ("article", "intro"),
        ("article", "tea"),
        ("article", "time"),
        ("article", "theend"),
    ]
    assert finished(result.events, "article").outcome == OUTCOME_OK


async def test_a_streaming_workflow_speaks_for_itself() -> None:
    """Its body's deltas are the run's output, and all below it is silent."""

    @workflow
    async def flow() -> AsyncIterator[str]:
        yield "a"
        yield await words("b c")

    result = await testing.run(flow)
    assert told(result.events) == [("body", "a"), ("body", "bc")]
    assert result.output == "abc"
    assert result.view.text == "abc"
    assert flow.signature.output_schema() == {"type": "string"}


async def test_a_streaming_workflow_of_values_gives_a_list() -> None:
    """Its schema says so."""

    @workflow
    async def flow() -> AsyncIterator[dict[str, int]]:
        yield {"a": 1}
        yield {}

    result = await testing.run(flow)
    assert result.output == [{"a": 1}, {}]
    schema = flow.signature.output_schema()
    assert schema is not None
    assert schema["type"] == "array"


async def test_streams_side_by_side_all_speak() -> None:
    """Each is the outermost on its own path."""

    @workflow
    async def flow() -> tuple[str, str]:
        return await asyncio.gather(words("a b"), words("c d"))

    result = await testing.run(flow)
    assert result.output == ("ab", "cd")
    assert sorted(text for _, text in told(result.events)) == ["a", "b", "c", "d"]


# Read by `async for`


def attempt(flow: Any, memory: MemoryRun) -> Attempt:
    return Attempt(
        flow,
        run=Run(run_id="r", workflow=flow.name),
        log=memory.begin(),
        attempt=1,
        cause=ATTEMPT_CAUSE_STARTED,
        executor_id="e",
        deployment="d",
    )


async def test_an_item_is_in_the_log_before_its_reader_has_it() -> None:
    """While the store is away, the reader waits."""
    seen: list[str] = []
    memory = MemoryRun()

    @workflow
    async def flow() -> None:
        await read(words("a b"), seen)

    with memory.offline():
        running = asyncio.create_task(attempt(flow, memory).run())
        for _ in range(20):
            await asyncio.sleep(0)
        assert seen == []
    await running
    assert seen == ["a", "b"]


async def test_between_two_items_the_reader_is_the_caller() -> None:
    """What it shows and calls is its own, not the stream's."""

    @workflow
    async def flow() -> None:
        async for word in words("a b"):
            status(f"got {word}")
            await echo(word)

    events = (await testing.run(flow)).events
    assert [event.component_id for event in events if event.HasField("status_updated")] == ["", ""]
    parents = {event.component_started.parent_id for event in events if event.HasField("component_started")}
    assert parents == {""}


async def test_what_a_stream_shows_is_its_own() -> None:
    """Statuses, calls and cleanup of the generator belong to it."""

    @component
    async def busy() -> AsyncIterator[int]:
        status("begin")
        yield await echo(1)
        status("middle")
        yield 2
        status("end")

    @workflow
    async def flow() -> None:
        async for _ in busy():
            status("mine")

    events = (await testing.run(flow)).events
    names = ids(events)
    shown = [(names[e.component_id], e.status_updated.message) for e in events if e.HasField("status_updated")]
    assert shown == [("busy", "begin"), ("body", "mine"), ("busy", "middle"), ("body", "mine"), ("busy", "end")]
    (inner,) = [e.component_started for e in events if e.component_started.name == "echo"]
    assert names[inner.parent_id] == "busy"


async def test_leaving_early_ends_the_component_cancelled() -> None:
    """The generator cleans up as itself, before its caller's end is written."""
    cleaned = []

    @component
    async def endless() -> AsyncIterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            status("closing")
            cleaned.append(True)

    @component
    async def first() -> int:
        async for number in endless():
            return number
        return -1

    @workflow
    async def flow() -> int:
        return await first()

    result = await testing.run(flow)
    assert result.output == 0
    assert cleaned == [True]
    assert finished(result.events, "endless").outcome == OUTCOME_CANCELLED
    order = [ids(result.events)[e.component_id] for e in result.events if e.HasField("component_finished")]
    assert order == ["endless", "first"]
    (shown,) = [e for e in result.events if e.HasField("status_updated")]
    assert ids(result.events)[shown.component_id] == "endless"


async def test_a_stream_that_is_left_is_closed_while_the_run_goes_on() -> None:
    """A model's answer that nobody reads any more is let go, not kept to the end."""
    closed = asyncio.Event()

    @component
    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    @workflow
    async def flow() -> bool:
        async for _ in endless():
            break
        gc.collect()
        async with asyncio.timeout(5):
            await closed.wait()
        return True

    result = await testing.run(flow)
    assert result.output is True
    assert finished(result.events, "endless").outcome == OUTCOME_CANCELLED


async def test_a_half_read_stream_ends_with_its_caller() -> None:
    """Also where the caller still holds it."""
    kept: list[Any] = []

    @workflow
    async def flow() -> None:
        kept.append(count(3))
        assert await anext(kept[-1]) == 0

    result = await testing.run(flow)
    assert finished(result.events, "count").outcome == OUTCOME_CANCELLED
    assert result.state == "SUCCEEDED"


async def test_a_stream_that_fails_to_clean_up_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The log of the process says so."""

    @component
    async def clumsy() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("clumsy")

    @workflow
    async def flow() -> str:
        stream = clumsy()
        await anext(stream)
        return "fine"

    assert (await testing.run(flow)).output == "fine"
    assert "clumsy failed to clean up" in caplog.text


async def test_a_stream_that_fails_and_fails_to_clean_up_has_the_error_that_it_failed_with() -> None:
    """In the log and for its caller, who else would get what was raised last as it is, and no ComponentError."""

    @component
    async def clumsy() -> AsyncIterator[str]:
        try:
            yield 7  # type: ignore[misc]
        finally:
            raise LookupError("no broom")

    @workflow
    async def flow() -> str:
        try:
            await read(clumsy(), [])
        except ComponentError as error:
            return error.message
        return "nothing"

    result = await testing.run(flow)
    assert result.output == "clumsy streams text, but yielded a int"
    [finished] = [event.component_finished for event in result.events if event.HasField("component_finished")]
    assert finished.outcome == OUTCOME_ERROR


async def test_an_error_in_a_generator_belongs_to_it() -> None:
    """The reader sees a component error after the items, and what was shown stays."""

    @component
    async def breaks() -> AsyncIterator[str]:
        yield "a"
        raise ConnectionError("broken")

    @workflow
    async def flow() -> list[str]:
        seen: list[Any] = []
        try:
            await read(breaks(), seen)
        except ComponentError as error:
            seen.append(f"{error.name} {error.type}")
        return seen

    result = await testing.run(flow)
    assert result.output == ["a", "breaks ConnectionError"]
    assert finished(result.events, "breaks").outcome == OUTCOME_ERROR
    assert finished(result.events, "breaks").error.message == "broken"


async def test_a_stream_is_tried_again_until_its_first_item_arrived() -> None:
    """What the failed try had shown is void."""
    begun: list[int] = []

    @component.retry(3, 0)
    async def flaky() -> AsyncIterator[str]:
        begun.append(1)
        status(f"try {len(begun)}")
        if len(begun) < 3:
            raise ConnectionError("early")
        yield "a"
        raise ConnectionError("late")

    @workflow
    async def flow() -> list[str]:
        seen: list[Any] = []
        try:
            await read(flaky(), seen)
        except ComponentError as error:
            seen.append(error.message)
        return seen

    result = await testing.run(flow)
    assert result.output == ["a", "late"]
    assert len(begun) == 3
    assert result.statuses == ["try 3"]


async def test_an_awaited_stream_is_tried_again_from_the_start() -> None:
    """Nobody had its items: they are void, and the view holds the good try alone."""
    begun: list[int] = []

    @component.retry(3, 0)
    async def flaky() -> AsyncIterator[str]:
        begun.append(1)
        yield "a"
        if len(begun) < 3:
            raise ConnectionError("broken")
        yield "b"

    @workflow
    async def flow() -> str:
        return await flaky()

    result = await testing.run(flow)
    assert result.output == "ab"
    assert [text for _, text in told(result.events)] == ["a", "a", "a", "b"]
    (flaky_id,) = [one for one, name in ids(result.events).items() if name == "flaky"]
    assert [component.text for component in result.view.children() if component.id == flaky_id] == ["ab"]


async def test_the_retry_above_takes_back_a_stream_that_was_being_read() -> None:
    """The nearest boundary that can is the one that does."""
    tries: list[int] = []

    @component
    async def breaks() -> AsyncIterator[str]:
        yield "a"
        if len(tries) == 1:
            raise ConnectionError("broken")
        yield "b"

    @component.retry(2, 0)
    async def reads() -> str:
        tries.append(1)
        return "".join([part async for part in breaks()])

    @workflow
    async def flow() -> str:
        return await reads()

    result = await testing.run(flow)
    assert result.output == "ab"
    (reading,) = result.view.children()
    assert [below.text for below in result.view.children(reading.id)] == ["ab"]


async def test_cancelling_a_reader_ends_the_stream() -> None:
    """In mid-item: the generator cleans up and is told as cancelled."""
    cleaned = []

    @component
    async def stalls() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    @workflow
    async def flow() -> list[int]:
        seen: list[int] = []
        try:
            async with asyncio.timeout(0.005):
                await read(stalls(), seen)
        except TimeoutError:
            seen.append(-1)
        return seen

    with testing.no_replay():
        result = await testing.run(flow)
    assert result.output == [1, -1]
    assert cleaned == [True]
    assert finished(result.events, "stalls").outcome == OUTCOME_CANCELLED


async def test_waiting_for_one_item_with_a_limit() -> None:
    """`wait_for` runs each item in a task of its own; the current instance does not get mixed up."""

    @workflow
    async def flow() -> list[int]:
        stream = count(3)
        seen = [await asyncio.wait_for(anext(stream), 5) for _ in range(3)]
        status("mine")
        return seen

    result = await testing.run(flow)
    assert result.output == [0, 1, 2]
    (shown,) = [event for event in result.events if event.HasField("status_updated")]
    assert shown.component_id == ""


async def test_a_long_stream_that_is_read_keeps_no_more_than_readers_see() -> None:
    """Its result says how long it was."""

    @workflow
    async def flow() -> int:
        total = 0
        async for number in count(5_000):
            total += number
        async for _ in words("ab " * 3_000):
            total += 1
        return total

    events = (await testing.run(flow)).events
    counted = finished(events, "count").output
    assert counted.WhichOneof("value") is None
    assert counted.size == len(json.dumps(list(range(5_000)), separators=(",", ":")))
    assert finished(events, "words").output.size == 6_002


async def test_a_private_stream_shows_no_result() -> None:
    """Its deltas are for the user, its result and input are not."""

    @workflow
    async def flow() -> None:
        async for _ in words.private()("a b"):
            pass
        await words.private()("a b")

    result = await testing.run(flow)
    ended = [event.component_finished for event in result.events if event.HasField("component_finished")]
    assert [one.HasField("output") for one in ended] == [False, False]


async def test_a_stream_that_is_never_consumed_says_nothing() -> None:
    """It has not begun."""

    @workflow
    async def flow() -> None:
        _ = count(3)

    result = await testing.run(flow)
    assert [event.WhichOneof("kind") for event in result.events] == [
        "run_state_changed",
        "attempt_started",
        "run_state_changed",
    ]


async def test_nothing_runs_on_after_the_run() -> None:
    """Tasks before and after are the same."""

    @workflow
    async def flow() -> None:
        async for _ in count(3):
            break
        await asyncio.gather(words("a b"), count(2))

    before = asyncio.all_tasks()
    await testing.run(flow)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
