"""What goes wrong in systems of this kind, one test for each: all of it was seen elsewhere.

Where a crash matters, the executor is killed after every event of the run, one run each.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pytest

from onward import ComponentError, component, publish, status, testing, workflow
from onward.engine import Attempt
from onward.memory import MemoryRun
from onward.testing import Result
from onward.v1.event_pb2 import ATTEMPT_CAUSE_STARTED, OUTCOME_CANCELLED, OUTCOME_ERROR
from onward.v1.run_pb2 import RUN_STATE_RUNNING, RUN_STATE_SUCCEEDED, Run


@pytest.fixture(autouse=True)
def count_each_run_once() -> Iterator[None]:
    """These tests count what runs."""
    with testing.no_replay():
        yield


async def killed_everywhere(flow: Any, *args: Any, reset: Any = lambda: None) -> list[Result[Any]]:
    """Run it undisturbed, and then once for each of its events, after which its executor dies. Nobody must notice."""
    reset()
    calm = await testing.run(flow, *args)
    results = [calm]
    for offset in range(2, len(calm.events)):
        reset()
        with testing.crash(offset):
            result = await testing.run(flow, *args)
        assert result.attempts == 2, offset
        assert (result.state, seen(result)) == (calm.state, seen(calm)), offset
        results.append(result)
    return results


def seen(result: Result[Any]) -> dict[str, Any]:
    """What a user of the run sees, in the end."""
    view = result.view
    return {
        "output": view.output,
        "error": result.error and (result.error.type, result.error.message),
        "states": view.states,
        "events": view.events,
        "components": sorted(
            (
                one.name,
                one.state,
                [status.message for status in one.statuses],
                [(part.text, list(part.values)) for part in one.parts.values()],
            )
            for one in view.components.values()
            if one.state != "cancelled"
        ),
    }


def finished(result: Result[Any], name: str) -> list[Any]:
    ids = {event.component_id for event in result.events if event.component_started.name == name}
    return [
        event.component_finished
        for event in result.events
        if event.component_id in ids and event.HasField("component_finished")
    ]


@component
async def identity(value: Any) -> Any:
    return value


async def test_a_failed_component_is_not_replayed_as_good() -> None:
    """Not in a loop of the user's own either, which tries the same call until it succeeds."""
    ran = Counter[int]()

    @component
    async def flaky(number: int) -> str:
        ran[number] += 1
        if number < 3:
            raise ConnectionError(f"try {number}")
        return f"made by try {number}"

    @workflow
    async def flow() -> list[str]:
        told = []
        for number in range(1, 5):
            try:
                told.append(await flaky(number))
                break
            except ComponentError as error:
                told.append(error.message)
        return told

    for result in await killed_everywhere(flow, reset=ran.clear):
        assert result.output == ["try 1", "try 2", "made by try 3"]
        assert [one.outcome for one in finished(result, "flaky")][:2] == [OUTCOME_ERROR] * 2


async def test_nothing_is_replayed_as_nothing() -> None:
    """A component without a result gives None every time."""

    @component
    async def nothing() -> None: ...

    @component
    async def unannotated():  # type: ignore[no-untyped-def]
        pass

    @workflow
    async def flow() -> list[bool]:
        got: list[Any] = list(await asyncio.gather(nothing(), unannotated(), identity(None)))
        return [one is None for one in got]

    for result in await killed_everywhere(flow):
        assert result.output == [True, True, True]


async def test_a_call_is_known_by_its_place_and_not_by_its_input() -> None:
    """Of two calls with one input the second is never answered with what the first had."""
    drawn = Counter[str]()

    @component
    async def draw(prompt: str) -> str:
        drawn[prompt] += 1
        return f"sample {drawn[prompt]}"

    @component
    async def asks(prompt: str) -> str:
        return await draw(prompt)

    @workflow
    async def flow() -> bool:
        first, second = await asks("p"), await draw("p")
        return first != second

    for result in await killed_everywhere(flow, reset=drawn.clear):
        assert result.output is True


@pytest.mark.parametrize("flipped", [False, True])
async def test_parallel_calls_with_one_input_do_not_swap_their_results(flipped: bool) -> None:
    """In whichever order they came to be called."""
    drawn = Counter[str]()

    @component
    async def draw(prompt: str) -> int:
        drawn[prompt] += 1
        return drawn[prompt]

    @component
    async def item(number: int) -> tuple[int, int]:
        if (number == 0) == flipped:
            await identity(number)
        got = await draw("same")
        await identity(got)
        return number, got

    @workflow
    async def flow() -> list[tuple[int, int]]:
        return list(await asyncio.gather(item(0), item(1)))

    drawn.clear()
    calm = await testing.run(flow)
    for offset in range(2, len(calm.events)):
        drawn.clear()
        with testing.crash(offset):
            result = await testing.run(flow)
        kept = {
            event.component_id: event.component_finished.output.data
            for event in result.events
            if event.HasField("component_finished")
        }
        parents = {
            event.component_id: event.component_started.parent_id
            for event in result.events
            if event.component_started.name == "draw"
        }
        told = {bytes(kept[parent]).decode(): int(kept[one]) for one, parent in parents.items() if parent in kept}
        assert {name: int(name.strip("[]").split(",")[1]) for name in told} == told
        assert sorted(number for number, _ in result.output) == [0, 1]


async def test_names_with_separators_do_not_run_into_each_other() -> None:
    """Whatever a name or a key holds, each call is its own."""
    names = ["a:b", "a", "b", "a-b", "a/b", "a?b", "a b", "ä", "a.b"]
    ran = Counter[str]()

    @component
    async def leaf(name: str) -> str:
        ran[name] += 1
        return name

    @workflow
    async def flow() -> list[str]:
        got = [await leaf.named(name)(name) for name in names]
        return got + [await leaf.keyed(name)(name) for name in names]

    for result in await killed_everywhere(flow, reset=ran.clear):
        assert result.output == names * 2
        ids = [event.component_id for event in result.events if event.HasField("component_started")]
        assert len(set(ids)) == 2 * len(names)


@dataclass
class Page:
    at: datetime
    tags: set[str]
    size: int
    data: bytes
    more: dict[int, date]


async def test_types_are_not_lost() -> None:
    """Dates, sets, bytes, numbers beyond 64 bits, keys that are no text."""
    page = Page(datetime(2026, 1, 2, tzinfo=UTC), {"a", "b"}, 2**80, b"\xff\x00", {1: date(2026, 1, 2)})

    @component
    async def fetch() -> Page:
        return page

    @workflow
    async def flow() -> bool:
        got = await fetch()
        await identity(None)
        return got == page and type(got.size) is int and type(got.tags) is set

    for result in await killed_everywhere(flow):
        assert result.output is True


async def test_an_input_that_is_no_json_does_not_fail_the_call() -> None:
    """A cycle, an open client, a function: they are called with, though nobody can see them."""
    cycle: list[Any] = []
    cycle.append(cycle)

    @component
    async def takes(*values: Any) -> int:
        return len(values)

    @workflow
    async def flow() -> int:
        return int(await takes(cycle, asyncio.Event(), len, 2**80))

    for result in await killed_everywhere(flow):
        assert result.output == 4


async def test_a_crash_in_mid_stream_sends_no_word_again() -> None:
    """Awaited, read, and by the workflow itself."""

    @component
    async def words(text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word + " "

    @workflow
    async def flow() -> AsyncIterator[str]:
        yield await words("one two three")
        async for word in words("four five"):
            yield word
            await identity(word)

    for result in await killed_everywhere(flow):
        assert result.output == result.view.text == "one two three four five "


async def test_an_error_in_a_stream_is_the_streams() -> None:
    """Not its reader's; and a stream that is left early is closed in the log."""

    @component
    async def breaks() -> AsyncIterator[str]:
        yield "a"
        raise ConnectionError("broken")

    @component
    async def goes_on() -> AsyncIterator[int]:
        for number in range(100):
            yield number

    @component
    async def reader() -> str:
        got = ""
        try:
            async for word in breaks():
                got += word
        except ComponentError as error:
            got += f" {error.name}"
        async for _ in goes_on():
            break
        return got

    @workflow
    async def flow() -> str:
        return await reader()

    for result in await killed_everywhere(flow):
        assert result.output == "a breaks"
        assert finished(result, "breaks")[-1].outcome == OUTCOME_ERROR
        assert finished(result, "goes_on")[-1].outcome == OUTCOME_CANCELLED
        assert not finished(result, "reader")[-1].HasField("error")


async def test_nothing_is_published_again_on_replay() -> None:
    """Statuses, events and states of the workflow's own body, equal ones among them."""

    @workflow
    async def flow() -> None:
        for number in range(3):
            status("working")
            publish("found", {"same": True})
            publish.state("progress", {"at": number})
            await identity(number)

    for result in await killed_everywhere(flow):
        assert result.statuses == ["working"] * 3
        assert result.view.events == {"found": [{"same": True}] * 3}
        assert result.view.states == {"progress": {"at": 2}}


async def test_a_workflow_inside_a_workflow_loses_no_events() -> None:
    """What it shows is the run's, and is remembered with it."""

    @workflow
    async def inner(name: str) -> str:
        status(f"inner {name}")
        publish.state(name, {"done": True})
        return str(await identity(name))

    @workflow
    async def outer() -> list[str]:
        status("outer")
        return [await inner("a"), await inner("b")]

    for result in await killed_everywhere(outer):
        assert result.statuses == ["outer", "inner a", "inner b"]
        assert result.view.states == {"a": {"done": True}, "b": {"done": True}}
        assert result.output == ["a", "b"]


async def test_changed_code_is_no_silent_match() -> None:
    """The run is paused, and says what was expected and what came."""
    changed = False

    @workflow
    async def flow() -> str:
        got = str(await identity("a" if not changed else "b"))
        await identity("end")
        return got

    calm = await testing.run(flow)
    memory = MemoryRun()

    async def attempt(dies_after: int = 0) -> None:
        log = memory.begin(dies=testing.points.after_offset(dies_after) if dies_after else None)
        await Attempt(
            flow,
            run=Run(run_id="r", namespace="n", workflow="flow"),
            log=log,
            attempt=log.attempt,
            cause=ATTEMPT_CAUSE_STARTED,
            executor_id="e",
            deployment="d",
        ).run()

    await attempt(len(calm.events) - 2)
    changed = True
    await attempt()
    error = memory.events[-1].run_state_changed.error
    assert error.reason == "NON_DETERMINISTIC"
    assert '{"value":"a"}' in error.message
    assert '{"value":"b"}' in error.message


async def test_no_result_is_used_before_it_is_kept() -> None:
    """While the store is away nothing goes on, and nothing ends "done" that is not in the log."""
    used = asyncio.Event()
    ran = asyncio.Event()
    memory = MemoryRun()

    @component
    async def pays() -> int:
        ran.set()
        return 1

    @workflow
    async def flow() -> int:
        got = await pays()
        used.set()
        return got

    log = memory.begin()
    attempt = Attempt(
        flow,
        run=Run(run_id="r", namespace="n", workflow="flow"),
        log=log,
        attempt=1,
        cause=ATTEMPT_CAUSE_STARTED,
        executor_id="e",
        deployment="d",
    )
    async with asyncio.timeout(15):
        with memory.offline():
            task = asyncio.create_task(attempt.run())
            await ran.wait()
            for _ in range(100):
                await asyncio.sleep(0)
            assert not used.is_set()
            assert not task.done()
            assert memory.state == RUN_STATE_RUNNING
        await task
    assert memory.state == RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("how", ["awaited", "read", "fallback"])
async def test_no_try_begins_before_the_log_has_that_the_last_one_failed(how: str) -> None:
    """A crash would give it back, and what is tried twice at most would be done four times."""
    tried: list[int] = []
    memory = MemoryRun()

    async def answer() -> AsyncIterator[str]:
        tried.append(0)
        yield "instead"

    @component.retry(2, 0)
    async def pays() -> AsyncIterator[str]:
        tried.append(len(tried) + 1)
        if len(tried) == 1:
            raise ConnectionError
        yield "done"

    @workflow
    async def flow() -> str:
        match how:
            case "awaited":
                return await pays()
            case "read":
                return "".join([piece async for piece in pays()])
        return await pays.retry(attempts=1).fallback(answer)()

    attempt = Attempt(
        flow,
        run=Run(run_id="r", namespace="n", workflow="flow"),
        log=memory.begin(),
        attempt=1,
        cause=ATTEMPT_CAUSE_STARTED,
        executor_id="e",
        deployment="d",
    )
    async with asyncio.timeout(15):
        with memory.offline():
            task = asyncio.create_task(attempt.run())
            for _ in range(300):
                await asyncio.sleep(0)
            assert tried == [1]
        await task
    assert len(tried) == 2
    assert memory.state == RUN_STATE_SUCCEEDED


async def test_what_is_written_grows_with_what_was_done_and_no_faster() -> None:
    """Each result goes out once: nothing is sent again with what comes later."""

    @component
    async def make(number: int) -> str:
        return f"{number:4}" + "x" * 1_300

    @workflow
    async def flow(count: int) -> None:
        for number in range(count):
            await make(number)

    few, many = [
        sum(len(event.SerializeToString()) for event in (await testing.run(flow, count)).events) for count in (50, 200)
    ]
    assert 3.9 < many / few < 4.1


async def test_a_run_that_failed_is_closed_once() -> None:
    """One end, with one error, whatever crashed before."""

    @workflow
    async def flow() -> None:
        await identity(1)
        raise ValueError("no")

    for result in await killed_everywhere(flow):
        ends = [event for event in result.events if event.run_state_changed.state >= RUN_STATE_SUCCEEDED]
        assert ends == [result.events[-1]]
        assert (result.state, ends[0].run_state_changed.error.message) == ("FAILED", "no")
