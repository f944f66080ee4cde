"""Types of user code, checked by mypy --strict and never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine
from typing import Any, assert_type

import onward
from onward import Component, Stream, Workflow, component, publish, status, testing, workflow
from onward import map as omap


@component
async def bare(topic: str, *, words: int = 3) -> list[str]:
    return [topic] * words


@component.retry(attempts=4, backoff="1s..30s").timeout("2m")
async def fluent(topic: str) -> list[str]:
    return [topic]


@component
def synchronous(x: int) -> str:
    return str(x)


@component
async def text(title: str) -> AsyncIterator[str]:
    yield title


@component
async def text_generator(title: str) -> AsyncGenerator[str, None]:
    yield title


@component
async def numbers(to: int) -> AsyncIterator[int]:
    yield to


@component
async def number_generator(to: int) -> AsyncGenerator[int, None]:
    yield to


@component
def handed_on(to: int) -> AsyncIterable[int]:
    return numbers.fn(to)


@component
async def nothing() -> None: ...


@workflow
async def blog(topic: str) -> dict[str, int]:
    return {topic: 1}


@workflow.run_timeout("1h").retry(2)
async def streaming(topic: str) -> AsyncIterator[str]:
    yield topic


@workflow
def plain(x: int) -> int:
    return x


def no_number(x: int) -> None: ...


async def later(x: int) -> float:
    return x


def any_length(title: str) -> float:
    return len(title)


@component.retry(2).fallback(None).timeout("1m")
async def with_fallback(title: str) -> int:
    return len(title)


@workflow.fallback(any_length)
async def workflow_with_fallback(title: str) -> int:
    return len(title)


async def calls() -> None:
    called = bare("tea", words=2)
    _ = assert_type(called, Coroutine[object, object, list[str]])
    assert_type(await called, list[str])
    assert_type(await bare("tea"), list[str])
    assert_type(await fluent("tea"), list[str])
    assert_type(await synchronous(1), str)
    assert_type(await nothing(), None)
    assert_type(await blog("tea"), dict[str, int])
    assert_type(await plain(1), int)

    stream = text("a")
    _ = assert_type(stream, Stream[str, str])
    assert_type(await stream, str)
    assert_type(await text("a"), str)
    assert_type(await text_generator("a"), str)
    assert_type(await numbers(1), list[int])
    assert_type(await number_generator(1), list[int])
    assert_type(await handed_on(1), list[int])
    assert_type(await streaming("a"), str)
    async for part in text("a"):
        assert_type(part, str)
    async for number in numbers(1):
        assert_type(number, int)

    # Fluent on what exists keeps the signature.
    assert_type(await bare.retry(attempts=1).timeout(None).named("n").keyed("k").private()("tea", words=1), list[str])
    assert_type(await text.retry()("a"), str)
    assert_type(await blog.timeout("1m").run_timeout("1h")("a"), dict[str, int])

    assert_type(await text.timeout("1h", first="1m", between="10s", total="2h")("a"), str)

    assert_type(await bare.cache().cache("1h", version="2", key=lambda topic, words=3: topic)("tea"), list[str])

    assert_type(await bare.concurrency(4).concurrency(4, key="a")("tea"), list[str])
    assert_type(await bare.concurrency(4, key=lambda topic, words=3: topic)("tea"), list[str])
    assert_type(await text.concurrency(1)("a"), str)
    assert_type(await plain.concurrency(1).run_timeout("1h")(1), int)

    # What a fallback gives is a result, too.
    assert_type(await bare.fallback([])("tea", words=1), list[str])
    assert_type(await bare.fallback(None)("tea"), list[str] | None)
    assert_type(await synchronous.fallback(0).retry()(1), str | int)
    assert_type(await synchronous.fallback(no_number)(1), str | None)
    assert_type(await synchronous.fallback(plain)(1), str | int)
    assert_type(await synchronous.fallback(later)(1), str | float)
    assert_type(await plain.fallback(None, on=ValueError).run_timeout("1h")(1), int | None)
    assert_type(await text.fallback("sorry")("a"), str)
    assert_type(await text.fallback(text_generator)("a"), str)
    assert_type(await numbers.fallback([])(1), list[int])
    assert_type(await with_fallback("a"), int | None)
    assert_type(await workflow_with_fallback("a"), int | float)
    async for part in text.fallback("sorry")("a"):
        assert_type(part, str)

    # The function itself.
    assert_type(await bare.fn("tea"), list[str])
    assert_type(synchronous.fn(1), str)
    assert_type(text.fn("a"), AsyncIterator[str])
    assert_type(number_generator.fn(1), AsyncGenerator[int, Any])

    # Side by side.
    assert_type(await asyncio.gather(bare("a"), text("b"), numbers(1)), tuple[list[str], str, list[int]])
    assert_type(await asyncio.create_task(text("a")), str)
    assert_type(await asyncio.create_task(synchronous(1)), str)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(numbers(1))
    assert_type(task.result(), list[int])

    assert_type(await omap(text, ["a"]), list[str])
    assert_type(await omap(numbers, range(3), concurrency=2), list[list[int]])
    assert_type(await omap(bare, ["a"], key=str), list[list[str]])
    assert_type(await onward.map(synchronous, text_lengths()), list[str])

    status("Writing", done=0, total=3)
    publish("found", {"any": "JSON"})
    publish.patch("draft", [{"op": "append", "path": "/text", "value": "a"}])

    result = await testing.run(blog, "tea")
    assert_type(result.output, dict[str, int])
    assert_type((await testing.run(streaming, topic="tea")).output, str)


async def text_lengths() -> AsyncIterator[int]:
    yield 1


async def mistakes() -> None:
    bare(1)  # type: ignore[arg-type, unused-coroutine]
    bare()  # type: ignore[call-arg, unused-coroutine]
    bare("a", word=1)  # type: ignore[call-arg, unused-coroutine]
    fluent.retry(attempts="4")  # type: ignore[arg-type]
    bare.cache(None)  # type: ignore[arg-type]
    bare.concurrency("4")  # type: ignore[arg-type]
    bare.concurrency()  # type: ignore[call-arg]
    bare.concurrency(4, key=1)  # type: ignore[arg-type]
    await omap(bare, [1])  # type: ignore[arg-type]
    await testing.run(blog, 1)  # type: ignore[arg-type]
    async for _ in bare("a"):  # type: ignore[attr-defined]
        pass


def names(
    one: Component[[str], Coroutine[Any, Any, int], Any],
    other: Workflow[..., Any, Any],
    function: Callable[[str], Coroutine[Any, Any, int]],
) -> None:
    function = one
    one = other
    assert function is one


@workflow
async def waits(day: str) -> bool:
    """What is waited for has the type that was asked for."""
    await onward.sleep("3d")
    assert_type(await onward.signal("go", bool), bool)
    assert_type(await onward.signal("go", list[int], timeout="1d"), list[int])
    assert_type(await onward.signal("go"), Any)
    return await onward.request_input("approval", bool, prompt="Go?")
