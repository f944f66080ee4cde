"""Runs in process: a workflow and its log, its crashes and its replay."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any, Generic, ParamSpec, TypeVar

from pydantic_core import from_json

from onward.children import STARTED
from onward.engine import Attempt
from onward.errors import RunFailed
from onward.journal import NON_DETERMINISTIC
from onward.memory import MemoryCache, MemoryPermits, MemoryRun
from onward.retry import sleep
from onward.testing.family import Family, Member
from onward.testing.points import Point, PointNotReached, after_offset
from onward.testing.waking import Clock, Waker
from onward.v1.errand_pb2 import Errand
from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_EXECUTOR_LOST,
    OUTCOME_CANCELLED,
    AttemptCause,
    Event,
    RunStateChanged,
    RunWaiting,
)
from onward.v1.run_pb2 import (
    RUN_STATE_FAILED,
    RUN_STATE_QUEUED,
    RUN_STATE_SUCCEEDED,
    Payload,
    Run,
    RunError,
    RunState,
)
from onward.views import View, fold
from onward.waits import PACE, Pace
from onward.workflows import Workflow

P = ParamSpec("P")
T = TypeVar("T")

_crashes: ContextVar[tuple[Point | int, ...]] = ContextVar("onward_testing_crashes", default=())
_signals: ContextVar[Mapping[str, Any]] = ContextVar("onward_testing_signals", default={})  # noqa: B039 - never written
_shared: ContextVar[tuple[MemoryCache, MemoryPermits, Iterator[int]] | None] = ContextVar(
    "onward_testing_cache", default=None
)
"""A cache and permits that several runs use, and what they are numbered with."""
_served: ContextVar[Mapping[str, Workflow[..., Any, Any]]] = ContextVar("onward_testing_served", default={})  # noqa: B039 - never written
_replays: ContextVar[bool] = ContextVar("onward_testing_replays", default=True)


class NotRepeatable(AssertionError):
    """A workflow that was replayed after its end did not do what it had done: it depends on time, chance or state."""


class WaitsForEver(AssertionError):
    """A workflow waits for a signal that the test does not give."""


class Result(Generic[T]):
    """A run that has ended.

    Attributes:
        record: The run, as GetRun returns it.
        events: Its log.
        view: What a user of the run sees: the log, folded.
        attempts: How many executors it took.
        children: The runs that it started, in that order, and those that they go on as.
        errands: What it asked of other runs, as serialized Errands.
    """

    children: list[Result[Any]]

    def __init__(self, workflow: Workflow[..., Any, Any], record: Run, run: MemoryRun) -> None:
        self.record = record
        self.events: list[Event] = run.events
        self.view: View = fold(self.events)
        self.attempts = run.attempt
        self.errands = run.errands
        self._workflow = workflow
        self._end = self.events[-1].run_state_changed
        self._run = run
        self.children = []

    @property
    def state(self) -> str:
        """How it ended: "SUCCEEDED", "FAILED", "CANCELLED" or "PAUSED"."""
        return state_name(self._end.state)

    @property
    def output(self) -> T:
        """What the workflow returned, in its annotated type.

        Raises:
            RunFailed: It did not succeed.
            ValueError: It returned nothing, but goes on as another run: `continued_with` tells the input of that.
        """
        if self.state != "SUCCEEDED":
            raise RunFailed("under test", self.state, self._end.error.reason, self._end.error.message)
        if self._end.continued_as_run_id:
            raise ValueError(f"the run goes on as another one, with {self.continued_with}")
        payload = self._end.output
        data = payload.data if payload.WhichOneof("value") == "data" else self._run.blobs[payload.blob_uri]
        output: T = self._workflow.signature.load_output(data)
        return output

    @property
    def continued_with(self) -> dict[str, Any] | None:
        """The input of the run that it goes on as; None where it does not."""
        if not self._end.continued_as_run_id:
            return None
        submit = Errand.FromString(self.errands[-1]).continue_run.submit
        data: dict[str, Any] = from_json(submit.start.input.data)
        return data

    @property
    def error(self) -> RunError | None:
        """Why it failed or is paused; None where it did not."""
        return self._end.error if self._end.HasField("error") else None

    @property
    def statuses(self) -> list[str]:
        """The lines of progress of all components that are not void, oldest first."""
        return [status.message for status in self.view.statuses]


@dataclass(frozen=True)
class _Shared:
    """What the executors of runs under test have in common."""

    cache: MemoryCache
    permits: MemoryPermits


def _attempt(
    member: Member, memory: MemoryRun, cause: AttemptCause.ValueType, shared: _Shared, *, dies: Point | None = None
) -> Attempt:
    log = memory.begin(dies=dies)
    run = Run()
    run.CopyFrom(member.run)
    run.state = memory.state
    run.log.last_offset = memory.last_offset
    return Attempt(
        member.workflow,
        run=run,
        log=log,
        attempt=log.attempt,
        cause=cause,
        executor_id=f"executor-{log.attempt}",
        deployment="test",
        cache=shared.cache,
        permits=shared.permits,
    )


async def run(workflow: Workflow[P, Coroutine[Any, Any, T], Any], /, *args: P.args, **kwargs: P.kwargs) -> Result[T]:
    """Run `workflow` with these arguments to its end, and replay it, but in a `no_replay` block.

    Its children run, too: whenever a run waits, or has ended. What it goes on as (`continue_as`) does not.

    Raises:
        NotRepeatable: The replay went another way.
        WaitsForEver: It waits for a signal that nobody sends, without a timeout.
        TypeError: The workflow does not take them, or they have no JSON form.
    """
    signature = workflow.signature
    data = signature.dump_input(signature.arguments(args, kwargs))
    if data is None:
        raise TypeError(f"the input of {workflow.name} has no JSON form")
    cache, permits, numbers = _shared.get() or (MemoryCache(), MemoryPermits(), repeat(0))
    shared = _Shared(cache, permits)
    number = next(numbers)
    run_id = f"test-{number}" if number else "test"
    payload = Payload(data=data, size=len(data))
    first = Member(workflow, Run(run_id=run_id, namespace="test", workflow=workflow.name, input=payload))
    workflows = dict(_served.get())
    family = Family(first, workflows)
    course = _Course(family, list(_crashes.get()), shared)
    started = STARTED.set(workflows)
    try:
        with no_backoff(), _in_no_time(course):
            await course.run()
            if course.crashes and isinstance(course.crashes[0], Point):
                state = state_name(first.memory.state)
                raise PointNotReached(
                    f"{workflow.name} ended, {state}, and did not come by the point {course.crashes[0]}"
                )
            for member in list(family.members.values()):
                if _replays.get() and member.memory.state in (RUN_STATE_SUCCEEDED, RUN_STATE_FAILED):
                    await _replay(member, shared)
    finally:
        STARTED.reset(started)
    return _result(family, first)


def _result(family: Family, member: Member) -> Result[Any]:
    result: Result[Any] = Result(member.workflow, member.record(), member.memory)
    result.children = [
        _result(family, each) for each in family.members.values() if each.run.parent_run_id == member.run.run_id
    ]
    return result


class _Course:
    """How the runs of a test go: one attempt after the other, and those beside each other of which one waits in place.

    Attributes:
        crashes: Where the first run is still to lose its executor.
        clock: The time.
    """

    def __init__(self, family: Family, crashes: list[Point | int], shared: _Shared) -> None:
        self.crashes = crashes
        self.clock = Clock()
        self._family = family
        self._shared = shared
        self._waker = Waker(family, _signals.get(), self.clock)
        self._beside: set[asyncio.Task[None]] = set()
        self._stuck = ""

    async def run(self) -> None:
        """Run all of them until nobody goes on."""
        while not self._stuck:
            self._family.settle()
            member = next((each for each in self._family.members.values() if each.is_to_run), None)
            if member is not None:
                await self._attempt(member)
            elif self._beside:
                done, _ = await asyncio.wait(self._beside, return_when=asyncio.FIRST_COMPLETED)
                self._beside -= done
                await asyncio.gather(*done)
            elif not self._waker.wake():
                break
        if self._stuck or (self._family.first.memory.waiting is not None):
            raise WaitsForEver(self._stuck or self._waker.unanswered())

    def _attempt(self, member: Member) -> Coroutine[Any, Any, None]:
        """Begin an attempt, which is run when it is awaited."""
        place = self.crashes[0] if self.crashes and member is self._family.first else None
        place = after_offset(place) if isinstance(place, int) else place
        member.attempt = _attempt(member, member.memory, member.next_cause(), self._shared, dies=place)
        return self._run(member, member.attempt)

    async def _run(self, member: Member, attempt: Attempt) -> None:
        try:
            await attempt.run()
        finally:
            member.attempt = member.in_place = None
        if member.is_to_run and member.memory.state != RUN_STATE_QUEUED:  # It was lost.
            if member is self._family.first:
                del self.crashes[:1]
            member.cause = ATTEMPT_CAUSE_EXECUTOR_LOST

    def in_place(self, run_id: str, waiting: RunWaiting) -> None:
        """See Pace.in_place."""
        members = self._family.members
        member = members.get(run_id)
        if member is None or member.attempt is None:
            return  # It is replayed after its end.
        if not member.memory.held:
            member.attempt.abandon()  # Its executor has died. One that does nothing but wait is not told by the log.
            return
        member.in_place = waiting
        if any(each.attempt is not None and each.in_place is None for each in members.values()):
            return
        did = self._family.settle()
        if not self._go_on_beside() and not did and not self._waker.wake():
            self._stuck = self._waker.unanswered()
            for each in members.values():
                if each.attempt is not None:
                    each.attempt.abandon()
        self._go_on_beside()

    def _go_on_beside(self) -> bool:
        """Begin an attempt of each run that is to go on; return whether there was any."""
        members = [each for each in self._family.members.values() if each.is_to_run]
        for member in members:
            self._beside.add(asyncio.create_task(self._attempt(member), name=f"attempt of {member.run.run_id}"))
        return bool(members)


@contextmanager
def signals(given: Mapping[str, Any]) -> Iterator[None]:
    """Answer the runs in the block: whenever one waits for a signal of a name that is in `given`, this is sent.

    Args:
        given: The value by the signal's name: anything that has a JSON form, or a function that returns it. The
            function is called with the InputRequested that the run has written for the name, or an empty one.
    """
    token = _signals.set({**_signals.get(), **given})
    try:
        yield
    finally:
        _signals.reset(token)


@contextmanager
def serving(*workflows: Workflow[..., Any, Any]) -> Iterator[None]:
    """Let the runs in the block start children of these by name. Those that they start by the workflow need it not."""
    token = _served.set({**_served.get(), **{workflow.name: workflow for workflow in workflows}})
    try:
        yield
    finally:
        _served.reset(token)


@contextmanager
def _in_no_time(course: _Course) -> Iterator[None]:
    token = PACE.set(Pace(course.clock, quiet_s=0.0, near_s=0.0, in_place=course.in_place))
    try:
        yield
    finally:
        PACE.reset(token)


@contextmanager
def one_cache() -> Iterator[None]:
    """Let the runs in the block share what their components keep with `cache`, and their limits of `concurrency`.

    Else each run begins with nothing, and only its own calls count.
    """
    token = _shared.set((MemoryCache(), MemoryPermits(), count(1)))
    try:
        yield
    finally:
        _shared.reset(token)


@contextmanager
def no_replay(off: bool = True) -> Iterator[None]:
    """Do not replay the runs in the block: their code changes something outside that a test counts."""
    token = _replays.set(not off)
    try:
        yield
    finally:
        _replays.reset(token)


async def _replay(tested: Member, shared: _Shared) -> None:
    """Run it once more on its own log, without its end: nothing is to be run or shown again."""
    ended = tested.memory
    memory = ended.reopened()
    offset = memory.last_offset + 1
    await _attempt(tested, memory, ATTEMPT_CAUSE_EXECUTOR_LOST, shared).run()
    before, after = ended.events[-1].run_state_changed, memory.events[-1].run_state_changed
    if after.error.reason == NON_DETERMINISTIC:
        raise NotRepeatable(after.error.message)
    finished = {
        event.component_id: event.component_finished.outcome
        for event in ended.events
        if event.HasField("component_finished")
    }
    for event in memory.events[offset:]:
        name = ""
        match event.WhichOneof("kind"):
            case "component_started":
                name = event.component_started.name
                if finished.get(event.component_id) == OUTCOME_CANCELLED:
                    continue  # What was cancelled runs again.
                what = f"ran {name}, which it had not called before"
            case "output_delta" | "status_updated" | "published" | "rollback":
                if finished.get(event.component_id) == OUTCOME_CANCELLED:
                    continue
                what = f"showed something that it had not shown before: {event}"
            case _:
                continue
        raise NotRepeatable(f"{tested.workflow.name}, replayed after its end, {what}")
    then, now = (_end(run, one) for run, one in ((ended, before), (memory, after)))
    if then != now:
        raise NotRepeatable(
            f"{tested.workflow.name}, replayed after its end, ended another way: {then} then, {now} now"
        )


def state_name(state: RunState.ValueType) -> str:
    """Return a state without its prefix, e.g. "FAILED"."""
    return RunState.Name(state).removeprefix("RUN_STATE_")


def _end(run: MemoryRun, changed: RunStateChanged) -> str:
    output, error = changed.output, changed.error
    if changed.continued_as_run_id:
        return f"goes on as {changed.continued_as_run_id}"
    if changed.state == RUN_STATE_SUCCEEDED:
        return (run.blobs[output.blob_uri] if output.blob_uri else output.data).decode()
    return f"{error.reason} {error.type}: {error.message}"


@contextmanager
def crash(*points: Point | int) -> Iterator[None]:
    """Let every run in the block lose its executor at these points, one after the other, and go on in a new attempt.

        with testing.crash(testing.after_start(section, 2), testing.after_text("Once upon"), testing.before_end()):
            result = await testing.run(blog_post, "tea")

    Args:
        points: One for each attempt that dies: `after_start`, `after_finish`, `after_text`, `before_end`, or an offset
            of the log, after which it dies; offsets rise. A run that ends before an offset does not crash there; one
            that does not come by another point raises PointNotReached.
    """
    token = _crashes.set(points)
    try:
        yield
    finally:
        _crashes.reset(token)


@contextmanager
def no_backoff() -> Iterator[None]:
    """Let nobody in the block wait between tries. `run` does this itself."""
    token = sleep.set(_sleep_not)
    try:
        yield
    finally:
        sleep.reset(token)


async def _sleep_not(_: float) -> None:
    await asyncio.sleep(0)
