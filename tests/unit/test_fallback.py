"""The error boundary: what answers where a component would fail, and what the log tells of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import pytest

from onward import ComponentError, component, status, testing, workflow
from onward.testing import Result
from onward.v1.event_pb2 import (
    OUTCOME_CANCELLED,
    OUTCOME_ERROR,
    OUTCOME_OK,
    ROLLBACK_CAUSE_FALLBACK,
    ComponentFinished,
    ComponentRetrying,
    Event,
)
from onward.views import fold


@dataclass
class Page:
    title: str
    on: date


@component
async def fail(*args: Any, **kwargs: Any) -> Any:
    raise ConnectionError("down")


@component
async def stop() -> None:
    """Where a test lets the executor die."""
    await asyncio.sleep(0)


def of(events: list[Event], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("kind") == kind]


def retrying(result: Result[Any]) -> list[ComponentRetrying]:
    return of(result.events, "component_retrying")


def finished(result: Result[Any], name: str) -> list[ComponentFinished]:
    ids = {event.component_id for event in result.events if event.component_started.name == name}
    return [
        event.component_finished
        for event in result.events
        if event.component_id in ids and event.HasField("component_finished")
    ]


def stop_of(events: list[Event], number: int = 0) -> int:
    return [event.offset for event in events if event.component_started.name == "stop"][number]


@pytest.fixture(autouse=True)
def no_backoff() -> Iterator[None]:
    with testing.no_backoff():
        yield


VALUES: list[Any] = [None, 0, "", [], {}, False, 7, "text", Page("a", date(2026, 1, 2)), [Page("b", date(2026, 1, 3))]]


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("annotated", [True, False])
async def test_a_value_answers_and_is_remembered_to_its_type(value: Any, annotated: bool) -> None:
    """Falsy or not, of the component's own type or of another: a later attempt gets it and tries nothing."""
    ran = Counter[str]()
    got = []

    async def made() -> list[str]:
        ran["made"] += 1
        raise ConnectionError("down")

    if not annotated and isinstance(value, Page | list):
        value = "without an annotation only what JSON says comes back"
    made.__annotations__ = {"return": list[Page]} if annotated else {}
    one = component.retry(2)(made).fallback(value)

    @workflow
    async def flow() -> None:
        got.append(await one())
        await stop()

    before = await testing.run(flow)
    assert before.state == "SUCCEEDED"
    assert ran["made"] == 2
    assert [one == value and type(one) is type(value) for one in got] == [True, True], "in the run, and in its replay"
    with testing.crash(stop_of(before.events)):
        await testing.run(flow)
    assert ran["made"] == 4, "the second attempt tried nothing again"
    assert [one == value and type(one) is type(value) for one in got] == [True] * 5


@pytest.mark.parametrize("streams", [False, True])
async def test_each_call_has_a_value_of_its_own(streams: bool) -> None:
    """What a caller does to the list that it got, the next one does not find in its own."""

    async def plain() -> list[dict[str, int]]:
        raise ConnectionError("down")

    async def stream() -> AsyncIterator[dict[str, int]]:
        raise ConnectionError("down")
        yield

    names: Any = component(stream if streams else plain).fallback([{"a": 1}])

    @workflow
    async def flow() -> list[int]:
        first = await names()
        first[0]["a"] = 2
        first.append({"b": 1})
        [only] = await names()
        return list(only.values())

    assert (await testing.run(flow)).output == [1]
    [outside] = await names()
    assert outside == {"a": 1}


@pytest.mark.parametrize("kind", ["async", "sync", "component", "partial"])
async def test_a_function_answers_with_the_same_arguments(kind: str) -> None:
    """Whatever kind it is of; a component takes its place in the log, below what failed."""
    asked = []

    async def asynchronous(x: int, *, y: int = 2) -> str:
        asked.append((x, y))
        return f"{x} {y}"

    def synchronous(x: int, *, y: int = 2) -> str:
        asked.append((x, y))
        return f"{x} {y}"

    answers: dict[str, Any] = {
        "async": asynchronous,
        "sync": synchronous,
        "component": component(asynchronous),
        "partial": partial(synchronous, y=5),
    }

    @component
    async def failing(x: int, *, y: int = 2) -> int:
        raise ConnectionError("down")

    one = failing.fallback(answers[kind])

    @workflow
    async def flow() -> int | str:
        return await one(1, y=5)

    assert await one(1, y=5) == "1 5", "outside a run"
    with testing.no_replay():
        result = await testing.run(flow)
    assert result.output == "1 5"
    assert asked == [(1, 5)] * 2
    (failing_started, *below) = [event for event in result.events if event.HasField("component_started")]
    assert [event.component_started.parent_id for event in below] == (
        [failing_started.component_id] if kind == "component" else []
    )


async def test_the_log_tells_that_the_fallback_answered_and_why() -> None:
    """The failure stays visible: to a reader of the events, and in the folded view."""

    @component.retry(3, 0).fallback("instead")
    async def failing() -> str:
        raise ConnectionError("down")

    @workflow
    async def flow() -> str:
        return await failing()

    result = await testing.run(flow)
    assert result.output == "instead"
    assert [(one.try_number, one.fallback, one.error.reason) for one in retrying(result)] == [
        (1, False, "COMPONENT_FAILED"),
        (2, False, "COMPONENT_FAILED"),
        (3, True, "ATTEMPTS_EXHAUSTED"),
    ]
    (end,) = finished(result, "failing")
    assert (end.outcome, end.output.data, end.HasField("error")) == (OUTCOME_OK, b'"instead"', False)
    (shown,) = [one for one in result.view.components.values() if one.name == "failing"]
    assert (shown.state, shown.fell_back, shown.tries, shown.retrying) == ("ok", True, 3, False)
    assert shown.error is not None
    assert shown.error.message == "down"


async def test_what_the_failed_try_had_shown_is_void() -> None:
    """With all that components below it had shown, and what the fallback shows stands."""

    @component
    async def below() -> None:
        status("below")
        raise ConnectionError

    async def instead() -> str:
        status("instead")
        return "b"

    @component.retry(2, 0)
    async def top() -> str:
        status("top")
        await below()
        return "a"

    one = top.fallback(instead)

    @workflow
    async def flow() -> str:
        status("before")
        return await one()

    result = await testing.run(flow)
    assert result.statuses == ["before", "instead"]
    assert of(result.events, "rollback")[-1].cause == ROLLBACK_CAUSE_FALLBACK
    assert len(of(result.events, "rollback")[-1].component_ids) == 2


async def test_only_the_named_errors_are_answered_for() -> None:
    """An error that came up from a component below counts as the one it began with."""

    @component
    async def below(error: str) -> None:
        raise {"connection": ConnectionError, "value": ValueError}[error]

    @component.fallback("instead", on=OSError)
    async def top(error: str) -> str:
        await below(error)
        return ""

    @workflow
    async def flow() -> list[str]:
        got = [await top("connection")]
        try:
            await top("value")
        except ComponentError as error:
            got.append(error.type)
        return got

    assert (await testing.run(flow)).output == ["instead", "ValueError"]


async def test_a_mistake_is_not_covered_up() -> None:
    """A result without a JSON form has none the next time either, and nobody would ever learn of it."""

    @component.fallback("instead")
    async def odd() -> Any:
        return object()

    @workflow
    async def flow() -> str:
        return str(await odd())

    result = await testing.run(flow)
    (end,) = finished(result, "odd")
    assert (end.outcome, end.error.reason) == (OUTCOME_ERROR, "OUTPUT_INVALID")
    assert not retrying(result)


async def test_a_cancellation_is_not_answered_for() -> None:
    """Whoever cancels a component gets a cancelled component."""
    begun = asyncio.Event()

    @component.fallback("instead")
    async def waits() -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    @workflow
    async def flow() -> str:
        task = asyncio.ensure_future(waits())
        await begun.wait()
        task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return "cancelled"

    result = await testing.run(flow)
    assert result.output == "cancelled"
    assert finished(result, "waits")[0].outcome == OUTCOME_CANCELLED


async def test_a_fallback_that_fails_is_the_components_error() -> None:
    """It is asked once, and the failure before it stays in the log."""
    asked = Counter[str]()

    def instead() -> str:
        asked["instead"] += 1
        raise LookupError("no answer either")

    @component.retry(2, 0)
    async def failing() -> str:
        raise ConnectionError("down")

    one = failing.fallback(instead)

    @workflow
    async def flow() -> str:
        try:
            return await one()
        except ComponentError as error:
            return f"{error.type}: {error.message} {error.reason}"

    with testing.no_replay():
        result = await testing.run(flow)
    assert result.output == "LookupError: no answer either ATTEMPTS_EXHAUSTED"
    assert asked["instead"] == 1
    assert [one.error.message for one in retrying(result)] == ["down", "down"]
    with pytest.raises(LookupError):
        await one()


async def test_a_crash_in_the_fallback_goes_on_in_the_fallback() -> None:
    """What had failed is not tried again, and what the fallback had finished is not done again."""
    ran = Counter[str]()

    @component
    async def work() -> int:
        ran["work"] += 1
        return ran["work"]

    @component
    async def failing() -> int:
        ran["failing"] += 1
        raise ConnectionError("down")

    async def instead() -> int:
        ran["instead"] += 1
        got = await work()
        await stop()
        return got

    one = failing.fallback(instead)

    @workflow
    async def flow() -> int:
        return await one()

    with testing.no_replay():
        undisturbed = await testing.run(flow)
        ran.clear()
        with testing.crash(stop_of(undisturbed.events)):
            result = await testing.run(flow)
    assert result.attempts == 2
    assert result.output == 1
    assert ran == {"failing": 1, "instead": 2, "work": 1}
    assert len(retrying(result)) == 1


async def test_a_crash_at_any_event_changes_nothing() -> None:
    """Kill the executor after each event of a run in which tries, a fallback and a stream show things."""

    @component
    async def line(text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word + " "

    async def instead() -> str:
        status("instead")
        return await line("from the fallback")

    @component.retry(2, 0)
    async def failing() -> str:
        status("trying")
        await line("lost words")
        raise ConnectionError("down")

    one = failing.fallback(instead)

    @workflow
    async def flow() -> str:
        status("start")
        text = await one()
        status("end")
        return text

    whole = await testing.run(flow)
    assert whole.output == "from the fallback "
    for offset in range(2, len(whole.events)):
        with testing.crash(offset):
            result = await testing.run(flow)
        assert result.output == whole.output
        assert result.statuses == whole.statuses == ["start", "instead", "end"]
        texts = [
            "".join(part.text for part in one.parts.values())
            for one in fold(result.events).components.values()
            if one.parts
        ]
        assert [text for text in texts if text] == ["from the fallback "]


# Streams


def streaming(fails_after: int, whole: list[str]) -> Any:
    @component.retry(2, 0)
    async def words() -> AsyncIterator[str]:
        for number, word in enumerate(whole):
            if number == fails_after:
                raise ConnectionError("cut")
            yield word

    return words


async def other_words() -> AsyncIterator[str]:
    yield "other "
    yield "words"


async def one_text() -> str:
    return "one text"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("instead", "instead"), ("", ""), (other_words, "other words"), (one_text, "one text")],
    ids=["value", "empty", "generator", "function"],
)
@pytest.mark.parametrize("reads", [False, True])
async def test_a_stream_that_fails_before_its_first_item_is_answered_for(
    answer: Any, expected: str, reads: bool
) -> None:
    """What the fallback gives is shown and read like items of the stream."""
    words = streaming(0, ["a"]).fallback(answer)

    @workflow
    async def flow() -> str:
        if not reads:
            return str(await words())
        return "".join([word async for word in words()])

    assert await words() == expected
    result = await testing.run(flow)
    assert result.output == expected
    (shown,) = [one for one in result.view.components.values() if one.name == "words"]
    assert "".join(part.text for part in shown.parts.values()) == expected
    assert [one.fallback for one in retrying(result)] == [False, True]


async def test_an_awaited_stream_is_answered_for_after_its_items_were_shown() -> None:
    """Nobody has used them: they are rolled back."""
    words = streaming(1, ["a ", "b "]).fallback("instead")

    @workflow
    async def flow() -> str:
        return str(await words())

    result = await testing.run(flow)
    assert result.output == "instead"
    (shown,) = [one for one in result.view.components.values() if one.name == "words"]
    assert "".join(part.text for part in shown.parts.values()) == "instead"


async def test_a_stream_whose_first_item_was_read_is_not_answered_for() -> None:
    """Its reader has used the item: the error goes up, and the fallback above takes back what was shown."""
    words = streaming(1, ["a ", "b "]).fallback("instead")

    @component.fallback("above")
    async def reader() -> str:
        return "".join([word async for word in words()])

    @workflow
    async def flow() -> str:
        return await reader()

    result = await testing.run(flow)
    assert result.output == "above"
    assert not any(part.text for one in result.view.components.values() for part in one.parts.values())
    assert [one.fallback for one in retrying(result)] == [True]


async def test_a_stream_of_values_is_answered_for_by_a_list() -> None:
    """Item by item."""

    @component.fallback([3, 4])
    async def numbers() -> AsyncIterator[int]:
        if asyncio.current_task() is not None:
            raise ConnectionError
        yield 1

    @workflow
    async def flow() -> list[list[int]]:
        return [await numbers(), [number async for number in numbers()]]

    assert (await testing.run(flow)).output == [[3, 4], [3, 4]]


async def test_a_crash_while_a_fallback_is_read_goes_on_where_it_was() -> None:
    """The failed try is not tried again, and no word is shown or read twice."""
    ran = Counter[str]()

    @component
    async def words() -> AsyncIterator[str]:
        ran["words"] += 1
        if ran:
            raise ConnectionError
        yield ""

    one = words.fallback(other_words)

    @workflow
    async def flow() -> str:
        got = ""
        async for word in one():
            got += word
            await stop()
        return got

    with testing.no_replay():
        undisturbed = await testing.run(flow)
        ran.clear()
        with testing.crash(stop_of(undisturbed.events)):
            result = await testing.run(flow)
    assert result.output == "other words"
    assert ran["words"] == 1
    (shown,) = [one for one in result.view.components.values() if one.name == "words"]
    assert "".join(part.text for part in shown.parts.values()) == "other words"


# As a whole


async def test_a_workflow_can_have_a_fallback() -> None:
    """The run succeeds with it; what the body had shown is void."""

    @workflow.fallback("instead")
    async def flow() -> str:
        status("trying")
        await fail()
        return ""

    result = await testing.run(flow)
    assert (result.state, result.output, result.statuses) == ("SUCCEEDED", "instead", [])
    assert flow.to_proto().output_schema.data


def test_a_thing_that_can_be_called_is_no_value() -> None:
    """Whether `dict` is meant as a value or to be called is not guessed."""
    with pytest.raises(TypeError, match="wrap"):
        fail.fallback(dict)
