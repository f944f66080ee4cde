"""What a fork begins with: what its source had before a component, and nothing of what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tests.unit import test_replay_random as random_runs

import onward
from onward import ComponentError, component, fold, status, testing, workflow
from onward import map as omap
from onward.engine import Attempt
from onward.log import ACCEPTED, ENDED
from onward.memory import MemoryRun
from onward.v1.errand_pb2 import Errand, TellEnd
from onward.v1.event_pb2 import ATTEMPT_CAUSE_STARTED, Event, SignalReceived
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, RUN_STATE_FAILED, RUN_STATE_SUCCEEDED, Payload, Run, RunState
from onward.waits import PACE, Pace
from onward_runlog.errors import ComponentNotFound
from onward_runlog.forking import Plan

ran: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()
    broken.clear()


async def attempt(
    flow: Any, memory: MemoryRun, data: bytes = b"{}", *, name: str = "r", dies_after: int = 0
) -> MemoryRun:
    run = Run(run_id=name, namespace="n", workflow=flow.name, input=Payload(data=data, size=len(data)))
    run.log.log_id, run.log.last_offset = name, memory.last_offset
    log = memory.begin(dies_after=dies_after)
    with testing.no_backoff():
        await Attempt(
            flow,
            run=run,
            log=log,
            attempt=log.attempt,
            cause=ATTEMPT_CAUSE_STARTED,
            executor_id="e",
            deployment="d",
        ).run()
    return memory


async def to_the_end(flow: Any, memory: MemoryRun, data: bytes, gaps: list[int]) -> MemoryRun:
    """Run it, and lose an executor after so many events more each time."""
    places = [memory.last_offset + place for place in random_runs.crashes(gaps)]
    for dies_after in [*places, 0]:
        if not memory.ended:
            await attempt(flow, memory, data, dies_after=dies_after)
    return memory


def forked(source: MemoryRun, component_id: str | None, *, from_failure: bool = False) -> MemoryRun:
    """A fork as the store makes it. What it asks of others is told by its `errands`."""
    plan = Plan(component_id, source.memo, from_failure=from_failure)
    for event in source.events:
        plan.see(event)
    plan.decide(source.last_offset)
    fork = MemoryRun()
    for event in source.events:
        if plan.take(event):
            fork.write(event.SerializeToString(), attempt=event.attempt)
    fork.attempt = source.attempt
    kept = ((name, plan.remembered(name, value)) for name, value in source.memo.items())
    fork.memo = {name: value for name, value in kept if value is not None}
    fork.blobs = dict(source.blobs)
    fork.errands = [Errand(tell_end=TellEnd(run_id=child)).SerializeToString() for child in plan.children]
    return fork


def first_of(events: list[Event], name: str, number: int = 1) -> str:
    """The id of the instance of a component that began as the `number`th of its name."""
    return [event.component_id for event in events if event.component_started.name == name][number - 1]


@component
async def step(name: str, before: Callable[[], Awaitable[None]] | None = None) -> str:
    ran.append(name)
    status(f"does {name}")
    return name


broken: set[str] = set()


@component
async def section(name: str) -> str:
    ran.append(name)
    for _ in range({"a": 1, "b": 3, "c": 2, "d": 9}[name]):
        await asyncio.sleep(0.001)
    if name in broken:
        raise ValueError(f"no {name}")
    return f"<{await step(name)}>"


async def test_what_began_before_keeps_what_it_gave_later() -> None:
    """Of four branches the third fails: the first two are kept, though both ended after it had begun."""

    @workflow
    async def flow() -> list[str]:
        await step("head")
        return await omap(section, ["a", "b", "c", "d"], concurrency=4)

    broken.add("c")
    source = await attempt(flow, MemoryRun())
    assert source.events[-1].run_state_changed.error.message == "section: no c"
    failed = source.events[-1].run_state_changed.error.component_id
    broken.clear()
    ran.clear()
    fork = forked(source, failed)
    await attempt(flow, fork)
    assert fork.events[-1].run_state_changed.output.data == b'["<a>","<b>","<c>","<d>"]'
    again = set(ran)
    assert "c" in again
    assert "head" not in again
    ended_before = {event.component_id for event in source.events if event.component_finished.outcome == 1}
    for name, number in (("a", 1), ("b", 2)):
        if first_of(source.events, "section", number) in ended_before:
            assert name not in again, "it had a result"
    assert [event.offset for event in fork.events] == list(range(1, fork.last_offset + 1))
    attempts = [event.attempt for event in fork.events]
    assert attempts == sorted(attempts)


async def test_those_that_called_it_run_again_and_not_what_they_had_finished() -> None:
    """Also where they had caught its error, tried it again, or failed by it."""

    @component.retry(3, 0)
    async def outer() -> str:
        ran.append("outer")
        await step("first")
        ran.append("then")
        if broken:
            raise ValueError("broken")
        return await step("second")

    @workflow
    async def flow() -> str:
        status("begins")
        try:
            return await outer()
        except ComponentError as error:
            status("gives up")
            return error.reason

    broken.add("x")
    source = await attempt(flow, MemoryRun())
    assert ran == ["outer", "first", "then"] * 3
    broken.clear()
    ran.clear()
    fork = await attempt(flow, forked(source, first_of(source.events, "outer")))
    assert ran == ["outer", "first", "then", "second"]
    view = fold(fork.events)
    assert (view.state, view.output) == ("SUCCEEDED", "second")
    assert [one.message for one in view.body.statuses] == ["begins"]
    ran.clear()
    fork = await attempt(flow, forked(source, first_of(source.events, "step")))
    assert ran == ["outer", "first", "then", "second"]
    assert [one.message for one in fold(fork.events).statuses] == ["begins", "does first", "does second"]


async def test_everything_that_finished_is_kept_where_the_workflow_itself_failed() -> None:
    @workflow
    async def flow() -> str:
        one = await step("one")
        if broken:
            raise ValueError("broken")
        return one + await step("two")

    broken.add("x")
    source = await attempt(flow, MemoryRun())
    broken.clear()
    ran.clear()
    fork = await attempt(flow, forked(source, None))
    assert (ran, fold(fork.events).output) == (["two"], "onetwo")


async def test_a_value_of_a_later_try_is_not_given_for_an_earlier_one() -> None:
    """There is one memo for all ends of an instance: where a later one has replaced it, it runs again."""
    sizes = iter((10, 10_000))

    @component
    async def grows() -> str:
        return "x" * next(sizes, 5)

    @component.retry(2, 0)
    async def outer() -> int:
        size = len(await grows())
        await step("mark")
        if size == 10:
            raise ValueError("too small")
        return size

    @workflow
    async def flow() -> int:
        return await outer()

    source = await attempt(flow, MemoryRun())
    assert fold(source.events).output == 10_000
    mark = first_of(source.events, "step")
    fork = await attempt(flow, forked(source, mark))
    assert fold(fork.events).output == 5
    assert not any(event.HasField("component_retrying") for event in fork.events)


async def test_what_was_void_is_void_and_no_more() -> None:
    """A Rollback names an offset, and that is another one in the fork."""
    words = iter((["a", "b", "c"], ["a", "x"], ["a", "x"]))

    @workflow
    async def flow() -> AsyncIterator[str]:
        await step("first")
        for word in next(words):
            yield word
        await step("mark")
        yield "."

    source = await attempt(flow, MemoryRun(), dies_after=7)
    await attempt(flow, source)
    assert fold(source.events).text == "ax."
    assert [event.rollback.after_offset for event in source.events if event.HasField("rollback")] == [6]
    fork = await attempt(flow, forked(source, first_of(source.events, "step", 2)))
    assert fold(fork.events).text == "ax."
    assert [event.rollback.after_offset for event in fork.events if event.HasField("rollback")] == [5]


async def test_chance_that_was_used_stays() -> None:
    @workflow
    async def flow() -> list[str]:
        one = str(onward.uuid())
        await step(one)
        two = str(onward.uuid())
        await step("mark")
        return [one, two, str(onward.uuid())]

    source = await attempt(flow, MemoryRun())
    fork = await attempt(flow, forked(source, first_of(source.events, "step", 2)))
    assert fold(fork.events).state == "SUCCEEDED"
    assert fold(fork.events).output[:2] == fold(source.events).output[:2]


async def test_a_component_that_is_not_there_is_named_with_those_that_are() -> None:
    @workflow
    async def flow() -> None:
        await step("one")

    source = await attempt(flow, MemoryRun())
    plan = Plan("nobody")
    for event in source.events:
        plan.see(event)
    with pytest.raises(ComponentNotFound, match=f"'nobody'.*{first_of(source.events, 'step')} .step."):
        plan.decide(source.last_offset)


in_two: Any = (
    [
        ["parallel",
            [["call", [["call", [["yield", 1]]], ["read", [["status", "a"]]]]], ["call", []], ["parallel", [], []]],
            [["call", [["call", [["yield", 1], ["status", "a"]]], ["read", [["fail"]]], ["stream", []]]]]],
        ["call", []],
        ["parallel", [], []],
    ],
    False, [], 7, [5], 74,
)  # fmt: skip
"""What the second fork runs again lay, in the first, below something that was kept as a whole."""


gaps = st.lists(st.integers(2, 12), max_size=2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(random_runs.scripts, st.booleans(), gaps, st.integers(0, 50), gaps, st.integers(0, 50))
@example([["read", [["call", []], ["call", []]]]], True, [], 5, [], 0)  # the places of items are offsets, and move
@example(*in_two)
def test_a_fork_ends_as_its_source(
    steps: list[Any], speaks: bool, gaps: list[int], which: int, later_gaps: list[int], later_which: int
) -> None:
    """Forked from any component of a run that lost executors on its way, the same code shows and gives the same.

    And without waiting for anything that does not come. So does a fork of the fork, but that it may wait so: in the
    first one's log what was kept as a whole stands before what its reader called meanwhile.
    """
    assume("flaky" not in str(steps))  # whose tries go another way the second time
    flow = random_runs.spoken if speaks else random_runs.scripted
    data = flow.signature.dump_input({"steps": steps})
    assert data is not None

    async def check() -> None:
        calm, _ = await random_runs.run_once(flow, steps, [])
        random_runs._failed.clear()  # noqa: SLF001
        source = await to_the_end(flow, MemoryRun(), data, gaps)
        for number, its_gaps, order in (
            (which, later_gaps, random_runs.in_order()),
            (later_which, [], contextlib.nullcontext()),
        ):
            ids = [event.component_id for event in source.events if event.HasField("component_started")]
            if not ids:
                return
            with order:
                fork = await to_the_end(flow, forked(source, ids[number % len(ids)]), data, its_gaps)
            assert random_runs.seen(fold(fork.events)) == random_runs.seen(calm.view)
            assert random_runs.seen(random_runs.settled(fork.events)) == random_runs.seen(calm.view)
            source = fork

    asyncio.run(check())


async def test_a_wait_whose_signal_came_is_kept_and_another_waits_again() -> None:
    """Signals that were there when the component began are kept, taken or not; what came later is not."""

    @workflow
    async def flow() -> list[str]:
        first = await onward.signal("go", str)
        await step("mark")
        return [first, await onward.signal("go", str)]

    async def send(memory: MemoryRun, *values: bytes) -> None:
        for value in values:
            received = SignalReceived(name="go", value=Payload(data=value))
            memory.write(Event(signal_received=received).SerializeToString(), attempt=0)

    source = MemoryRun()
    await send(source, b'"one"', b'"two"')
    await attempt(flow, source)
    assert fold(source.events).output == ["one", "two"]
    fork = forked(source, first_of(source.events, "step"))
    kept = [event.signal_received.value.data for event in fork.events if event.HasField("signal_received")]
    assert kept == [b'"one"', b'"two"']
    await attempt(flow, fork)
    assert fold(fork.events).output == ["one", "two"]


async def test_a_signal_that_was_taken_below_what_is_kept_is_kept() -> None:
    """A fork of the fork may run again what is above the wait that took it."""
    begun, asked, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @component
    async def asks() -> str:
        await begun.wait()
        asked.set()
        answer: str = await onward.signal("go", str)
        answer += await step("mark")
        answered.set()
        return answer

    @component
    async def late() -> str:
        begun.set()
        await answered.wait()
        return "late"

    @workflow
    async def flow() -> list[str]:
        return list(await asyncio.gather(asks(), late()))

    source = MemoryRun()
    running = asyncio.create_task(attempt(flow, source))
    await asked.wait()
    source.signal("go", b'"yes"')
    await running
    fork = await attempt(flow, forked(source, first_of(source.events, "late")))
    again = forked(fork, first_of(fork.events, "step"))
    [sent] = [event for event in again.events if event.HasField("signal_received")]
    assert sent.offset in [event.component_finished.signal_offset for event in again.events]
    ran.clear()
    assert fold((await attempt(flow, again)).events).output == ["yesmark", "late"]
    assert ran == ["mark"]


@workflow
async def part(name: str) -> str:
    return name


@workflow
async def parts() -> list[str]:
    """Has two children. It fails while they run, or by the first of them."""
    one, two = [await onward.start_child(part, name) for name in ("one", "two")]
    await step("mark")
    if "parent" in broken:
        raise ValueError
    return list(await asyncio.gather(one.result(), two.result(), two.result()))


class Children:
    """Does what a run asks of others, as a Scheduler does. Its children end as they are called, if they are not held.

    Attributes:
        names: Of the children that were started, by run_id.
    """

    def __init__(self, memory: MemoryRun, held: frozenset[str] = frozenset()) -> None:
        self.names: dict[str, str] = {}
        self._memory = memory
        self._held = held
        self._done = len(memory.errands)
        memory.on_errand = self._do

    def _do(self) -> None:
        for data in self._memory.errands[self._done :]:
            self._done += 1
            errand = Errand.FromString(data)
            if errand.HasField("stop_child"):
                self.ended(errand.stop_child.run_id, RUN_STATE_CANCELLED)
                continue
            start = errand.start_child.start
            name = self.names[start.run_id] = json.loads(start.input.data)["name"]
            self.tell(ACCEPTED + start.run_id, Run(run_id=start.run_id))
            if name not in self._held:
                failed = name in broken
                self.ended(start.run_id, RUN_STATE_FAILED if failed else RUN_STATE_SUCCEEDED, f"new {name}")

    def ended(self, run_id: str, state: RunState.ValueType, output: str = "") -> None:
        told = Run(run_id=run_id, state=state)
        if state == RUN_STATE_SUCCEEDED:
            told.output.CopyFrom(Payload(data=json.dumps(output).encode()))
        self.tell(ENDED + run_id, told)

    def tell(self, name: str, run: Run) -> None:
        self._memory.signal(name, run.SerializeToString())


@pytest.fixture
def eager() -> Iterator[None]:
    token = PACE.set(Pace(quiet_s=0.0, near_s=0.0))
    yield
    PACE.reset(token)


async def test_a_fork_starts_the_children_again_that_were_cancelled_with_its_source(eager: None) -> None:
    """Once, wherever it is lost; those that had a result keep it. It asks for the ends that it was not told."""
    broken.add("parent")
    source = MemoryRun()
    theirs = Children(source, held=frozenset(("one", "two")))
    await attempt(parts, source, name="source")
    [one, two] = theirs.names
    broken.clear()
    mark = first_of(source.events, "step")
    length = 99
    for dies_after in range(11, 99):
        if dies_after > length:
            break
        fork = forked(source, mark)
        assert [Errand.FromString(errand).tell_end.run_id for errand in fork.errands] == [one, two]
        mine = Children(fork)
        mine.ended(one, RUN_STATE_SUCCEEDED, "old one")
        mine.ended(two, RUN_STATE_CANCELLED)
        await attempt(parts, fork, name="fork", dies_after=dies_after)
        while not fork.ended:
            await attempt(parts, fork, name="fork")
        view = fold(fork.events)
        assert view.output == ["old one", "new two", "new two"], dies_after
        assert [*mine.names.values()] == ["two"], dies_after
        assert {child.run_id for child in view.child_runs} == {one, two, *mine.names}
        length = min(length, fork.last_offset)
    assert length == 31


async def test_a_child_that_the_code_itself_had_cancelled_stays_so(eager: None) -> None:
    """It was meant."""

    @workflow
    async def flow() -> str:
        child = await onward.start_child(part, "one")
        await child.cancel()
        await step("mark")
        try:
            return await child.result()
        except ComponentError as error:
            return error.reason

    source = MemoryRun()
    theirs = Children(source, held=frozenset(("one",)))
    await to_the_end(flow, source, b"{}", [])
    [child] = theirs.names
    assert fold(source.events).output == "CANCELLED"
    fork = forked(source, first_of(source.events, "step"))
    assert not fork.errands, "its end is in the log"
    assert any(event.signal_received.name == ENDED + child for event in fork.events)
    mine = Children(fork)
    await to_the_end(flow, fork, b"{}", [])
    assert (fold(fork.events).output, mine.names) == ("CANCELLED", {})


async def test_who_failed_by_a_child_starts_that_again_when_it_is_retried(eager: None) -> None:
    """The end that it was told stays one; what is asked for is another try."""
    broken.add("one")
    source = MemoryRun()
    theirs = Children(source)
    while not source.ended:
        await attempt(parts, source, name="source")
    failed = source.events[-1].run_state_changed.error.component_id
    assert first_of(source.events, "onward.child") == failed
    broken.clear()
    for from_failure, output in ((True, ["new one", "new two", "new two"]), (False, None)):
        fork = forked(source, failed, from_failure=from_failure)
        mine = Children(fork)
        for child in fork.errands:
            run_id = Errand.FromString(child).tell_end.run_id
            mine.ended(run_id, RUN_STATE_FAILED if theirs.names[run_id] == "one" else RUN_STATE_SUCCEEDED, "new two")
        while not fork.ended:
            await attempt(parts, fork, name="fork")
        assert fold(fork.events).output == output
