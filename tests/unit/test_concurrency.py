"""How many of a component run at once: who waits, what a permit covers, and when it is given back."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

import onward
from onward import ComponentError, component, concurrency, testing, workflow
from onward.engine import Attempt
from onward.memory import MemoryCache, MemoryPermits, MemoryRun
from onward.v1.event_pb2 import ATTEMPT_CAUSE_EXECUTOR_LOST, ATTEMPT_CAUSE_STARTED
from onward.v1.run_pb2 import RUN_STATE_SUCCEEDED, Payload, Run


class Running:
    """What runs at once."""

    def __init__(self) -> None:
        self.now: Counter[Any] = Counter()
        self.most: Counter[Any] = Counter()
        self.begun: list[Any] = []

    async def once(self, what: Any = "", *, turns: int = 3) -> None:
        self.begin(what)
        for _ in range(turns):
            await asyncio.sleep(0)
        self.now[what] -= 1

    def begin(self, what: Any = "") -> None:
        self.begun.append(what)
        self.now[what] += 1
        self.most[what] = max(self.most[what], self.now[what])


@pytest.fixture
def running() -> Running:
    return Running()


class Counting(MemoryPermits):
    """Counts what is asked for, and what is held."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = self.held = 0

    async def acquire(self, name: str, limit: int, holder: str) -> Callable[[], None]:
        self.asked += 1
        release = await super().acquire(name, limit, holder)
        self.held += 1

        def once() -> None:
            self.held -= 1
            release()

        return once


async def attempt(
    flow: Any, permits: MemoryPermits, memory: MemoryRun | None = None, *, dies_after: int = 0, cache: Any = None
) -> MemoryRun:
    """Run an attempt of `flow`."""
    memory = memory or MemoryRun()
    log = memory.begin(dies_after=dies_after)
    async with asyncio.timeout(20):
        await Attempt(
            flow,
            run=Run(run_id=f"r{id(memory)}", namespace="n", workflow=flow.name, input=Payload(data=b"{}")),
            log=log,
            attempt=log.attempt,
            cause=ATTEMPT_CAUSE_STARTED if log.attempt == 1 else ATTEMPT_CAUSE_EXECUTOR_LOST,
            executor_id="e",
            deployment="d",
            cache=cache,
            permits=permits,
        ).run()
    return memory


async def test_no_more_than_the_limit_run_at_once(running: Running) -> None:
    """Of one run, and of several; and so many do."""

    @component.concurrency(3)
    async def step(number: int) -> int:
        await running.once()
        return number

    @workflow
    async def flow() -> list[int]:
        return await asyncio.gather(*map(step, range(10)))

    with testing.one_cache(), testing.no_replay():
        results = await asyncio.gather(*(testing.run(flow) for _ in range(4)))
    assert [result.output for result in results] == [list(range(10))] * 4
    assert running.most[""] == 3
    assert len(running.begun) == 40


async def test_it_is_a_limit_of_its_own(running: Running) -> None:
    """Fluent: the component that it was made of has none. And map's is another."""

    @component
    async def step(name: str) -> None:
        await running.once(name)

    limited = step.named("limited").concurrency(2)

    @workflow
    async def flow() -> None:
        await asyncio.gather(*(step("free") for _ in range(9)), *(limited("limited") for _ in range(9)))
        await onward.map(limited, ["map"] * 9, concurrency=5)

    assert not (await testing.run(flow)).error
    assert running.most == {"free": 9, "limited": 2, "map": 2}


async def test_keys_are_counted_apart(running: Running) -> None:
    """Made of the arguments, given by name or by place; or said."""

    @component.concurrency(2, key=lambda tenant, number=0: {"of": tenant})
    async def step(tenant: str, number: int = 0) -> None:
        await running.once(tenant)

    @workflow
    async def flow() -> None:
        calls = [step(tenant=tenant, number=n) if n % 2 else step(tenant, n) for tenant in "abc" for n in range(6)]
        said = [step.concurrency(1, key=key)(key) for key in ("x", "y") for _ in range(4)]
        await asyncio.gather(*calls, *said)

    assert not (await testing.run(flow)).error
    assert running.most == {"a": 2, "b": 2, "c": 2, "x": 1, "y": 1}


async def test_a_key_that_fails_fails_the_call() -> None:
    """With its own error, and for good."""

    @component.retry(4).concurrency(2, key=lambda number: 1 // number)
    async def step(number: int) -> int:
        return number

    @workflow
    async def flow() -> str:
        try:
            await step(0)
        except ComponentError as error:
            return error.type
        return ""

    assert (await testing.run(flow)).output == "ZeroDivisionError"


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, 10**7])
def test_a_limit_is_a_number_from_1(limit: Any) -> None:
    with pytest.raises(ValueError, match="run at once"):
        component.concurrency(limit)


async def test_the_wait_is_no_part_of_a_trys_time() -> None:
    """It begins when the try may run."""

    @component.concurrency(1).timeout("1s")
    async def step() -> None:
        await asyncio.sleep(0.2)

    @component.concurrency(1, key="stream").timeout("1s")
    async def stream() -> AsyncIterator[str]:
        await asyncio.sleep(0.2)
        yield "x"

    async def read() -> None:
        async for _ in stream():
            pass

    @workflow
    async def flow() -> None:
        await asyncio.gather(*(step() for _ in range(8)), *(read() for _ in range(8)))

    assert not (await testing.run(flow)).error


async def test_the_wait_counts_for_the_total_and_leaves_the_line(running: Running) -> None:
    """Who is out of time does not hold up who comes after it."""
    out_of_time = asyncio.Event()

    @component.concurrency(1)
    async def step(name: str) -> None:
        running.begin(name)
        if name == "long":
            await out_of_time.wait()

    @workflow
    async def flow() -> str:
        first = asyncio.create_task(step("long"))
        late = asyncio.create_task(step.timeout(total="50ms")("late"))
        last = asyncio.create_task(step("last"))
        try:
            await late
        except ComponentError as error:
            out_of_time.set()
            await asyncio.gather(first, last)
            return error.reason
        return ""

    with testing.no_replay():
        assert (await testing.run(flow)).output == "TIMEOUT"
    assert running.begun == ["long", "last"]


async def test_between_two_tries_another_runs(running: Running) -> None:
    """And who tries again stands in line again."""

    @component.concurrency(1).retry(2, 0)
    async def step(name: str) -> None:
        running.begin(name)
        await asyncio.sleep(0)
        if running.begun.count("fails") == 1 and name == "fails":
            raise ValueError

    @workflow
    async def flow() -> None:
        await asyncio.gather(step("fails"), step("other"))

    assert not (await testing.run(flow)).error
    assert running.begun == ["fails", "other", "fails"]


@pytest.mark.parametrize("how", ["returns", "fails", "cancelled", "awaited", "read", "left", "dropped", "stream fails"])
async def test_however_it_ends_its_permit_is_the_next_ones(how: str) -> None:
    """A stream holds one from the first item that is asked for until it ends."""
    permits = Counting()
    held: list[int] = []
    begun = asyncio.Event()

    @component.concurrency(1, key="one")
    async def step() -> None:
        held.append(permits.held)
        if how == "fails":
            raise ValueError
        if how == "cancelled":
            begun.set()
            await asyncio.Event().wait()

    @component.concurrency(1, key="one")
    async def a_stream() -> AsyncIterator[str]:
        held.append(permits.held)
        yield "a"
        if how == "stream fails" and len(held) == 1:
            raise ValueError
        yield "b"

    stream = a_stream.named("step")

    async def called() -> None:
        if how in ("returns", "fails"):
            await step()
        elif how == "cancelled":
            task = asyncio.create_task(step())
            await begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif how == "awaited":
            assert await stream() == "ab"
        else:
            reading = stream()
            assert permits.held == 0
            async with aclosing(reading):
                async for _ in reading:
                    assert permits.held == 1
                    if how in ("left", "dropped"):
                        break
                if how == "dropped":
                    del reading

    @workflow
    async def flow() -> int:
        try:
            await called()
        except ComponentError as error:
            assert error.type == "ValueError"  # noqa: PT017
        await stream()
        return permits.held

    memory = await attempt(flow, permits)
    assert memory.state == RUN_STATE_SUCCEEDED, memory.events[-1]
    assert memory.events[-1].run_state_changed.output.data == b"0"
    assert held == [1, 1]


async def test_what_is_remembered_or_kept_asks_for_no_permit() -> None:
    """In a later attempt of the run only what it had not ended; in another run nothing that the cache has."""
    permits, cache = Counting(), MemoryCache()

    @component.concurrency(1)
    async def step(name: str) -> str:
        return name

    kept = step.named("kept").cache()

    @component.concurrency(1)
    async def stream() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    @workflow
    async def flow() -> str:
        read = [item async for item in stream()]
        return await step("a") + await kept("b") + await stream() + "".join(read)

    whole = await attempt(flow, permits, cache=cache)
    assert permits.asked == 4
    await attempt(flow, permits, cache=cache)
    assert permits.asked == 7

    again = whole.reopened()
    await attempt(flow, permits, again, cache=cache)
    assert (again.state, permits.asked) == (RUN_STATE_SUCCEEDED, 7)

    for dies_after in range(2, whole.last_offset):
        permits.asked = 0
        memory = await attempt(flow, permits, dies_after=dies_after)
        assert permits.held == 0, "a lost attempt leaves nothing"
        await attempt(flow, permits, memory)
        assert memory.state == RUN_STATE_SUCCEEDED
        assert permits.held == 0
        assert 4 <= permits.asked <= 6


async def test_what_answers_for_it_has_no_permit(running: Running) -> None:
    """A fallback may call what is limited as it is."""

    @component.concurrency(1)
    async def step(good: bool) -> str:
        if not good:
            raise ValueError
        return "good"

    async def other(good: bool) -> str:
        return await step(good=True)

    @workflow
    async def flow() -> list[str]:
        return await asyncio.gather(*(step.fallback(other)(good=False) for _ in range(3)))

    assert (await testing.run(flow)).output == ["good"] * 3


async def test_a_stream_from_the_cache_or_of_a_fallback_has_no_permit() -> None:
    """Read piece by piece or whole."""
    permits, cache = Counting(), MemoryCache()

    @component.concurrency(1)
    async def stream(good: bool) -> AsyncIterator[str]:
        if not good:
            raise ValueError
        yield "a"
        yield "b"

    @workflow
    async def flow() -> list[str]:
        kept, answered = stream.cache(), stream.fallback("ab")
        read = ["".join([item async for item in kept(good=True)]) for _ in range(2)]
        held = [permits.held async for _ in answered(good=False)]
        assert held == [0]
        return [*read, await kept(good=True), await answered(good=False)]

    memory = await attempt(flow, permits, cache=cache)
    assert memory.events[-1].run_state_changed.output.data == b'["ab","ab","ab","ab"]'
    assert permits.asked == 3, "to make it once, and to fail twice"


async def test_a_call_below_itself_fails_and_does_not_wait_for_ever() -> None:
    """At any depth, with any limit; another key is another limit."""

    @component
    async def between(depth: int, key: str) -> str:
        return await step.concurrency(2, key=key)(depth - 1, key)

    @component.retry(5)
    async def step(depth: int, key: str) -> str:
        return "end" if not depth else await between(depth, key if key == "same" else key + "x")

    @workflow
    async def flow() -> list[str]:
        limited = step.concurrency(2, key="same")
        other = await step.concurrency(2, key="x")(3, "x")
        try:
            return [other, await limited(1, "same")]
        except ComponentError as error:
            return [other, error.message]

    other, message = (await testing.run(flow)).output or ["", ""]
    assert other == "end"
    assert "called below itself" in message


async def test_a_run_that_parks_gives_its_permits_back(running: Running) -> None:
    """And asks again when it wakes."""
    permits = Counting()

    @component.concurrency(1)
    async def naps() -> str:
        await onward.sleep("1h")
        return "rested"

    @workflow
    async def flow() -> str:
        return await naps()

    memory = await attempt(flow, permits)
    assert memory.waiting is not None
    assert permits.held == 0
    result = await testing.run(flow)
    assert (result.output, result.attempts) == ("rested", 2)


async def test_outside_a_run_and_of_a_run_there_is_no_limit(running: Running) -> None:
    """It is just the function; and a run is always run."""

    @component.concurrency(1)
    async def step() -> None:
        await running.once("step")

    @workflow.concurrency(1)
    async def flow() -> None:
        await running.once("flow", turns=20)

    async with asyncio.timeout(10):
        await asyncio.gather(*(step() for _ in range(3)))
        with testing.one_cache(), testing.no_replay():
            await asyncio.gather(*(testing.run(flow) for _ in range(3)))
    assert running.most == {"step": 3, "flow": 3}


async def test_who_waits_for_long_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """In the process log, again and again: two that wait for each other do not do it silently."""
    monkeypatch.setattr(concurrency, "LONG_S", 0.01)
    told = asyncio.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(caplog.records) >= 2:
                told.set()

    @component.concurrency(1)
    async def step(waits: bool) -> None:
        if waits:
            await told.wait()

    @workflow
    async def flow() -> None:
        await asyncio.gather(step(waits=True), step(waits=False))

    handler = Heard()
    logging.getLogger("onward.concurrency").addHandler(handler)
    try:
        with testing.no_replay():
            async with asyncio.timeout(20):
                await testing.run(flow)
    finally:
        logging.getLogger("onward.concurrency").removeHandler(handler)
    assert "step of run test has waited for" in caplog.text
    assert "1 run at once" in caplog.text
