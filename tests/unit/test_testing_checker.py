"""The checker finds what is planted: in logs, in what clients saw, in what user code did, and in the engine itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from onward import View, calls, component, memory, publish, status, testing, workflow
from onward.engine import Attempt
from onward.journal import Journal
from onward.past import Past, Trail
from onward.testing import Effect, Seen
from onward.v1.event_pb2 import (
    OUTCOME_ERROR,
    OUTCOME_OK,
    AttemptStarted,
    ComponentFinished,
    ComponentRetrying,
    ComponentStarted,
    Event,
    OutputDelta,
    RunStateChanged,
    SignalReceived,
    StatusUpdated,
)
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, RUN_STATE_FAILED, RUN_STATE_QUEUED, RUN_STATE_SUCCEEDED, Payload, Run

MARKS = r"<\w+(#\d+)>"

_done: list[Effect] = []
"""What the components below did."""


@component
async def fetch(topic: str) -> str:
    _done.append(Effect("fetch", topic))
    status(f"fetching {topic}")
    await asyncio.sleep(0)
    return f"<{topic}#{len(_done)}>"


@component.retry(3, 0)
async def flaky(topic: str, source: str) -> str:
    _done.append(Effect("flaky", topic, [source]))
    status(f"trying {topic}")
    if [one.component for one in _done].count("flaky") == 1:
        raise ConnectionError("no")
    return f"<{topic}#{len(_done)}>"


@component
async def say(topic: str, source: str) -> AsyncIterator[str]:
    _done.append(Effect("say", topic, [source]))
    for word in ("Once ", "upon ", "a ", "time"):
        await asyncio.sleep(0)
        yield word


@workflow
async def tale(topic: str) -> str:
    status("begins")
    source = await fetch(topic)
    publish.state("source", {"of": topic})
    better = await flaky("better", source)
    text = await say("said", better)
    status("ends")
    return text + better


CRASHES = (
    testing.after_finish(fetch),
    testing.after_finish(flaky),
    testing.after_text("upon"),
    testing.before_end(),
)


async def tell() -> tuple[list[Event], View, list[Effect]]:
    """Return the log of a run that crashed a lot, what an undisturbed one shows, and what the first did."""
    _done.clear()
    with testing.no_replay():
        calm = await testing.run(tale, "tea")
        _done.clear()
        with testing.crash(*CRASHES):
            result = await testing.run(tale, "tea")
    return result.events, calm.view, list(_done)


def record_of(events: list[Event], **fields: Any) -> Run:
    """Return what GetRun says of a run with this log."""
    changed = events[-1].run_state_changed
    record = Run(state=changed.state, attempt=max(event.attempt for event in events))
    for name in ("output", "error"):
        if changed.HasField(name):
            getattr(record, name).CopyFrom(getattr(changed, name))
    record.log.last_offset = events[-1].offset
    for name, value in fields.items():
        if isinstance(value, Message):
            getattr(record, name).CopyFrom(value)
        else:
            setattr(record, name, value)
    return record


def found(events: list[Event], **given: Any) -> set[str]:
    return {str(one.invariant) for one in testing.check(events, **given)}


async def test_nothing_is_found_where_nothing_is_wrong() -> None:
    """A run that crashed at four places, seen by clients that came and went."""
    events, calm, effects = await tell()
    seen = [
        Seen("whole", events),
        Seen("later", events[9:], after=9),
        Seen("gone early", events[:7], to_end=False),
        Seen("settled", testing.settle(events), view="settled"),
        Seen("settled, live", events, view="settled"),
    ]
    everything = testing.check(
        events,
        record=record_of(events),
        settled=testing.settle(events),
        seen=seen,
        reference=calm,
        effects=effects,
        marks=MARKS,
        cancelled=False,
    )
    assert not everything, [str(one) for one in everything]
    assert max(event.attempt for event in events) == 5


def renumbered(events: list[Event]) -> list[Event]:
    for place, event in enumerate(events, 1):
        event.offset = place
    return events


def at(events: list[Event], kind: str, nth: int = 0) -> int:
    """The index of the nth event of a kind."""
    return [index for index, event in enumerate(events) if event.HasField(kind)][nth]  # type: ignore[arg-type]


def a_copy(event: Event, **fields: Any) -> Event:
    copy = Event()
    copy.CopyFrom(event)
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


def hole(events: list[Event]) -> list[Event]:
    return events[:5] + events[6:]


def twice(events: list[Event]) -> list[Event]:
    return [*events[:6], events[5], *events[6:]]


def zombie(events: list[Event]) -> list[Event]:
    """A byte of attempt 1 after attempt 2 began."""
    place = at(events, "attempt_started", 1) + 1
    ghost = Event(attempt=1, status_updated=StatusUpdated(message="I live"))
    return renumbered([*events[:place], ghost, *events[place:]])


def not_yet_replaced(events: list[Event]) -> list[Event]:
    """A byte of attempt 1 after it lost the run and before anybody else had it."""
    place = at(events, "attempt_started", 1)
    queued = Event(run_state_changed=RunStateChanged(state=RUN_STATE_QUEUED))
    ghost = Event(attempt=1, status_updated=StatusUpdated(message="I live"))
    return renumbered([*events[:place], queued, ghost, *events[place:]])


def backwards(events: list[Event]) -> list[Event]:
    """The third attempt is counted as the first one."""
    place = at(events, "attempt_started", 2)
    return [*events[:place], a_copy(events[place], attempt=1), *events[place + 1 :]]


def after_the_end(events: list[Event]) -> list[Event]:
    return renumbered([*events, Event(attempt=5, status_updated=StatusUpdated(message="one more thing"))])


def ends_twice(events: list[Event]) -> list[Event]:
    return renumbered([*events, Event(run_state_changed=RunStateChanged(state=RUN_STATE_FAILED))])


def runs_again(events: list[Event]) -> list[Event]:
    """What is finished is begun again by the next attempt."""
    place = at(events, "attempt_started", 1) + 1
    begun = a_copy(events[at(events, "component_started")], attempt=2)
    return renumbered([*events[:place], begun, *events[place:]])


def finishes_twice(events: list[Event]) -> list[Event]:
    place = at(events, "component_finished") + 1
    return renumbered([*events[:place], a_copy(events[place - 1]), *events[place:]])


def used_early(events: list[Event]) -> list[Event]:
    """The consumer begins before its source's result is in the log."""
    finished, started = at(events, "component_finished"), at(events, "component_started", 1)
    moved = [event for index, event in enumerate(events) if index != finished]
    place = started  # one further left now that the result is out
    return renumbered([*moved[:place], events[finished], *moved[place:]])


def no_rollback(events: list[Event]) -> list[Event]:
    """What the failed try had shown stays."""
    return renumbered([event for event in events if not event.HasField("rollback")])


def another_word(events: list[Event]) -> list[Event]:
    place = at(events, "output_delta", -1)
    changed = a_copy(events[place])
    changed.output_delta.CopyFrom(OutputDelta(text="crime", channel=changed.output_delta.channel))
    return [*events[:place], changed, *events[place + 1 :]]


def kept_failure(events: list[Event]) -> list[Event]:
    """The cache had an error."""
    place = at(events, "component_finished")
    changed = a_copy(events[place])
    changed.component_finished.outcome = OUTCOME_ERROR
    changed.component_finished.cached = True
    return [*events[:place], changed, *events[place + 1 :]]


PLANTED: dict[Callable[[list[Event]], list[Event]], str] = {
    hole: "dense offsets",
    twice: "dense offsets",
    zombie: "one writer",
    not_yet_replaced: "one writer",
    backwards: "one writer",
    after_the_end: "one end",
    ends_twice: "one end",
    runs_again: "done once",
    finishes_twice: "done once",
    used_early: "acknowledged before used",
    no_rollback: "one view",
    another_word: "one view",
    kept_failure: "done once",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
async def test_what_is_planted_in_a_log_is_found(plant: Callable[[list[Event]], list[Event]]) -> None:
    """Each by its own invariant."""
    events, calm, _ = await tell()
    assert PLANTED[plant] in found(plant(events), reference=calm, marks=MARKS)


async def test_a_record_that_says_something_else_is_found() -> None:
    """State, output, error, the last offset and the attempt are the log's."""
    events, _, _ = await tell()
    failed = record_of(events)
    failed.error.reason = "WORKFLOW_FAILED"
    for record in (
        record_of(events, state=RUN_STATE_FAILED),
        record_of(events, output=Payload(data=b'"else"', size=6)),
        record_of(events, attempt=4),
        failed,
    ):
        assert found(events, record=record) & {"one end", "one writer"}, record
    record = record_of(events)
    record.log.last_offset += 1
    assert found(events, record=record) == {"one end"}
    assert found(events[:-1], record=record_of(events)) == {"one end"}, "terminal without its event"


async def test_what_a_client_missed_or_saw_twice_is_found() -> None:
    """And what it saw otherwise, too early, or not at all."""
    events, _, _ = await tell()
    other = a_copy(events[4])
    other.create_time.seconds += 1
    for seen in (
        Seen("misses one", events[:4] + events[5:]),
        Seen("sees one twice", events[:5] + events[4:]),
        Seen("sees them out of order", [events[1], events[0], *events[2:]]),
        Seen("sees another", [*events[:4], other, *events[5:]]),
        Seen("leaves before the end", events[:-1]),
        Seen("begins too early", events[3:], after=5),
        Seen("begins too late", events[7:], after=5),
        Seen("misses a settled one", testing.settle(events)[:-3] + testing.settle(events)[-2:], view="settled"),
    ):
        assert "exact resume" in found(events, seen=[seen]), seen.who


async def test_a_served_view_that_is_not_the_settled_one_is_found() -> None:
    """What is void was left in, or more was left out."""
    events, _, _ = await tell()
    settled = testing.settle(events)
    assert len(settled) < len(events)
    assert found(events, settled=settled) == set()
    assert found(events, settled=events) == {"one view"}
    assert found(events, settled=settled[:3] + settled[4:]) == {"one view"}


async def test_what_was_done_too_often_or_not_at_all_is_found() -> None:
    """A result without its work, work without a trace, and work with what no log holds."""
    events, _, effects = await tell()
    given: dict[str, Any] = {"marks": MARKS, "effects": effects}
    assert found(events, **given) == set()
    given["effects"] = [one for one in effects if one.component != "fetch"] + [Effect("fetch", "coffee")]
    assert found(events, **given) == {"done once"}
    given["effects"] = effects + [Effect("fetch", "tea")] * 6
    assert found(events, **given) == {"done once"}
    given["effects"] = [*effects, Effect("say", "said", ["<tea#99>"])]
    assert found(events, **given) == {"acknowledged before used"}


def with_signals(*taken: tuple[str, int], failed_after: int = 99) -> list[Event]:
    """The log of a run that was sent a signal, at offset 3, and whose waits took what stands at these offsets."""
    events = [
        Event(run_state_changed=RunStateChanged(state=RUN_STATE_QUEUED)),
        Event(attempt=1, attempt_started=AttemptStarted()),
        Event(signal_received=SignalReceived(name="go")),
        Event(attempt=1, component_id="above", component_started=ComponentStarted(name="above")),
    ]
    for number, (wait, offset) in enumerate(taken):
        started = ComponentStarted(name="onward.signal", parent_id="above")
        finished = ComponentFinished(outcome=OUTCOME_OK, signal_offset=offset)
        events.append(Event(attempt=1, component_id=wait, component_started=started))
        events.append(Event(attempt=1, component_id=wait, component_finished=finished))
        if number == failed_after:
            events.append(Event(attempt=1, component_id="above", component_retrying=ComponentRetrying(try_number=1)))
    return renumbered(events)


async def test_a_signal_that_is_taken_twice_or_is_not_there_is_found() -> None:
    """What a failed try had taken is there again."""
    assert found(with_signals(("one", 3))) == set()
    assert found(with_signals(("one", 3), ("two", 3))) == {"done once"}
    assert found(with_signals(("one", 3), ("two", 3), failed_after=0)) == set()
    assert found(with_signals(("one", 2))) == {"acknowledged before used"}


async def test_what_a_run_was_started_with_may_be_used() -> None:
    """And what it was sent."""
    events, _, _ = await tell()
    events[at(events, "status_updated")].status_updated.message = "of <given#1>"
    assert found(events, marks=MARKS) == {"acknowledged before used"}
    record = record_of(events, input=Payload(data=b'{"topic":"<given#1>"}'))
    assert found(events, marks=MARKS, record=record) == set()
    signal = Event(signal_received=SignalReceived(name="given", value=Payload(data=b'"<given#1>"')))
    assert found(renumbered([events[0], signal, *events[1:]]), marks=MARKS) == set()


async def test_a_cancellation_that_nobody_asked_for_is_found() -> None:
    """Watching is harmless, and so is everything else but CancelRun."""
    run = memory.MemoryRun()
    run.begin()
    run.close(RUN_STATE_CANCELLED)
    assert found(run.events, cancelled=False) == {"watching is harmless"}
    assert found(run.events, cancelled=True) == set()


async def test_an_event_beyond_all_limits_is_found() -> None:
    """Nothing is unbounded."""
    events, _, _ = await tell()
    events[3].status_updated.message = "x" * (2 << 20)
    assert "nothing is unbounded" in found(events)


# Bugs in the engine; those in the store are in tests/chaos


def a_log_that_counts_what_it_is_told(patch: pytest.MonkeyPatch) -> None:
    def write(self: memory.MemoryRun, data: bytes, *, attempt: int) -> None:
        self._log.append(data + Event(offset=len(self._log), attempt=attempt).SerializeToString())

    patch.setattr(memory.MemoryRun, "write", write)


def results_that_nobody_waits_for(patch: pytest.MonkeyPatch) -> None:
    async def finished(self: Journal, instance: Any, output: Payload | None, *_: Any, **__: Any) -> None:
        done = ComponentFinished(outcome=OUTCOME_OK, output=output)
        self.loop.call_later(0.01, self.post, Event(component_id=instance.id, component_finished=done))

    patch.setattr(Journal, "finished", finished)


def attempts_that_forget(patch: pytest.MonkeyPatch) -> None:
    take = Past.take

    def forgetful(self: Past, event: Event) -> None:
        if not event.HasField("component_finished"):
            take(self, event)

    patch.setattr(Past, "take", forgetful)


def tries_that_leave_what_they_showed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journal, "rollback", lambda self, ids, cause: None)


def lines_that_are_said_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Trail, "has_line", lambda self, event: False)


def an_end_without_its_output(patch: pytest.MonkeyPatch) -> None:
    async def forgetful(self: Attempt, call: calls.Call, body: asyncio.Task[Any]) -> RunStateChanged:
        return RunStateChanged(state=RUN_STATE_SUCCEEDED)

    patch.setattr(Attempt, "_outcome", forgetful)


BUGS: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    a_log_that_counts_what_it_is_told: "dense offsets",
    results_that_nobody_waits_for: "acknowledged before used",
    attempts_that_forget: "done once",
    tries_that_leave_what_they_showed: "one view",
    lines_that_are_said_again: "one view",
    an_end_without_its_output: "one view",
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
async def test_what_is_planted_in_the_engine_is_found(bug: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Nobody tells the checker where to look: it has the log, the reference and what was done."""
    _, calm, _ = await tell()
    _done.clear()
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        with testing.no_replay(), testing.crash(3, 16, 20):
            result = await testing.run(tale, "tea")
    everything = testing.check(result.events, reference=calm, effects=_done, marks=MARKS)
    assert BUGS[bug] in {one.invariant for one in everything}, [str(one) for one in everything]
