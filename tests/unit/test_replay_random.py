"""Random workflows that lose their executors at random places: nobody can tell from what is seen or from the result."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from onward import ComponentError, View, component, fold, publish, status, testing, workflow
from onward.v1.event_pb2 import Event

Step = list[Any]

_failed: set[str] = set()
"""Flaky steps that have failed once in the run under test."""
_ran: Counter[str] = Counter()
"""How often the body of a step was begun."""

leaves = st.one_of(
    st.builds(lambda text: ["status", text], st.sampled_from("abc")),
    st.builds(lambda text: ["publish", text], st.sampled_from("abc")),
    st.builds(lambda turns: ["yield", turns], st.integers(0, 6)),
    st.builds(lambda text: ["value", text], st.sampled_from("xyz")),
    st.just(["fail"]),
)


def inner(steps: st.SearchStrategy[Step], *, races: bool = False) -> st.SearchStrategy[Step]:
    some = st.lists(steps, max_size=4)
    if races:
        return st.one_of(
            inner(steps),
            st.builds(lambda left, right: ["race", left, right], some, some),
            st.builds(lambda left, right: ["first", left, right], some, some),
        )
    return st.one_of(
        st.builds(lambda inside: ["call", inside], some),
        st.builds(lambda inside: ["flaky", inside], some),
        st.builds(lambda inside: ["stream", inside], some),
        st.builds(lambda inside: ["read", inside], some),
        st.builds(lambda inside: ["look", inside], some),
        st.builds(lambda left, right: ["parallel", left, right], some, some),
    )


scripts = st.lists(st.recursive(leaves, inner, max_leaves=10), min_size=1, max_size=5)
racing = st.lists(st.recursive(leaves, lambda steps: inner(steps, races=True), max_leaves=10), min_size=1, max_size=5)
gaps_between_crashes = st.lists(st.integers(2, 12), min_size=1, max_size=4)


@component
async def call(path: str, steps: list[Any]) -> list[Any]:
    _ran[path] += 1
    return await perform(path, steps)


@component.retry(3, 0)
async def flaky(path: str, steps: list[Any]) -> list[Any]:
    _ran[path] += 1
    result = await perform(path, steps)
    if path not in _failed:
        _failed.add(path)
        raise ConnectionError(path)
    return result


@component
async def stream(path: str, steps: list[Any]) -> AsyncIterator[str]:
    _ran[path] += 1
    for number, step in enumerate(steps):
        yield f"{path}:{number} "
        for one in await perform(f"{path}.{number}", [step]):
            yield str(one)


async def perform(path: str, steps: list[Any]) -> list[Any]:
    results: list[Any] = []
    for number, (kind, *rest) in enumerate(steps):
        below = f"{path}/{number}"
        if kind == "status":
            status(f"{below} {rest[0]}")
            status("again")
        elif kind == "publish":
            # Under a name of the path: in which order parallel branches come is nobody's promise.
            name = re.sub("[^a-z0-9.]", "_", f"{path}{rest[0]}")
            publish(name, below)
            publish.state(f"where{name}", below)
        elif kind == "yield":
            for _ in range(rest[0]):
                await asyncio.sleep(0)
        elif kind == "value":
            results.append(rest[0])
        elif kind == "fail":
            raise ValueError(below)
        else:
            results.append(await caught(below, kind, *rest))
    return results


async def caught(path: str, kind: str, *rest: list[Any]) -> Any:
    try:
        if kind == "call":
            return await call(path, rest[0])
        if kind == "flaky":
            return await flaky(path, rest[0])
        if kind == "stream":
            return await stream(path, rest[0])
        if kind == "look":
            return [item async for item in stream(path, rest[0])]
        if kind == "read":
            items = []
            async for item in stream(path, rest[0]):
                items.append(item)
                await call(f"{path}+{len(items)}", [["status", item]])
            return items
        branches = [asyncio.create_task(call(f"{path}{side}", steps)) for side, steps in zip("lr", rest, strict=True)]
        if kind == "parallel":
            return [repr(one) for one in await asyncio.gather(*branches, return_exceptions=True)]
        done, pending = await asyncio.wait(branches, return_when=asyncio.FIRST_COMPLETED)
        if kind == "race":
            for task in pending:
                task.cancel()
        first = [repr(branch.exception() or branch.result()) for branch in branches if branch in done]
        await call(f"{path}!", [["status", str(first)]])
        await asyncio.gather(*branches, return_exceptions=True)
        return first
    except ComponentError as error:
        return f"{error.name} {error.message}"


@workflow
async def scripted(steps: list[Any]) -> list[Any]:
    return await perform("", steps)


@workflow
async def spoken(steps: list[Any]) -> AsyncIterator[str]:
    async for item in stream("", steps):
        yield item
        status(f"said {item}")


def seen(view: View) -> dict[str, Any]:
    """Return what a user sees, whatever offsets it has."""
    return {
        "state": view.state,
        "error": view.error and (view.error.reason, view.error.message, view.error.component_id),
        "output": view.output,
        "text": view.text,
        "body": [one.message for one in view.body.statuses],
        "events": view.events,
        "states": view.states,
        "components": {
            one.id: (one.name, one.state, [s.message for s in one.statuses], one.text, one.output, one.parent_id)
            for one in view.components.values()
        },
    }


def settled(events: list[Event]) -> View:
    """Fold what a reader gets who leaves out what is void: neither it nor the Rollbacks."""
    void: set[int] = set()
    for event in events:
        for component_id in event.rollback.component_ids:
            void.update(
                one.offset
                for one in events[event.rollback.after_offset : event.offset]
                if one.component_id == component_id
                and one.WhichOneof("kind") in ("output_delta", "status_updated", "published")
            )
    return fold(one for one in events if one.offset not in void and not one.HasField("rollback"))


async def run_once(flow: Any, steps: list[Any], crashes: list[int]) -> tuple[testing.Result[Any], Counter[str]]:
    _failed.clear()
    _ran.clear()
    with testing.crash(*crashes):
        result = await testing.run(flow, steps)
    return result, Counter(_ran)


@contextmanager
def in_order() -> Iterator[None]:
    """Hold the block to this: no replay stands still until it gives up on a call that nobody makes."""
    given_up: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: given_up.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("onward.replay")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert not [line for line in given_up if "the order of the log is not kept" in line]


def crashes(gaps: list[int]) -> list[int]:
    return [sum(gaps[: index + 1]) for index in range(len(gaps))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scripts, st.booleans(), gaps_between_crashes, st.sampled_from([asyncio.new_event_loop, uvloop.new_event_loop]))
@example([["read", [["stream", []]]]], False, [8, 8, 9], asyncio.new_event_loop)  # a piece without text, given again
def test_a_crash_changes_nothing(steps: list[Any], speaks: bool, gaps: list[int], loop: Any) -> None:
    """fold(raw) = fold(settled) = fold of the undisturbed run, wherever its executors die; the result is the same.

    And each attempt gets to where the one before it was without waiting for anything that does not come.
    """

    async def check() -> None:
        flow = spoken if speaks else scripted
        calm, calm_ran = await run_once(flow, steps, [])
        result, ran = await run_once(flow, steps, crashes(gaps))
        assert result.state == calm.state
        assert seen(result.view) == seen(calm.view)
        assert seen(settled(result.events)) == seen(calm.view)
        # Each attempt that was lost may have run a step once in vain; of one that is tried again, every try.
        if "flaky" not in str(steps):
            for path, count in ran.items():
                assert count <= calm_ran[path] + result.attempts - 1, path

    with in_order(), asyncio.Runner(loop_factory=loop) as runner:
        runner.run(check())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(racing, st.booleans(), gaps_between_crashes)
def test_what_a_race_has_led_to_stays_so(steps: list[Any], speaks: bool, gaps: list[int]) -> None:
    """A later attempt goes the way that the log tells: it never meets itself coming the other way."""

    async def check() -> None:
        result, _ = await run_once(spoken if speaks else scripted, steps, crashes(gaps))
        assert result.state != "PAUSED", result.error
        assert seen(settled(result.events)) == seen(result.view)

    asyncio.run(check())
