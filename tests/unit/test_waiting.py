"""Sleeping, signals and questions: what a run waits for, and what it gets."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel
from tests.unit.test_replay import attempt, kinds, of

import onward
from onward import ComponentError, WaitTimeout, component, status, testing, workflow
from onward.engine import Attempt
from onward.memory import MemoryRun
from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_CANCELLED,
    ATTEMPT_CAUSE_STARTED,
    OUTCOME_CANCELLED,
    WAIT_KIND_SIGNAL,
    WAIT_KIND_TIMER,
    Event,
    InputRequested,
)
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, RUN_STATE_QUEUED, RUN_STATE_SUCCEEDED, RUN_STATE_WAITING, Run
from onward.views import fold
from onward.waits import LAST_S, PACE, Pace, Waits


@pytest.fixture
def eager() -> Any:
    """Park as soon as the loop rests."""
    token = PACE.set(Pace(quiet_s=0.0))
    yield
    PACE.reset(token)


async def parked(flow: Any, memory: MemoryRun, data: bytes = b"{}") -> MemoryRun:
    """Begin an attempt, which parks the run."""
    await attempt(flow, memory, data=data)
    assert memory.state == RUN_STATE_WAITING, memory.events[-1]
    return memory


async def ended(flow: Any, memory: MemoryRun) -> Any:
    """Begin an attempt, which ends the run, and return its output."""
    await attempt(flow, memory)
    end = memory.events[-1].run_state_changed
    assert end.state == RUN_STATE_SUCCEEDED, end
    return end.output.data.decode()


def of_parked(events: list[Event]) -> Any:
    [*_, last] = of(events, "run_waiting")
    return last


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what the engine does tells nobody
            await asyncio.sleep(0.001)


# Time


async def test_days_pass_at_once_in_a_test() -> None:
    """And are seen to have passed."""

    @workflow
    async def nap() -> float:
        began = onward.now()
        await onward.sleep("3d")
        return (onward.now() - began).total_seconds()

    result = await testing.run(nap)
    assert 3 * 86_400 <= result.output < 3 * 86_400 + 60
    assert result.attempts == 2
    [due] = [
        event.component_started.due_time for event in result.events if event.component_started.HasField("due_time")
    ]
    assert due == of_parked(result.events).wake_time


async def test_a_time_can_be_named() -> None:
    """One that has passed is not waited for."""

    @workflow
    async def nap() -> None:
        await onward.sleep(until=onward.now() + timedelta(days=1))
        await onward.sleep(until=datetime(2020, 1, 1, tzinfo=UTC))
        await onward.sleep(0)

    result = await testing.run(nap)
    assert (result.state, result.attempts) == ("SUCCEEDED", 2)
    assert of_parked(result.events).kinds == [WAIT_KIND_TIMER]
    assert of_parked(result.events).reason.startswith("timer 2")


BEYOND = "3652500d"
"""10,000 years: from now on they end behind the last time that can be told."""


@pytest.mark.parametrize("how", ["sleep", "until", "signal", "input", "total"])
async def test_what_ends_behind_the_last_time_that_can_be_told_ends_then(eager: None, how: str) -> None:
    """A wait for ever is one, however it was said, and the run parks for it."""

    @component.timeout(total=BEYOND)
    async def patient() -> None:
        await onward.signal("go")

    @workflow
    async def flow() -> None:
        match how:
            case "sleep":
                await onward.sleep(BEYOND)
            case "until":
                await onward.sleep(until=datetime.max.replace(tzinfo=UTC))
            case "signal":
                await onward.signal("go", timeout=BEYOND)
            case "input":
                await onward.request_input("go", int, timeout=BEYOND)
            case "total":
                await patient()

    memory = await parked(flow, MemoryRun())
    assert round(of_parked(memory.events).wake_time.ToNanoseconds() / 1e9) == LAST_S


async def test_a_time_before_all_others_has_passed(eager: None) -> None:
    @workflow
    async def flow() -> str:
        await onward.sleep(until=datetime.min.replace(tzinfo=timezone(timedelta(hours=14))))
        return "on"

    assert await ended(flow, MemoryRun()) == '"on"'


async def test_a_time_without_a_zone_is_an_error() -> None:
    """As is one and a duration."""
    with pytest.raises(ValueError, match="time zone"):
        await onward.sleep(until=datetime(2020, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="not both"):
        await onward.sleep(1, until=datetime(2020, 1, 1, tzinfo=UTC))


async def test_outside_a_run_sleep_sleeps_and_a_signal_is_an_error() -> None:
    """There is nobody who could send one."""
    await onward.sleep(0)
    await onward.sleep(until=datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(RuntimeError, match="waits in a run"):
        await onward.signal("go")
    with pytest.raises(RuntimeError, match="waits in a run"):
        await onward.request_input("go")


async def test_a_short_sleep_is_slept_in_place() -> None:
    """Parking takes about as long."""

    @workflow
    async def nap() -> None:
        await onward.sleep(0.01)

    memory = MemoryRun()
    await ended(nap, memory)
    assert memory.attempt == 1


# Signals


@pytest.mark.parametrize("value", [None, 0, "", False, [], {}, 0.0, {"a": [1]}, "text"])
async def test_a_value_is_a_value_also_where_it_is_false(value: Any) -> None:
    """The first time as in a later attempt."""

    @workflow
    async def ask() -> Any:
        taken = await onward.signal("go", timeout="1d")
        await onward.sleep("1d")
        return [taken]

    with testing.signals({"go": value}):
        assert (await testing.run(ask)).output == [value]


class Answer(BaseModel):
    """What a person decides."""

    approved: bool
    by: str = ""


async def test_values_arrive_in_their_type() -> None:
    """And again after each wake."""

    @workflow
    async def ask() -> list[str]:
        answer = await onward.request_input("approval", Answer, prompt="Go?", timeout="2d")
        day = await onward.signal("day", datetime)
        return [type(answer).__name__, answer.by, day.isoformat()]

    def answer(request: InputRequested) -> Any:
        assert (request.prompt, b"approved" in request.schema.data) == ("Go?", True)
        return {"approved": True, "by": "Ann"}

    with testing.signals({"approval": answer, "day": datetime(2026, 1, 2, tzinfo=UTC)}):
        result = await testing.run(ask)
    assert result.output == ["Answer", "Ann", "2026-01-02T00:00:00+00:00"]
    assert len(of(result.events, "input_requested")) == 1


async def test_a_run_that_nobody_answers_fails_the_test() -> None:
    """With what it waits for."""

    @workflow
    async def ask() -> None:
        await onward.signal("approval")

    with pytest.raises(testing.WaitsForEver, match="signal approval"):
        await testing.run(ask)


def assert_is(error: Exception, *kinds: type[Exception]) -> None:
    for kind in kinds:
        assert isinstance(error, kind)


async def test_a_wait_times_out_the_same_way_the_first_time_as_on_replay() -> None:
    """As a TimeoutError that is a ComponentError."""

    @workflow
    async def ask() -> list[str]:
        told = []
        for _ in range(2):
            try:
                await onward.signal("go", timeout="1d")
            except TimeoutError as late:
                error: Any = late
                assert_is(error, WaitTimeout, ComponentError)
                told.append(f"{error.name} {error.reason} {error.type} {error.message}")
        return told

    told = "onward.signal WAIT_TIMEOUT TimeoutError no signal 'go' within 1d"
    assert (await testing.run(ask)).output == [told, told]


async def test_an_early_signal_is_kept(eager: None) -> None:
    """Before the first attempt, while it runs, and while it waits for another one."""
    memory = MemoryRun()
    memory.signal("b", b"1")

    @component
    async def step() -> None:
        memory.signal("c", b"2")

    @workflow
    async def ask() -> list[int]:
        await step()
        a = await onward.signal("a", int)
        return [a, await onward.signal("b", int), await onward.signal("c", int)]

    await parked(ask, memory)
    assert of_parked(memory.events).signals == ["a"]
    memory.signal("a", b"0")
    assert memory.state == RUN_STATE_QUEUED
    assert await ended(ask, memory) == "[0,1,2]"
    assert memory.attempt == 2


async def test_a_signal_of_another_name_wakes_nobody(eager: None) -> None:
    """It is kept."""

    @workflow
    async def ask() -> int:
        return await onward.signal("a", int)

    memory = await parked(ask, MemoryRun())
    memory.signal("b", b"0")
    assert memory.state == RUN_STATE_WAITING


async def test_signals_of_one_name_go_in_order_to_the_waits_in_order(eager: None) -> None:
    """However many executors it takes."""

    @workflow
    async def ask() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(onward.signal("n", int)) for _ in range(3)]
        return [task.result() for task in tasks]

    memory = await parked(ask, MemoryRun())
    memory.signal("n", b"1")
    await parked(ask, memory)
    memory.signal("n", b"2")
    memory.signal("n", b"3")
    assert await ended(ask, memory) == "[1,2,3]"
    offsets = [finished.signal_offset for finished in of(memory.events, "component_finished") if finished.signal_offset]
    assert sorted(offsets) == [event.offset for event in memory.events if event.HasField("signal_received")]


async def test_a_signal_that_does_not_fit_is_passed_over(eager: None) -> None:
    """Early or late; a later wait that it fits takes it."""

    @workflow
    async def ask() -> list[Any]:
        number = await onward.signal("n", int)
        return [number, await onward.signal("n", str)]

    memory = MemoryRun()
    memory.signal("n", b'"early"')
    await parked(ask, memory)
    memory.signal("n", b"true")
    await parked(ask, memory)
    memory.signal("n", b"7")
    assert await ended(ask, memory) == '[7,"early"]'


TABLE = {"tea": 1}


def in_table(name: str) -> str:
    TABLE[name]
    return name


class Choice(BaseModel):
    name: Annotated[str, AfterValidator(in_table)]


@pytest.mark.parametrize("early", [True, False])
async def test_a_signal_at_which_a_validator_fails_does_not_fit(early: bool) -> None:
    """Whatever the user's code raises there: who sends a signal can end neither the attempt nor the run by it."""

    @workflow
    async def ask() -> str:
        return (await onward.signal("choice", Choice)).name

    memory = MemoryRun()
    if early:
        memory.signal("choice", b'{"name":"nothing of that"}')
    running = asyncio.create_task(attempt(ask, memory))
    await until(lambda: of(memory.events, "component_started"))
    if not early:
        memory.signal("choice", b'{"name":"nothing of that"}')
    memory.signal("choice", b'{"name":"tea"}')
    await running
    assert memory.events[-1].run_state_changed.output.data == b'"tea"'


@pytest.mark.parametrize("wait_s", [None, 0.001])
async def test_large_signals_that_do_not_fit_leave_the_loop_its_turns(eager: None, wait_s: float | None) -> None:
    """Ten stood an executor still for longer than its leases last: all its runs were lost, and counted a death."""
    memory = MemoryRun()
    for _ in range(10):
        memory.signal("numbers", b"[" + b'"",' * 255_000 + b'""]')  # about as large as a Gateway takes
    memory.signal("numbers", b"[1]")
    memory.signal("numbers", b"[2]")
    longest_s = 0.0

    async def turn() -> None:
        nonlocal longest_s
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            longest_s, last = max(longest_s, now - last), now

    @workflow
    async def flow() -> list[Any]:
        """Neither a time that is up nor parking comes before a signal that is there already."""
        waits = (onward.signal("numbers", list[int], timeout=wait_s) for _ in range(2))
        return await asyncio.gather(*waits)

    turning = asyncio.create_task(turn())
    began = time.monotonic()
    assert await ended(flow, memory) == "[[1],[2]]"
    took_s = time.monotonic() - began
    turning.cancel()
    assert longest_s < max(0.3, took_s / 3)


async def test_a_cancelled_wait_took_nothing(eager: None) -> None:
    """Whoever loses a race leaves its signal to the next."""

    @workflow
    async def race() -> list[Any]:
        slow = asyncio.create_task(onward.signal("slow", int))
        fast = asyncio.create_task(onward.signal("fast", int))
        done, _ = await asyncio.wait((slow, fast), return_when=asyncio.FIRST_COMPLETED)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        return [done == {fast}, fast.result(), await onward.signal("slow", int)]

    memory = await parked(race, MemoryRun())
    assert set(of_parked(memory.events).signals) == {"slow", "fast"}
    memory.signal("fast", b"1")
    await parked(race, memory)
    memory.signal("slow", b"2")
    assert await ended(race, memory) == "[true,1,2]"
    assert [
        one.signal_offset for one in of(memory.events, "component_finished") if one.outcome == OUTCOME_CANCELLED
    ] == [0]


async def test_a_wait_that_is_cancelled_as_it_takes_a_signal_took_nothing(
    eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one takes it."""
    offer = Waits.offer
    first: list[asyncio.Task[int]] = []

    def cancelling(self: Waits, name: str) -> None:
        offer(self, name)
        if first and any(wait.end.done() for wait in self._open):
            first.pop().cancel()

    monkeypatch.setattr(Waits, "offer", cancelling)

    @component
    async def send() -> None:
        memory.signal("n", b"7")

    @workflow
    async def flow() -> list[Any]:
        task = asyncio.create_task(onward.signal("n", int))
        await asyncio.sleep(0.01)  # It waits.
        first.append(task)
        await send()
        [got] = await asyncio.gather(task, return_exceptions=True)
        return [type(got).__name__, await onward.signal("n", int)]

    memory = MemoryRun()
    assert await ended(flow, memory) == '["CancelledError",7]'
    assert [one.outcome for one in of(memory.events, "component_finished")] == [1, OUTCOME_CANCELLED, 1]


async def test_the_order_of_waits_is_that_of_the_log_in_whatever_order_they_come_again(eager: None) -> None:
    """A signal is given when all that waited for it waits again."""
    pauses = iter([(0.0, 0.05), (0.05, 0.0), (0.0, 0.0)])

    @workflow
    async def flow() -> list[int]:
        async def branch(pause_s: float, key: str) -> int:
            await asyncio.sleep(pause_s)
            return await first(key) if key == "a" else await second(key)

        a, b = next(pauses)
        return list(await asyncio.gather(branch(a, "a"), branch(b, "b")))

    @component
    async def first(key: str) -> int:
        return await onward.signal("n", int)

    @component
    async def second(key: str) -> int:
        return await onward.signal("n", int)

    memory = await parked(flow, MemoryRun())
    memory.signal("n", b"1")
    await parked(flow, memory)
    memory.signal("n", b"2")
    assert await ended(flow, memory) == "[1,2]"


async def test_what_a_failed_try_took_is_there_again(eager: None) -> None:
    """A try is void as a whole."""
    tries = []

    @component.retry(attempts=3, backoff=0)
    async def ask() -> int:
        taken = await onward.signal("n", int)
        tries.append(taken)
        if len(tries) < 3:
            raise ConnectionError
        return taken

    @workflow
    async def flow() -> int:
        return await ask()

    memory = await parked(flow, MemoryRun())
    memory.signal("n", b"7")
    assert await ended(flow, memory) == "7"
    assert tries == [7, 7, 7]


# Who may be parked


@component
async def quick(value: int) -> int:
    return value


async def test_a_run_parks_where_all_its_branches_wait(eager: None) -> None:
    """Through whatever asyncio offers for waiting for several."""

    @workflow
    async def branches() -> list[Any]:
        async def branch(number: int) -> int:
            await quick(number)
            return await onward.signal(f"s{number}", int)

        async def grouped() -> int:
            async with asyncio.TaskGroup() as group:
                inner = group.create_task(branch(4))
            return inner.result()

        async def completed() -> int:
            [first] = [await one for one in asyncio.as_completed([branch(5)])]
            return first

        async def waited() -> int:
            tasks = [asyncio.create_task(branch(6))]
            await asyncio.wait(tasks)
            return tasks[0].result()

        return await asyncio.gather(
            branch(1),
            asyncio.shield(asyncio.create_task(branch(2))),
            asyncio.gather(branch(3)),
            grouped(),
            completed(),
            waited(),
            asyncio.wait_for(branch(7), None),
        )

    memory = await parked(branches, MemoryRun())
    assert sorted(of_parked(memory.events).signals) == [f"s{number}" for number in range(1, 8)]
    assert of_parked(memory.events).kinds == [WAIT_KIND_SIGNAL]
    for number in range(7, 0, -1):
        memory.signal(f"s{number}", str(number).encode())
    assert await ended(branches, memory) == "[1,2,[3],4,5,6,7]"
    assert of(memory.events, "rollback") == []


@component
async def as_is(value: int) -> int:
    return await onward.signal(f"m{value}", int)


async def test_a_map_of_waits_parks(eager: None) -> None:
    """Its workers wait for nothing else."""

    @workflow
    async def mapped() -> list[int]:
        return await onward.map(as_is, [1, 2, 3], concurrency=2)

    memory = await parked(mapped, MemoryRun())
    assert sorted(of_parked(memory.events).signals) == ["m1", "m2"]


async def stays(flow: Any, release: asyncio.Event, expected: str) -> MemoryRun:
    """Run a workflow that never parks; it is told to go on when it had every chance to."""
    memory = MemoryRun()
    looks = 0

    class Counting:
        def __call__(self) -> float:
            nonlocal looks
            looks += 1
            return datetime.now(UTC).timestamp()

    PACE.set(Pace(Counting(), quiet_s=0.0))
    going = asyncio.create_task(attempt(flow, memory))
    await until(lambda: looks >= 5 or going.done())
    release.set()
    await until(going.done)
    going.result()
    assert of(memory.events, "run_waiting") == []
    assert memory.events[-1].run_state_changed.output.data.decode() == expected
    return memory


async def test_a_wait_beside_a_running_component_is_a_timer_until_that_ends() -> None:
    """Then the run parks."""
    release = asyncio.Event()

    @component
    async def work() -> None:
        await release.wait()

    @workflow
    async def flow() -> None:
        await asyncio.gather(work(), onward.sleep("1d"))

    PACE.set(Pace(quiet_s=0.0))
    memory = MemoryRun()
    going = asyncio.create_task(attempt(flow, memory))
    await until(lambda: len(of(memory.events, "component_started")) == 2)
    assert memory.state != RUN_STATE_WAITING
    release.set()
    await until(going.done)
    assert memory.state == RUN_STATE_WAITING


@pytest.mark.parametrize("what", ["timeout", "wait_for", "wait", "stream", "event", "lock", "thread", "callback"])
async def test_a_run_stays_where_something_else_may_wake_it(what: str) -> None:
    """What would not outlive the attempt, or what cannot be seen through."""
    release = asyncio.Event()

    @component
    async def words() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    async def side() -> None:
        match what:
            case "event":
                await release.wait()
            case "thread":
                await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(release.wait(), loop).result())

    @workflow
    async def flow() -> int:
        wait = onward.signal("n", int, timeout="1d")
        match what:
            case "timeout":
                async with asyncio.timeout(100):
                    return await finish(wait)
            case "wait_for":
                return await asyncio.wait_for(finish(wait), 100)
            case "wait":
                tasks = [asyncio.create_task(finish(wait))]
                await asyncio.wait(tasks, timeout=100)
                return tasks[0].result()
            case "stream":
                async for _ in words():
                    return await finish(wait)
            case "lock":
                lock = asyncio.Lock()
                await lock.acquire()
                other = asyncio.create_task(lock.acquire())
                value = await finish(wait)
                lock.release()
                await other
                return value
            case "callback":
                gate = asyncio.get_running_loop().create_future()
                ticket = asyncio.create_task(finish(wait))
                ticket.add_done_callback(lambda _: gate.set_result(None))
                await gate
                return ticket.result()
        value, _ = await asyncio.gather(finish(wait), side())
        return value

    async def finish(wait: Any) -> int:
        value: int = await wait
        return value

    loop = asyncio.get_running_loop()
    memory_of: list[MemoryRun] = []
    original = MemoryRun.begin

    def begin(self: MemoryRun, **more: Any) -> Any:
        memory_of.append(self)
        return original(self, **more)

    release_and_signal = asyncio.create_task(_signal_when(release, memory_of))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryRun, "begin", begin)
        await stays(flow, release, "7")
    await release_and_signal


@component
async def tells() -> AsyncIterator[str]:
    yield "first "
    word = await onward.signal("word", str)
    await onward.sleep("1d")
    yield f"{word} "
    yield "last"


@pytest.mark.parametrize("calls", [False, True], ids=["", "calls between the items"])
@pytest.mark.parametrize("speaks", [False, True], ids=["", "is a stream itself"])
async def test_a_run_parks_while_the_stream_that_it_reads_waits(calls: bool, speaks: bool) -> None:
    """And goes on with it where it was, wherever it is lost: nothing is shown twice."""

    @workflow
    async def reads() -> str:
        text = ""
        async for piece in tells():
            text += piece
            if calls:
                await quick(len(text))
        return text

    @workflow
    async def says() -> AsyncIterator[str]:
        async for piece in tells():
            yield piece
            if calls:
                await quick(1)

    with testing.signals({"word": "second"}):
        result = await (testing.run(says) if speaks else testing.run(reads))
        assert result.output == "first second last"
        assert kinds(result.events).count("run_waiting") == 2
        for offset in range(2, len(result.events) + 1):
            with testing.crash(offset, offset + 3), testing.no_replay():
                lost = await (testing.run(says) if speaks else testing.run(reads))
            assert testing.shown(lost.view) == testing.shown(result.view), offset


async def _signal_when(release: asyncio.Event, memories: list[MemoryRun]) -> None:
    await release.wait()
    memories[0].signal("n", b"7")


async def test_parked_code_is_gone(eager: None) -> None:
    """It got CancelledError and cleaned up; what that calls is not called; nothing of the attempt stays in memory."""
    cleaned = []

    @workflow
    async def flow() -> None:
        try:
            await onward.signal("go")
        finally:
            cleaned.append(True)
            await quick(1)

    memory = MemoryRun()
    log = memory.begin()
    one = Attempt(
        flow,
        run=Run(run_id="r", workflow="flow"),
        log=log,
        attempt=1,
        cause=ATTEMPT_CAUSE_STARTED,
        executor_id="e",
        deployment="d",
    )
    await one.run()
    assert (one.state, cleaned) == (RUN_STATE_WAITING, [True])
    assert "component_finished" not in kinds(memory.events)
    gone = weakref.ref(one)
    del one, log
    gc.collect()
    assert gone() is None


async def test_a_parked_run_folds_as_one_that_was_never_disturbed(eager: None) -> None:
    """Nothing is said twice, nothing is rolled back, nobody is asked twice."""

    @component
    async def talk(n: int) -> AsyncIterator[str]:
        yield f"part {n} "
        status(f"talking {n}")

    @component
    async def ask() -> int:
        status("asking")
        value = await onward.request_input("n", int, prompt="How many?")
        status(f"got {value}")
        return value

    @workflow
    async def flow() -> int:
        status("begin")
        await talk(1)
        value = await ask()
        await onward.sleep("1d")
        await talk(2)
        return value

    memory = await parked(flow, MemoryRun())
    memory.signal("n", b"3")
    await parked(flow, memory)
    memory.wake()
    PACE.set(Pace(lambda: datetime.now(UTC).timestamp() + 86_500))
    assert await ended(flow, memory) == "3"
    view = fold(memory.events)
    assert [line.message for line in view.statuses] == ["begin", "talking 1", "asking", "got 3", "talking 2"]
    assert of(memory.events, "rollback") == []
    assert len(of(memory.events, "input_requested")) == 1
    names = [one.name for one in of(memory.events, "component_started")]
    assert (names.count("onward.request_input"), names.count("onward.sleep")) == (1, 1)


async def test_a_timeout_around_a_wait_is_kept_while_the_run_is_parked(eager: None) -> None:
    """A component's own limit wakes the run, and counts from when its try began."""

    @component.timeout("1d")
    async def ask() -> None:
        await onward.signal("go")

    @workflow
    async def flow() -> str:
        try:
            await ask()
        except ComponentError as error:
            return error.reason
        return ""

    assert (await testing.run(flow)).output == "TIMEOUT"


@pytest.mark.parametrize("reads", [False, True], ids=["awaited", "read"])
async def test_the_time_in_which_a_run_is_parked_is_no_silence_of_its_stream(eager: None, reads: bool) -> None:
    """Limits of items are about code that runs; those of a try are kept."""

    @component
    async def patient() -> AsyncIterator[str]:
        yield "first "
        await onward.sleep("1d")
        yield "last"

    @workflow
    async def flow(kept: bool) -> str:
        limited = patient.timeout("1h") if kept else patient.timeout(first="1h", between="1h")
        try:
            return "".join([piece async for piece in limited()]) if reads else await limited()
        except ComponentError as error:
            return error.reason

    result = await testing.run(flow, kept=False)
    assert result.output == "first last"
    assert kinds(result.events).count("run_waiting") == 1
    assert (await testing.run(flow, kept=True)).output == "TIMEOUT"


# Cancelling


async def test_a_parked_run_that_is_cancelled_gets_it_where_it_waits(eager: None) -> None:
    """And cleans up with components, which run."""

    @workflow
    async def flow() -> None:
        await quick(1)
        try:
            await onward.signal("go")
        except asyncio.CancelledError:
            status("cleaning")
            await quick(2)
            raise

    memory = await parked(flow, MemoryRun())
    memory.cancel()
    log = memory.begin()
    run = Run(run_id="r", namespace="n", workflow="flow", state=memory.state)
    await Attempt(
        flow, run=run, log=log, attempt=2, cause=ATTEMPT_CAUSE_CANCELLED, executor_id="e", deployment="d"
    ).run()
    assert memory.state == RUN_STATE_CANCELLED
    assert [line.message for line in fold(memory.events).statuses] == ["cleaning"]
    ends = [event.component_finished.outcome for event in memory.events if event.HasField("component_finished")]
    assert ends == [1, OUTCOME_CANCELLED, 1]
