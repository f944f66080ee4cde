"""The error of a component as its caller sees it: the same, field by field, the first time and on replay."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from onward import ComponentError, component, testing, workflow

CAUGHT: list[ComponentError] = []


class NeedsArguments(Exception):
    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(code, why)
        self.details = {"code": code, "why": why}


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class OddText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307 - the point of it


class OddAttributes(Exception):
    @property
    def details(self) -> object:
        raise RuntimeError("no details")

    @property
    def retryable(self) -> bool:
        raise RuntimeError("nobody knows")


class HoldsALock(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Endless(Exception):
    def __init__(self) -> None:
        super().__init__("endless")
        self.details: list[Any] = []
        self.details.append(self.details)


def from_none() -> None:
    try:
        raise KeyError("first")  # noqa: TRY301 - as user code does
    except KeyError:
        raise ValueError("second") from None


def from_another() -> None:
    try:
        raise KeyError("first")  # noqa: TRY301 - as user code does
    except KeyError as error:
        raise ConnectionError("second") from error


def throwing(error: BaseException) -> Callable[[], None]:
    def throw() -> None:
        raise error

    return throw


ERRORS: dict[str, Callable[[], None]] = {
    "plain": throwing(ValueError("plain")),
    "no arguments": throwing(ValueError()),
    "not text": throwing(ValueError(1, None, b"x")),
    "surrogates": throwing(ValueError("\ud83d and \udcff and 🍵")),
    "zero byte": throwing(ValueError("a\0b\r\n\x1b[31m")),
    "huge": throwing(ValueError("x" * 2_000_000)),
    "huge details": throwing(NeedsArguments(1, why="x" * 2_000_000)),
    "details": throwing(NeedsArguments(7, why="🍵")),
    "key error": throwing(KeyError("quoted")),
    "no text": throwing(NoText()),
    "odd text": throwing(OddText()),
    "odd attributes": throwing(OddAttributes()),
    "not picklable": throwing(HoldsALock()),
    "endless": throwing(Endless()),
    "from none": from_none,
    "from another": from_another,
    "group": throwing(ExceptionGroup("two", [ValueError("a"), ConnectionError("b")])),
    "group of one": throwing(ExceptionGroup("one", [ValueError("a")])),
    "a user's timeout": throwing(TimeoutError("mine")),
    "exit": throwing(SystemExit(3)),
    "unicode": throwing(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why")),
    "stop": throwing(StopAsyncIteration("stop")),
}


@component
async def below(name: str) -> None:
    ERRORS[name]()


@component
async def nested(name: str) -> None:
    await below(name)


@component
def in_a_thread(name: str) -> None:
    ERRORS[name]()


@component
async def stream(name: str) -> AsyncIterator[str]:
    yield "a"
    ERRORS[name]()


@component
async def nested_stream(name: str) -> AsyncIterator[str]:
    async for word in stream(name):
        yield word


@component.retry(2, 0)
async def tried(name: str) -> None:
    ERRORS[name]()


@component
async def grouped(name: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(below(name))


async def reads(name: str) -> None:
    async for _ in stream(name):
        pass


async def reads_nested(name: str) -> None:
    async for _ in nested_stream(name):
        pass


WAYS: dict[str, Callable[[str], Any]] = {
    "component": below,
    "nested": nested,
    "thread": in_a_thread,
    "awaited stream": stream,
    "read stream": reads,
    "nested stream": reads_nested,
    "tried twice": tried,
    "task group": grouped,
}


@workflow
async def flow(way: str, name: str) -> str:
    try:
        await WAYS[way](name)
    except ComponentError as error:
        CAUGHT.append(error)
        return error.type
    return "no error"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ERRORS)
async def test_every_field_is_the_same_on_replay(name: str, way: str) -> None:
    """Whatever is raised, wherever: the run ends, and a later attempt that has but the log sees the same."""
    CAUGHT.clear()
    result = await testing.run(flow, way, name)
    assert result.state == "SUCCEEDED"
    first, again = CAUGHT
    assert vars(first) == vars(again)
    assert (str(first), repr(first), first.args) == (str(again), repr(again), again.args)
    assert type(first) is type(again) is ComponentError
    started = {
        event.component_id: event.component_started.name
        for event in result.events
        if event.HasField("component_started")
    }
    called = {"read stream": "stream", "awaited stream": "stream", "nested stream": "nested_stream"}
    names = {"component": "below", "thread": "in_a_thread", "tried twice": "tried", "task group": "grouped"}
    assert first.name == started[first.component_id] == {**names, **called}.get(way, way)
    assert first.message == first.message.encode().decode(), "well-formed"


@pytest.mark.parametrize("name", ["plain", "details", "group", "from none", "exit"])
async def test_the_error_that_came_up_names_where_it_began(name: str) -> None:
    """Through a component above it keeps type and message, and its details say which component it was."""
    CAUGHT.clear()
    await testing.run(flow, "component", name)
    await testing.run(flow, "nested", name)
    one, _, above, _ = CAUGHT
    assert (above.type, above.message, above.retryable) == (one.type, one.message, one.retryable)
    origin = above.details["caused_by"]
    assert (origin["name"], origin["reason"]) == ("below", "COMPONENT_FAILED")
    assert origin.get("details") == one.details
    assert above.component_id != origin["component_id"]


def test_a_component_error_can_be_pickled_and_told() -> None:
    """It may have to cross a process, or a log of the user's own."""
    error = ComponentError(component_id="c", name="n", reason="R", type="T", message="m", details={"a": 1})
    assert str(error) == "n: T: m"
    again = pickle.loads(pickle.dumps(error))
    assert vars(again) == vars(error)
    assert str(again) == str(error)
