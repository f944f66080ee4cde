"""Limits of time: of a try, of all tries over all attempts, and of the items of a stream."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from onward import ComponentError, component, testing, workflow
from onward.engine import Attempt
from onward.limits import UNLIMITED, Limits
from onward.memory import MemoryRun
from onward.retry import sleep
from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_EXECUTOR_LOST,
    ATTEMPT_CAUSE_STARTED,
    ATTEMPT_CAUSE_WOKEN,
    AttemptCause,
    Event,
)
from onward.v1.run_pb2 import Payload, Run

TINY = "10ms"
LONG = "1h"


async def for_ever() -> None:
    await asyncio.Event().wait()


def of(events: list[Event], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("kind") == kind]


async def attempt(
    flow: Any,
    memory: MemoryRun,
    *,
    dies_after: int = 0,
    cause: AttemptCause.ValueType = ATTEMPT_CAUSE_EXECUTOR_LOST,
) -> Attempt:
    log = memory.begin(dies_after=dies_after)
    one = Attempt(
        flow,
        run=Run(run_id="r", namespace="n", workflow=flow.name, input=Payload(data=b"{}")),
        log=log,
        attempt=log.attempt,
        cause=ATTEMPT_CAUSE_STARTED if log.attempt == 1 else cause,
        executor_id="e",
        deployment="d",
    )
    async with asyncio.timeout(20):
        await one.run()
    return one


def earlier(memory: MemoryRun, by_s: int) -> None:
    """Let everything in the log have happened so much earlier."""
    for place, event in enumerate(memory.events):
        event.create_time.seconds -= by_s
        memory._log[place] = event.SerializeToString()  # noqa: SLF001 - time passes


def error_of(memory: MemoryRun) -> tuple[str, str, str]:
    error = of(memory.events, "component_finished")[-1].error
    return error.reason, error.type, error.message


def test_what_is_not_named_has_no_limit() -> None:
    """One call says all of them."""
    assert component(for_ever).timeout("1m", total="1h").policy.limits == Limits(each_s=60, total_s=3600)
    assert component(for_ever).timeout("1m", total="1h").timeout(None).policy.limits is UNLIMITED


@pytest.mark.parametrize("limit", ["each", "total", "first", "between"])
def test_a_limit_leaves_time_to_run(limit: str) -> None:
    """0 is a mistake."""
    with pytest.raises(ValueError, match="leaves no time"):
        component.timeout(**{limit: 0})


@pytest.mark.parametrize("limit", ["first", "between"])
def test_only_streams_have_limits_of_items(limit: str) -> None:
    """It is told where the component is made."""
    with pytest.raises(TypeError, match="no stream"):
        component.timeout(**{limit: 1})(for_ever)


# In total


@pytest.mark.parametrize("inside", [False, True], ids=["outside a run", "inside a run"])
async def test_all_tries_together_have_a_limit(inside: bool) -> None:
    """The try that runs when it passes is the last one, whatever the policy allows."""
    tries = Counter[str]()

    @component.retry(5, 0).timeout(total=TINY)
    async def hangs() -> None:
        tries["n"] += 1
        if tries["n"] % 2 == 0:
            await for_ever()
        raise ConnectionError

    message = "no result within 10ms in all, every try counted"
    if not inside:
        with pytest.raises(TimeoutError, match=message):
            await hangs()
        assert tries["n"] == 2
        return

    @workflow
    async def flow() -> str:
        try:
            await hangs()
        except ComponentError as error:
            return f"{error.reason} {error.type} {error.message} {error.retryable}"
        return ""

    assert (await testing.run(flow)).output == f"TIMEOUT TimeoutError {message} True"
    assert tries["n"] == 2


async def test_the_wait_between_tries_counts() -> None:
    """A backoff that is longer than what is left ends where the limit is."""

    @component.retry(2, LONG).timeout(total=TINY)
    async def fails() -> None:
        raise ConnectionError

    token = sleep.set(lambda _: for_ever())
    try:
        with pytest.raises(TimeoutError, match="in all"):
            await fails()
    finally:
        sleep.reset(token)


async def test_the_outer_limit_wins_over_a_retry_below() -> None:
    """The components below are cancelled, and their tries with them."""

    @component.retry(1_000, 0).timeout(TINY)
    async def below() -> None:
        await for_ever()

    @component.timeout(total="50ms")
    async def top() -> None:
        await below()

    @workflow
    async def flow() -> str:
        try:
            await top()
        except ComponentError as error:
            return error.message
        return ""

    with testing.no_replay():
        result = await testing.run(flow)
    assert result.output == "no result within 50ms in all, every try counted"


async def test_a_total_that_passed_while_nobody_ran_it_fails_at_once() -> None:
    """Counted from the first ComponentStarted: the attempt that comes an hour later runs nothing of it."""
    ran = Counter[str]()

    @component.timeout(total="30m")
    async def works() -> None:
        ran["works"] += 1
        await asyncio.sleep(0)

    @workflow
    async def flow() -> None:
        await works()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=3)
    ran.clear()
    earlier(memory, 3_600)
    await attempt(flow, memory)
    assert not ran
    assert error_of(memory) == ("TIMEOUT", "TimeoutError", "no result within 30m in all, every try counted")


async def test_a_total_that_has_not_passed_goes_on() -> None:
    """What is left of it is left."""

    @component.timeout(total="2h")
    async def works() -> int:
        await asyncio.sleep(0)
        return 1

    @workflow
    async def flow() -> int:
        return await works()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=3)
    earlier(memory, 3_600)
    await attempt(flow, memory)
    assert memory.events[-1].run_state_changed.output.data == b"1"


@pytest.mark.parametrize("awaited", [True, False])
async def test_a_total_holds_for_a_stream(awaited: bool) -> None:
    """In the middle of it, awaited or read."""

    @component.timeout(total=TINY)
    async def words() -> AsyncIterator[str]:
        yield "a"
        await for_ever()

    async def read() -> None:
        async for _ in words():
            pass

    with pytest.raises(TimeoutError, match="in all"):
        await (words() if awaited else read())


async def test_a_fallback_answers_when_the_total_has_passed() -> None:
    """No limit of the component holds for it."""

    @component.timeout(total=TINY).fallback("instead")
    async def hangs() -> str:
        await for_ever()
        return ""

    @workflow
    async def flow() -> str:
        return await hangs()

    result = await testing.run(flow)
    assert result.output == "instead"
    assert of(result.events, "component_retrying")[0].error.reason == "TIMEOUT"


# Of a try, over attempts


async def test_a_try_that_was_lost_with_its_executor_has_all_of_its_time_again() -> None:
    """What survives an outage of an hour does not fail for having been away."""

    @component.timeout("1m")
    async def works() -> int:
        await asyncio.sleep(0)
        return 1

    @workflow
    async def flow() -> int:
        return await works()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=3)
    earlier(memory, 3_600)
    await attempt(flow, memory)
    assert memory.events[-1].run_state_changed.output.data == b"1"


async def test_a_try_that_parked_has_what_was_left() -> None:
    """The run waited as the component's code wanted it to: the time counts."""

    @component.timeout("1m")
    async def works() -> int:
        await asyncio.sleep(0)
        return 1

    @workflow
    async def flow() -> int:
        return await works()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=3)
    earlier(memory, 3_600)
    await attempt(flow, memory, cause=ATTEMPT_CAUSE_WOKEN)
    assert error_of(memory) == ("TIMEOUT", "TimeoutError", "no result within 1m")


async def test_what_parked_after_an_outage_counts_from_the_outage() -> None:
    """The hour before the attempt that was lost, and after it, is nobody's."""

    @component.timeout("1m")
    async def works() -> int:
        await asyncio.sleep(0)
        return 1

    @workflow
    async def flow() -> int:
        return await works()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=3)
    earlier(memory, 3_600)
    await attempt(flow, memory, dies_after=5)
    await attempt(flow, memory, cause=ATTEMPT_CAUSE_WOKEN)
    assert memory.attempt == 3
    assert memory.events[-1].run_state_changed.output.data == b"1"


async def test_the_journal_knows_when_the_first_limit_passes() -> None:
    """A run that parks has to be woken by then."""
    seen = []

    @component.timeout("1m", total="1h")
    async def inner() -> None:
        seen.append(one._journal.first_deadline_s)  # type: ignore[union-attr]  # noqa: SLF001 - what parking asks

    @component.timeout(total="30s")
    async def outer() -> None:
        await inner()
        seen.append(one._journal.first_deadline_s)  # type: ignore[union-attr]  # noqa: SLF001 - what parking asks

    @workflow
    async def flow() -> None:
        await inner()
        await outer()
        seen.append(one._journal.first_deadline_s)  # type: ignore[union-attr]  # noqa: SLF001 - what parking asks

    memory = MemoryRun()
    one = Attempt(
        flow,
        run=Run(run_id="r", namespace="n", workflow=flow.name),
        log=memory.begin(),
        attempt=1,
        cause=ATTEMPT_CAUSE_STARTED,
        executor_id="e",
        deployment="d",
    )
    began_s = time.time()
    await one.run()
    first, nested, outside, none = seen
    assert none is None
    assert [round(when - began_s) for when in (first, nested, outside) if when is not None] == [60, 30, 30]


# Backoff over attempts


async def test_a_crash_in_a_backoff_leaves_the_rest_of_it() -> None:
    """The next attempt waits what is left, neither nothing nor all of it."""
    waited: list[float] = []

    class Busy(Exception):
        retry_after_s = 600.0

    @component.retry(3, 0)
    async def busy() -> None:
        raise Busy

    @workflow
    async def flow() -> None:
        await busy()

    async def wait(delay_s: float) -> None:
        waited.append(delay_s)

    token = sleep.set(wait)
    try:
        memory = MemoryRun()
        await attempt(flow, memory, dies_after=4)
        waited.clear()
        earlier(memory, 400)
        await attempt(flow, memory)
        assert [round(one, -1) for one in waited] == [200, 600]
    finally:
        sleep.reset(token)


@pytest.mark.parametrize(("by_s", "expected"), [(10_000, [600.0]), (-10_000, [600.0, 600.0])])
async def test_a_wait_that_has_passed_is_over_and_a_clock_that_jumped_makes_none_longer(
    by_s: int, expected: list[float]
) -> None:
    """Machines do not agree about the time: never longer than it was decided."""
    waited: list[float] = []

    class Busy(Exception):
        retry_after_s = 600.0

    @component.retry(3, 0)
    async def busy() -> None:
        raise Busy

    @workflow
    async def flow() -> None:
        await busy()

    async def wait(delay_s: float) -> None:
        waited.append(delay_s)

    token = sleep.set(wait)
    try:
        memory = MemoryRun()
        await attempt(flow, memory, dies_after=4)
        waited.clear()
        earlier(memory, by_s)
        await attempt(flow, memory)
        assert waited == expected
    finally:
        sleep.reset(token)


# Items


def stalling(*before: str) -> Any:
    async def words() -> AsyncIterator[str]:
        for word in before:
            yield word
        await for_ever()

    return words


@pytest.mark.parametrize("awaited", [True, False])
@pytest.mark.parametrize(
    ("before", "message"), [((), "no first item within 10ms"), (("a", "b"), "no further item within 20ms")]
)
async def test_a_stall_is_told_by_its_place(awaited: bool, before: tuple[str, ...], message: str) -> None:
    """Before the first item, or after one; with its own limit, which the message names."""
    words = component.timeout(LONG, first=TINY, between="20ms")(stalling(*before))

    @workflow
    async def flow() -> str:
        try:
            if awaited:
                await words()
            else:
                async for _ in words():
                    pass
        except ComponentError as error:
            return f"{error.reason} {error.type} {error.message}"
        return ""

    assert (await testing.run(flow)).output == f"TIMEOUT TimeoutError {message}"


@pytest.mark.parametrize("awaited", [True, False])
async def test_a_stall_before_the_first_item_is_tried_again(awaited: bool) -> None:
    """As any failed try; each try has its own time to the first item."""
    tries = Counter[str]()

    @component.retry(3, 0).timeout(first=TINY)
    async def words() -> AsyncIterator[str]:
        tries["n"] += 1
        if tries["n"] < 3:
            await for_ever()
        yield "a"

    assert await words() == "a" if awaited else [word async for word in words()] == ["a"]
    assert tries["n"] == 3


async def test_a_slow_reader_stalls_nothing() -> None:
    """Between two items only the component's own time counts."""

    @component.timeout(first=TINY, between=TINY)
    async def words() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    got = []
    async for word in words():
        got.append(word)
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.03)  # the fault itself
    assert got == ["a", "b"]


async def test_a_long_stream_without_stalls_is_never_cut() -> None:
    """`between` is no limit of the whole."""

    @component.timeout(first=LONG, between="1s")
    async def numbers() -> AsyncIterator[int]:
        for number in range(1_000):
            await asyncio.sleep(0)
            yield number

    assert len(await numbers()) == 1_000
