"""What every log of an attempt promises the engine. One suite; each implementation is one fixture parameter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import pytest

from onward.log import EVENT_BYTES_MAX, AttemptFenced, AttemptLog, EventTooLarge, LogClosed, LogFull, RunCancelling
from onward.memory import MemoryRun
from onward.v1.event_pb2 import (
    ComponentFinished,
    ComponentStarted,
    Event,
    OutputDelta,
    RunStateChanged,
    RunWaiting,
    StatusUpdated,
)
from onward.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_CANCELLING,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_QUEUED,
    RUN_STATE_RUNNING,
    RUN_STATE_SUCCEEDED,
    RUN_STATE_WAITING,
    Payload,
    RunError,
    RunState,
    Usage,
)


class RunUnderTest(Protocol):
    """One accepted run: its log holds the event that says QUEUED."""

    async def begin(self) -> AttemptLog:
        """Claim the run for a new attempt, the next by number, and return its log."""

    async def close(self) -> None:
        """End the run as somebody else does who is not the executor: into CANCELLED, or FAILED by time-out."""

    async def cancel(self) -> None:
        """Ask for the end of the run, of which its attempt has not heard yet."""

    async def signal(self, name: str) -> None:
        """Send a signal into the run, which its attempt is told of."""

    async def state(self) -> RunState.ValueType:
        """Return where the run is in its life."""

    async def events(self) -> list[Event]:
        """Return the whole log as a reader sees it."""

    async def usage(self) -> Usage:
        """Return the run's usage as a reader sees it."""


NewRun = Callable[..., Awaitable[RunUnderTest]]
"""Makes a run; takes events_max and bytes_max, where the log is to be full early."""


class InMemory:
    def __init__(self, events_max: int, bytes_max: int) -> None:
        self._run = MemoryRun(events_max=events_max, bytes_max=bytes_max)

    async def begin(self) -> AttemptLog:
        return self._run.begin()

    async def close(self) -> None:
        self._run.close()

    async def cancel(self) -> None:
        self._run.cancel()

    async def signal(self, name: str) -> None:
        self._run.signal(name, b"1")

    async def state(self) -> RunState.ValueType:
        return self._run.state

    async def events(self) -> list[Event]:
        return self._run.events

    async def usage(self) -> Usage:
        return self._run.usage


@pytest.fixture
def memory_run() -> NewRun:
    async def new_run(*, events_max: int = 10_000, bytes_max: int = 1 << 28) -> RunUnderTest:
        return InMemory(events_max, bytes_max)

    return new_run


@pytest.fixture(params=["memory"])
def new_run(request: pytest.FixtureRequest) -> NewRun:
    made: NewRun = request.getfixturevalue(f"{request.param}_run")
    return made


def status(message: str) -> Event:
    return Event(status_updated=StatusUpdated(message=message))


def succeeded(data: bytes = b"1") -> Event:
    changed = RunStateChanged(state=RUN_STATE_SUCCEEDED, output=Payload(data=data, size=len(data)))
    return Event(run_state_changed=changed)


def paused() -> Event:
    return Event(run_state_changed=RunStateChanged(state=RUN_STATE_PAUSED, error=RunError(reason="LOG_LIMIT")))


def cancelled() -> Event:
    return Event(run_state_changed=RunStateChanged(state=RUN_STATE_CANCELLED))


def waiting(*signals: str) -> Event:
    return Event(run_waiting=RunWaiting(reason="something", signals=signals))


async def messages(events: AsyncIterator[Event]) -> list[str]:
    return [event.status_updated.message async for event in events if event.HasField("status_updated")]


async def test_a_run_begins_with_the_event_that_accepted_it(new_run: NewRun) -> None:
    """Offset 1 says QUEUED and was written by no attempt."""
    first, *rest = await (await new_run()).events()
    assert (first.offset, first.attempt, first.run_state_changed.state) == (1, 0, RUN_STATE_QUEUED)
    assert rest == []


async def test_append_answers_with_the_newest_offset(new_run: NewRun) -> None:
    """The reply is where the log ends, posted events included."""
    log = await (await new_run()).begin()
    log.post(status("a"))
    assert await log.append(status("b"), status("c")) == 4
    assert await log.append() == 4


async def test_what_components_used_is_summed_on_the_run(new_run: NewRun) -> None:
    """Once for each event that says so, over all attempts, and with no attempt that was fenced."""

    def used(amount: int) -> Event:
        usage = Usage(
            input_tokens=amount, output_tokens=2, cached_input_tokens=3, cost_usd_micros=4 * 10**12, calls=amount
        )
        return Event(component_id="c", component_finished=ComponentFinished(usage=usage))

    run = await new_run()
    assert await run.usage() == Usage()
    first = await run.begin()
    first.post(used(1))
    first.post(status("nothing"))
    await first.append(used(10), used(100))
    second = await run.begin()
    with pytest.raises(AttemptFenced):
        await first.append(used(1_000))
    await second.append(used(10_000))
    await second.finish(succeeded())
    assert await run.usage() == Usage(
        input_tokens=10_111, output_tokens=8, cached_input_tokens=12, cost_usd_micros=16 * 10**12, calls=10_111
    )


async def test_events_are_committed_in_the_order_of_the_calls(new_run: NewRun) -> None:
    """Posting and appending share one queue."""
    log = await (await new_run()).begin()
    log.post(status("a"))
    await log.append(status("b"))
    log.post(status("c"))
    log.post(status("d"))
    await log.append()
    assert await messages(log.read()) == ["a", "b", "c", "d"]


async def test_offsets_are_dense_and_set_by_the_log(new_run: NewRun) -> None:
    """What the writer put into offset and attempt does not count."""
    run = await new_run()
    log = await run.begin()
    await log.append(Event(offset=77, attempt=9, status_updated=StatusUpdated(message="a")), status("b"))
    events = await run.events()
    assert [event.offset for event in events] == [1, 2, 3]
    assert [event.attempt for event in events] == [0, 1, 1]


async def test_an_event_is_taken_as_it_is_at_the_call(new_run: NewRun) -> None:
    """Changing a message after it was posted changes nothing in the log."""
    log = await (await new_run()).begin()
    event = status("before")
    log.post(event)
    event.status_updated.message = "after"
    await log.append()
    assert await messages(log.read()) == ["before"]


async def test_reading_begins_after_an_offset(new_run: NewRun) -> None:
    """`after` is exclusive, and reading past the end gives nothing."""
    log = await (await new_run()).begin()
    await log.append(status("a"), status("b"))
    assert [event.offset async for event in log.read(after=2)] == [3]
    assert [event.offset async for event in log.read(after=3)] == []


async def test_a_later_attempt_fences_an_earlier_one(new_run: NewRun) -> None:
    """Nothing of the earlier one gets into the log any more, in whatever way it tries."""
    run = await new_run()
    first = await run.begin()
    await first.append(status("mine"))
    second = await run.begin()
    first.post(status("late"))
    with pytest.raises(AttemptFenced):
        await first.append()
    assert first.crowded  # whoever asks before `room` is sent there, and told
    with pytest.raises(AttemptFenced):
        await first.append(status("later"))
    with pytest.raises(AttemptFenced):
        await first.finish(succeeded())
    with pytest.raises(AttemptFenced):
        await first.room()
    assert await messages(second.read()) == ["mine"]
    last = await second.append(status("yours"))
    assert [event.offset for event in await run.events()] == list(range(1, last + 1))


async def test_a_refused_event_takes_those_after_it_along(new_run: NewRun) -> None:
    """A log never has a hole where something was refused."""
    run = await new_run()
    log = await run.begin()
    await run.close()
    log.post(status("a"))
    log.post(status("b"))
    with pytest.raises(LogClosed):
        await log.append(status("c"))
    assert [event.WhichOneof("kind") for event in await run.events()] == ["run_state_changed"] * 2


async def test_finish_commits_the_end_after_everything_before_it(new_run: NewRun) -> None:
    """The closing event is the last, whatever was still on its way."""
    run = await new_run()
    log = await run.begin()
    log.post(status("a"))
    await log.finish(succeeded(b'"done"'))
    *_, before, last = await run.events()
    assert before.status_updated.message == "a"
    assert last.run_state_changed.state == RUN_STATE_SUCCEEDED
    assert last.run_state_changed.output.data == b'"done"'


async def test_nothing_follows_the_end(new_run: NewRun) -> None:
    """After finish every write is refused, a second finish too."""
    run = await new_run()
    log = await run.begin()
    await log.finish(succeeded())
    log.post(status("late"))
    with pytest.raises(LogClosed):
        await log.append()
    with pytest.raises(LogClosed):
        await log.finish(Event(run_state_changed=RunStateChanged(state=RUN_STATE_FAILED)))
    assert (await run.events())[-1].run_state_changed.state == RUN_STATE_SUCCEEDED


async def test_an_end_from_outside_closes_the_log(new_run: NewRun) -> None:
    """A run that was cancelled or timed out takes nothing from the attempt that still runs."""
    run = await new_run()
    log = await run.begin()
    await run.close()
    with pytest.raises(LogClosed):
        await log.append(status("late"))
    with pytest.raises(LogClosed):
        await log.finish(succeeded())
    assert (await run.events())[-1].run_state_changed.state in (RUN_STATE_CANCELLED, RUN_STATE_FAILED)


async def test_a_full_log_takes_nothing_but_a_pause(new_run: NewRun) -> None:
    """At its limit the run can only be paused, and the pause is in the log."""
    run = await new_run(events_max=3)
    log = await run.begin()
    await log.append(status("a"), status("b"))
    with pytest.raises(LogFull):
        await log.append(status("c"))
    with pytest.raises(LogFull):
        await log.finish(succeeded())
    await log.finish(paused())
    assert (await run.events())[-1].run_state_changed.state == RUN_STATE_PAUSED


async def test_a_full_log_takes_the_end_of_a_cancellation(new_run: NewRun) -> None:
    """Who cleans up may fill it, and nobody is to be asked about a run that was to end."""
    run = await new_run(events_max=3)
    log = await run.begin()
    await log.append(status("a"), status("b"))
    with pytest.raises(LogFull):
        await log.append(status("c"))
    await log.finish(cancelled())
    assert await run.state() == RUN_STATE_CANCELLED


async def test_a_run_that_is_to_be_cancelled_does_not_pause(new_run: NewRun) -> None:
    """Who asked for its end was answered. Whoever was about to pause it ends it."""
    run = await new_run()
    log = await run.begin()
    await log.append(status("a"))
    await run.cancel()
    for _ in range(2):
        with pytest.raises(RunCancelling):
            await log.finish(paused())
    await log.finish(cancelled())
    assert await run.state() == RUN_STATE_CANCELLED
    assert [event.run_state_changed.state for event in (await run.events())[-2:]] == [
        RUN_STATE_CANCELLING,
        RUN_STATE_CANCELLED,
    ]


async def test_results_beside_a_log_count_as_its_bytes(new_run: NewRun) -> None:
    """Whether it is a blob or in the memo. What takes the place of another counts once."""
    run = await new_run(bytes_max=10_000)
    log = await run.begin()
    for _ in range(5):
        await log.append(status("a"), memo={"one": b"x" * 6_000})
    await log.append(memo={"two": b"x" * 6_000})
    with pytest.raises(LogFull):
        await log.append(status("b"))
    await log.finish(paused())
    assert (await run.events())[-1].run_state_changed.state == RUN_STATE_PAUSED


async def test_a_blob_counts_as_the_bytes_of_its_log(new_run: NewRun) -> None:
    """One that is beyond the limit is kept, and nothing after it."""
    run = await new_run(bytes_max=10_000)
    log = await run.begin()
    for _ in range(2):
        await log.append(status("a"))
        await log.put_blob(b"x" * 6_000)
    with pytest.raises(LogFull):
        await log.append(status("b"))


async def test_a_pause_ends_the_attempt(new_run: NewRun) -> None:
    """A paused run is nobody's."""
    log = await (await new_run()).begin()
    await log.finish(paused())
    with pytest.raises(AttemptFenced):
        await log.append(status("late"))


async def test_an_event_over_the_limit_is_refused_to_its_writer(new_run: NewRun) -> None:
    """The one event is not taken, its neighbours in the call neither, and the attempt goes on."""
    log = await (await new_run()).begin()
    large = Event(output_delta=OutputDelta(text="x" * EVENT_BYTES_MAX))
    with pytest.raises(EventTooLarge) as refused:
        log.post(large)
    assert refused.value.size > EVENT_BYTES_MAX
    with pytest.raises(EventTooLarge):
        await log.append(status("a"), large)
    assert await log.append(status("b")) == 2
    assert await messages(log.read()) == ["b"]


async def test_room_is_there_while_nothing_is_unsent(new_run: NewRun) -> None:
    """A store that keeps up never makes anybody wait."""
    log = await (await new_run()).begin()
    for number in range(3_000):
        log.post(status(str(number)))
        if number % 500 == 0:
            await log.room()
            assert not log.crowded
    assert await log.append() == 3_001


async def test_memo_is_kept_beside_the_events(new_run: NewRun) -> None:
    """A later attempt reads what earlier ones remembered; the last value of an instance wins."""
    run = await new_run()
    first = await run.begin()
    await first.append(status("a"), memo={"x": b"1", "y": b"\x00\xff"})
    second = await run.begin()
    await second.append(memo={"x": b"2"})
    assert dict(await second.read_memo()) == {"x": b"2", "y": b"\x00\xff"}


async def test_the_memo_of_a_refused_append_is_not_kept(new_run: NewRun) -> None:
    """Events and memo are one step."""
    run = await new_run()
    first = await run.begin()
    second = await run.begin()
    with pytest.raises(AttemptFenced):
        await first.append(memo={"x": b"1"})
    assert dict(await second.read_memo()) == {}


async def test_blobs_are_read_back_by_any_attempt(new_run: NewRun) -> None:
    """Two blobs have two names, also where they hold the same."""
    run = await new_run()
    first = await run.begin()
    uris = [await first.put_blob(b"\x00" * 300_000), await first.put_blob(b""), await first.put_blob(b"")]
    second = await run.begin()
    assert len(set(uris)) == 3
    assert [len(await second.get_blob(uri)) for uri in uris] == [300_000, 0, 0]
    with pytest.raises(KeyError):
        await second.get_blob("no-such-blob")


async def test_a_fenced_attempt_keeps_no_blob(new_run: NewRun) -> None:
    """What a zombie computes is nowhere."""
    run = await new_run()
    first = await run.begin()
    await run.begin()
    with pytest.raises(AttemptFenced):
        await first.put_blob(b"late")


async def test_unknown_fields_survive(new_run: NewRun) -> None:
    """The log keeps what it does not understand: a newer writer's fields reach a newer reader."""
    run = await new_run()
    log = await run.begin()
    newer = ComponentStarted(name="a").SerializeToString() + b"\xfa\x7f\x03new"
    event = Event(component_started=ComponentStarted.FromString(newer))
    await log.append(event)
    assert (await run.events())[-1].component_started.SerializeToString() == newer


async def test_parking_ends_the_attempt(new_run: NewRun) -> None:
    """What was posted is in the log before, and nothing of the attempt comes after."""
    run = await new_run()
    log = await run.begin()
    log.post(status("a"))
    assert await log.park(waiting("go"), wake_s=None)
    assert await run.state() == RUN_STATE_WAITING
    log.post(status("late"))
    with pytest.raises(AttemptFenced):
        await log.append(status("later"))
    kinds = [event.WhichOneof("kind") for event in await run.events()]
    assert kinds == ["run_state_changed", "status_updated", "run_waiting"]


async def test_a_signal_that_nobody_has_read_keeps_a_run_from_parking(new_run: NewRun) -> None:
    """The attempt is told of it, reads it, and may park then. Of its own events it is told nothing."""
    run = await new_run()
    log = await run.begin()
    await log.append(status("a"))
    assert await log.others() == []
    await run.signal("go")
    assert not await log.park(waiting("go"), wake_s=None)
    assert await run.state() == RUN_STATE_RUNNING
    await log.append(status("b"))
    [signal] = await log.others()
    assert (signal.offset, signal.signal_received.name) == (3, "go")
    assert await log.others() == []
    assert await log.park(waiting("other"), wake_s=60)


async def test_who_waits_is_told_that_others_have_written(new_run: NewRun) -> None:
    """At once, also while the attempt itself writes nothing."""
    run = await new_run()
    log = await run.begin()
    await log.append(status("a"))
    told = asyncio.Event()
    log.on_others = told.set
    await run.signal("go")
    async with asyncio.timeout(10):
        await told.wait()
    assert [event.signal_received.name for event in await log.others()] == ["go"]
    await run.signal("again")
    await log.append(status("b"))
    assert [event.signal_received.name for event in await log.others()] == ["again"]


async def test_a_signal_wakes_a_run_that_is_parked_for_it(new_run: NewRun) -> None:
    """One of another name is only kept. The next attempt reads both."""
    run = await new_run()
    log = await run.begin()
    await log.append(status("begun"))
    assert await log.park(waiting("a", "b"), wake_s=60)
    await run.signal("c")
    assert await run.state() == RUN_STATE_WAITING
    await run.signal("b")
    assert await run.state() == RUN_STATE_QUEUED
    second = await run.begin()
    await second.append(status("on"))
    assert [event.WhichOneof("kind") async for event in second.read(after=3)] == [
        "signal_received",
        "signal_received",
        "run_state_changed",
        "status_updated",
    ]


async def test_a_run_that_was_ended_by_others_does_not_park(new_run: NewRun) -> None:
    """It has nothing to wait for."""
    run = await new_run()
    log = await run.begin()
    await run.close()
    with pytest.raises(LogClosed):
        await log.park(waiting("go"), wake_s=None)


async def test_a_fenced_attempt_does_not_park_the_run(new_run: NewRun) -> None:
    """It is another's."""
    run = await new_run()
    first = await run.begin()
    await run.begin()
    with pytest.raises(AttemptFenced):
        await first.park(waiting("go"), wake_s=None)
    assert await run.state() != RUN_STATE_WAITING


async def test_a_full_log_takes_no_parking(new_run: NewRun) -> None:
    """The run is paused instead."""
    run = await new_run(events_max=2)
    log = await run.begin()
    await log.append(status("a"))
    with pytest.raises(LogFull):
        await log.park(waiting("go"), wake_s=None)
    await log.finish(paused())
    assert await run.state() == RUN_STATE_PAUSED


async def test_the_memo_of_a_posted_event_is_kept_with_it(new_run: NewRun) -> None:
    """Without anybody waiting."""
    log = await (await new_run()).begin()
    log.post(status("a"), {"x": b"1"})
    await log.append()
    assert dict(await log.read_memo()) == {"x": b"1"}
