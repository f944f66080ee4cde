"""Components outside a run: just functions, with their retries and their timeout."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from onward import ComponentError, Stream, component, publish, status, testing
from onward.errors import OnwardError


@component
async def double(x: int) -> int:
    """Return twice the number."""
    return x * 2


@component
def shout(text: str) -> str:
    return text.upper() + threading.current_thread().name[:0]


@component
async def words(text: str) -> AsyncIterator[str]:
    for word in text.split():
        yield word


@component
async def count(to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number


async def test_a_component_is_called_like_its_function() -> None:
    """By position and by name; `fn` is the function itself."""
    assert await double(2) == await double(x=2) == 4
    assert await double.fn(2) == 4
    assert double.name == "double"
    assert double.__doc__ == "Return twice the number."
    assert repr(double) == "<component double>"


async def test_wrong_arguments_are_refused_at_the_call() -> None:
    """Before anything is awaited, as with any function."""
    with pytest.raises(TypeError, match="double"):
        _ = double()  # type: ignore[call-arg]


async def test_a_synchronous_function_runs_in_a_thread() -> None:
    """It is awaited like any other, does not block the loop, and sees the caller's context."""
    place: contextvars.ContextVar[str] = contextvars.ContextVar("place")
    place.set("here")

    @component
    def where() -> tuple[str, bool]:
        return place.get(), threading.current_thread() is threading.main_thread()

    assert await where() == ("here", False)
    assert await shout("a") == "A"
    assert shout.fn("a") == "A"


async def test_a_plain_function_may_hand_on_an_awaitable() -> None:
    """A wrapper around an asynchronous function is a component like that."""

    @component
    def wrapped(x: int) -> Any:
        return double.fn(x)

    assert await wrapped(3) == 6


async def test_stop_iteration_in_a_thread_is_an_error() -> None:
    """Not a wait for ever."""

    @component
    def first(items: list[int]) -> int:
        return next(iter(items))

    with pytest.raises(RuntimeError, match="StopIteration"):
        await first([])


async def test_a_stream_is_awaited_whole() -> None:
    """Text is joined, anything else is a list, nothing is empty."""
    assert await words("a b c") == "abc"
    assert await words("") == ""
    assert await count(3) == [0, 1, 2]
    assert await count(0) == []


async def test_a_stream_is_read_item_by_item() -> None:
    """In order, and once."""
    stream = words("a b c")
    assert [word async for word in stream] == ["a", "b", "c"]
    assert [word async for word in stream] == []


async def test_a_stream_is_used_one_way() -> None:
    """Awaiting what is being read, or reading what was awaited, is a mistake."""
    stream = words("a b")
    assert await anext(stream) == "a"
    with pytest.raises(RuntimeError, match="being read"):
        await stream
    await stream.aclose()
    stream = words("a b")
    await stream
    with pytest.raises(RuntimeError, match="awaited already"):
        await anext(stream)


async def test_calls_run_side_by_side() -> None:
    """gather, tasks and task groups take every kind of component."""
    assert await asyncio.gather(double(1), words("a b"), shout("x")) == [2, "ab", "X"]  # type: ignore[comparison-overlap]
    async with asyncio.TaskGroup() as group:
        first = group.create_task(double(1))
        second = group.create_task(words("a b"))
        third = group.create_task(shout("x"))
    assert (first.result(), second.result(), third.result()) == (2, "ab", "X")


async def test_a_task_of_a_stream_can_be_cancelled() -> None:
    """The generator cleans up."""
    cleaned = []

    @component
    async def endless() -> AsyncIterator[str]:
        try:
            while True:
                yield "x"
                await asyncio.sleep(0)
        finally:
            cleaned.append(True)

    task = asyncio.create_task(endless())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [True]


async def test_leaving_a_stream_early_closes_it() -> None:
    """What the generator holds is let go at once, not when it is collected some day."""
    cleaned = asyncio.Event()

    @component
    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            cleaned.set()

    async for _ in endless():
        break
    async with asyncio.timeout(5):
        await cleaned.wait()


async def test_a_stream_closes_by_hand() -> None:
    """After that nothing comes."""
    stream = count(3)
    assert await anext(stream) == 0
    await stream.aclose()
    assert [number async for number in stream] == []


async def test_an_unannotated_stream_is_what_its_first_item_is() -> None:
    """Text if that is text."""

    @component
    async def untyped(*items: Any):  # type: ignore[no-untyped-def]
        for item in items:
            yield item

    assert await untyped("a", "b") == "ab"
    assert await untyped(1, "b") == [1, "b"]
    with pytest.raises(TypeError, match="streams text, but yielded a int"):
        await untyped("a", 1)


async def read(stream: AsyncIterator[int], seen: list[int]) -> None:
    """Read to the end, item by item."""
    async for item in stream:
        seen.append(item)  # noqa: PERF401 - what was seen before an error counts


class Flaky:
    """Fails so many times, then counts its calls."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures = failures
        self.calls = 0
        self._error = error or ConnectionError("refused")

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise self._error
        return self.calls


async def test_a_component_is_tried_once_unless_told_otherwise() -> None:
    """And its own error is raised, not a wrapper."""
    flaky = Flaky(1)

    @component
    async def call() -> int:
        return flaky()

    with pytest.raises(ConnectionError, match="refused"):
        await call()
    assert flaky.calls == 1


async def test_retries_hold_outside_a_run_too() -> None:
    """Of every kind of function."""
    flaky = Flaky(2)

    @component.retry(3, 0)
    async def coroutine() -> int:
        return flaky()

    @component.retry(3, 0)
    def thread() -> int:
        return flaky()

    @component.retry(3, 0)
    async def stream() -> AsyncIterator[int]:
        yield flaky()

    assert await coroutine() == 3
    flaky.calls = 0
    assert await thread() == 3
    flaky.calls = 0
    assert await stream() == [3]
    flaky.calls = 0
    assert [item async for item in stream()] == [3]


async def test_the_last_error_is_raised_when_all_tries_failed() -> None:
    """No try too many."""
    flaky = Flaky(9)

    @component.retry(3, 0)
    async def call() -> int:
        return flaky()

    with pytest.raises(ConnectionError):
        await call()
    assert flaky.calls == 3


async def test_an_error_that_is_not_named_is_not_tried_again() -> None:
    """`on` says what is worth it."""
    flaky = Flaky(1, ValueError("no"))

    @component.retry(3, 0, on=ConnectionError)
    async def call() -> int:
        return flaky()

    with pytest.raises(ValueError, match="no"):
        await call()
    assert flaky.calls == 1


async def test_cancellation_is_not_tried_again() -> None:
    """Whoever cancels means it."""
    calls = []

    @component.retry(3, 0)
    async def wait() -> None:
        calls.append(1)
        await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls == [1]


async def test_a_stream_that_reached_its_reader_is_not_tried_again() -> None:
    """The reader has seen the first item: only the reader's own retry can take it back."""
    begun = []

    @component.retry(3, 0)
    async def breaks() -> AsyncIterator[int]:
        begun.append(1)
        yield 1
        raise ConnectionError("broken")

    seen: list[int] = []
    with pytest.raises(ConnectionError, match="broken"):
        await read(breaks(), seen)
    assert (seen, begun) == ([1], [1])
    with pytest.raises(ConnectionError, match="broken"):
        await breaks()
    assert len(begun) == 4


async def test_a_try_that_takes_too_long_is_a_timeout() -> None:
    """The message says how long it had, and the try was cancelled."""
    cancelled = []

    @component.timeout("10ms")
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    with pytest.raises(TimeoutError, match="no result within 10ms"):
        await wait()
    assert cancelled == [True]


async def test_a_timeout_is_per_try() -> None:
    """The next try has its own time."""
    calls = []

    @component.retry(3, 0).timeout("10ms")
    async def slow_at_first() -> int:
        calls.append(1)
        if len(calls) < 3:
            await asyncio.Event().wait()
        return len(calls)

    assert await slow_at_first() == 3


async def test_a_timeout_holds_for_streams() -> None:
    """Awaited and read; the reader's own time does not count."""

    @component.timeout("20ms")
    async def stalls(items: int) -> AsyncIterator[int]:
        for item in range(items):
            yield item
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match="20ms"):
        await stalls(1)
    seen: list[int] = []
    with pytest.raises(TimeoutError, match="20ms"):
        await read(stalls(2), seen)
    assert seen == [0, 1]


async def test_the_readers_time_is_not_the_components() -> None:
    """A slow reader times nobody out."""

    @component.timeout("50ms")
    async def quick() -> AsyncIterator[int]:
        yield 1
        yield 2

    loop = asyncio.get_running_loop()
    seen = []
    async for item in quick():
        until = loop.create_future()
        loop.call_later(0.06, until.set_result, None)
        await until
        seen.append(item)
    assert seen == [1, 2]


async def test_a_users_own_timeout_error_stays_what_it_is() -> None:
    """It is not taken for ours."""

    @component.timeout("1m")
    async def fail() -> None:
        raise TimeoutError("theirs")

    with pytest.raises(TimeoutError, match="theirs"):
        await fail()


async def test_a_fluent_call_makes_a_new_component() -> None:
    """The old one is as it was."""
    changed = double.retry(attempts=2).timeout("1s").private().named("twice").keyed("k")
    assert changed is not double
    assert (changed.name, double.name) == ("twice", "double")
    assert (changed.policy.retry.attempts, double.policy.retry.attempts) == (2, 1)
    assert changed.timeout(None).policy.limits.each_s is None
    assert changed.private(False).policy.private is False
    assert await changed(4) == 8


def test_settings_that_make_no_sense_are_refused() -> None:
    """Where they are made."""
    with pytest.raises(ValueError, match="leaves no time"):
        double.timeout(0)
    with pytest.raises(ValueError, match="not empty"):
        double.named("")
    with pytest.raises(ValueError, match="not empty"):
        double.keyed("")


def test_a_component_of_a_component_is_refused() -> None:
    """Two decorators are one too many."""
    with pytest.raises(TypeError, match="double is a component already"):
        component(double)


def test_names_are_printable() -> None:
    """They end up in logs and on screens."""
    with pytest.raises(ValueError, match="printable"):
        double.named("a\nb")
    with pytest.raises(ValueError, match="128"):
        double.named("a" * 129)


async def test_showing_does_nothing_outside_a_run() -> None:
    """So components can be tested alone."""
    status("Working", done=0, total=3)
    publish("event", {"a": 1})
    publish.state("state", [])
    publish.patch("state", [{"op": "add", "path": "/-", "value": 1}])


async def test_the_error_of_a_component_is_no_wrapper_outside_a_run() -> None:
    """Also where components call components."""

    @component
    async def inner() -> None:
        raise KeyError("x")

    @component
    async def outer() -> None:
        await inner()

    with pytest.raises(KeyError):
        await outer()


def test_component_errors_are_onward_errors() -> None:
    """One base for all that Onward raises."""
    assert issubclass(ComponentError, OnwardError)


async def test_nobody_waits_between_tries_in_a_test_that_says_so() -> None:
    """A backoff of an hour takes no time."""
    flaky = Flaky(1)

    @component.retry(2, "1h")
    async def call() -> int:
        return flaky()

    with testing.no_backoff():
        assert await call() == 2


def test_a_stream_is_an_awaitable_and_an_iterator() -> None:
    """The type that users name."""
    stream = words("a")
    assert isinstance(stream, Stream)
    assert asyncio.iscoroutine(stream)
