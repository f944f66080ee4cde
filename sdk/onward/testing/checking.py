"""The checker: does what a run left behind keep what Onward promises?

It knows nothing of how the run went. It takes what can be had of any run afterwards (its log, its record) and what was
noted while it lasted (what live clients saw, what user code did), and says in a sentence each what does not fit.

    found = testing.check(events, record=run, seen=[testing.Seen("browser", followed)])
    assert not found, *found
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from onward.log import CHILD, EVENT_BYTES_MAX, RESERVED
from onward.payload import decode
from onward.v1.event_pb2 import OUTCOME_CANCELLED, OUTCOME_ERROR, OUTCOME_OK, Event
from onward.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_CANCELLING,
    RUN_STATE_PAUSED,
    RUN_STATE_QUEUED,
    RUN_STATE_SUCCEEDED,
    Payload,
    Run,
    RunState,
)
from onward.views import TERMINAL, View, fold

Invariant = Literal[
    "accepted is kept",
    "dense offsets",
    "one writer",
    "acknowledged before used",
    "done once",
    "one view",
    "one end",
    "exact resume",
    "watching is harmless",
    "nothing is unbounded",
]
"""The ten things that always hold, in the order of ARCHITECTURE.md."""

_SHOWN = ("output_delta", "status_updated", "published")
"""What a Rollback can void."""

_LEFT = frozenset({RUN_STATE_QUEUED, RUN_STATE_PAUSED, *TERMINAL})
"""States into which a run goes when no attempt holds it any more."""


@dataclass(frozen=True)
class Finding:
    """One thing that should not be.

    Attributes:
        invariant: What it breaks.
        message: What was found, in a sentence.
        run_id: The run; empty where none was named.
    """

    invariant: Invariant
    message: str
    run_id: str = ""

    def __str__(self) -> str:
        return f"{self.run_id}{': ' if self.run_id else ''}{self.invariant}: {self.message}"


@dataclass(frozen=True)
class Seen:
    """What one client of a run saw while it followed.

    Attributes:
        who: Names it in findings.
        events: In the order in which they came, over all its reconnects.
        after: The offset that it began after.
        view: What it asked for.
        to_end: Whether it followed until it was told that the run has ended.
    """

    who: str
    events: Sequence[Event]
    after: int = 0
    view: Literal["raw", "settled"] = "raw"
    to_end: bool = True


@dataclass(frozen=True)
class Effect:
    """One thing that user code did to the outside world, as it noted it there.

    Attributes:
        component: The name of the component that did it.
        argument: What tells its call from others of that component: the value of one of its arguments.
        used: What it worked with; the marks in it have to be of results that are in the log.
    """

    component: str
    argument: Any
    used: Sequence[str] = ()


@dataclass(kw_only=True)
class _Instance:
    """What the log says of one instance."""

    name: str
    argument: list[Any]
    starts: int = 0
    retries: int = 0
    results: int = 0
    started_in: int = 0
    """The attempt in which it is open; 0 where it is not."""
    finished: bool = False
    """It has a result or an error that a later attempt is given again."""


def check(
    events: Sequence[Event],
    *,
    run_id: str = "",
    record: Run | None = None,
    settled: Sequence[Event] | None = None,
    seen: Iterable[Seen] = (),
    reference: View | None = None,
    effects: Iterable[Effect] | None = None,
    marks: str | None = None,
    cancelled: bool | None = None,
) -> list[Finding]:
    """Return everything about a run that should not be; nothing where all is well.

    Args:
        events: Its whole log, raw, from the first event on.
        run_id: Named in findings.
        record: The run as GetRun returns it.
        settled: Its whole log as a reader of the settled view got it.
        seen: What live clients saw.
        reference: The view of an undisturbed run with the same input, where that has only one outcome: what was shown
            has to be the same.
        effects: All that the components of this run noted to have done. Only where every component's body notes one
            thing, as the first that it does, and has an argument that no other call of that component has.
        marks: A regular expression. A string that matches it in a result was made by that component and by nobody
            before it: wherever else it appears comes later, but in what the run was started with or was sent. What
            differs between two runs in a mark is its group 1.
        cancelled: Whether anybody asked for its cancellation; None where that is not known.
    """
    checks = _Checks(events, marks)
    checks.offsets()
    checks.attempts()
    checks.components()
    checks.signals()
    checks.end(record)
    checks.sizes()
    if marks is not None:
        checks.acknowledged(record)
    if effects is not None:
        checks.done(list(effects), record)
    if cancelled is False and checks.state in (RUN_STATE_CANCELLING, RUN_STATE_CANCELLED):
        checks.say("watching is harmless", "the run was cancelled, and nobody had asked for it")
    if not any(one.invariant == "dense offsets" for one in checks.found):
        # What it showed is worth a look only where the log is one.
        checks.views(settled, reference)
        for one in seen:
            checks.client(one)
    return [Finding(one.invariant, one.message, run_id) for one in checks.found]


def settle(events: Sequence[Event]) -> list[Event]:
    """Return the events of a whole log that are not void."""
    void: set[int] = set()
    shown: dict[str, list[int]] = {}
    for event in events:
        if event.WhichOneof("kind") in _SHOWN:
            shown.setdefault(event.component_id, []).append(event.offset)
        for component_id in event.rollback.component_ids:
            void.update(offset for offset in shown.get(component_id, ()) if offset > event.rollback.after_offset)
    return [event for event in events if event.offset not in void]


def shown(view: View, marks: str | None = None) -> dict[str, Any]:
    """Return what a user sees of a run, without what differs from run to run: offsets, times, attempts, tries and runs.

    Args:
        view: The run.
        marks: As in `check`.
    """
    places = _places(view)
    error = view.error
    everything: dict[str, Any] = {
        "state": view.state,
        "error": error and (error.reason, error.message, error.type, places.get(error.component_id)),
        "output": view.output,
        "text": view.text,
        "items": view.body.items,
        "body": [status.message for status in view.body.statuses],
        "events": view.events,
        "states": view.states,
        "components": {
            places[one.id]: {
                "name": one.name,
                "parent": one.parent_id,
                "state": one.state,
                "statuses": [status.message for status in one.statuses],
                "text": one.text,
                "items": one.items,
                "output": one.output,
                "error": one.error.message if one.error is not None and one.state == "error" else None,
            }
            for one in view.components.values()
        },
    }
    if marks is not None:
        pattern = re.compile(marks)
        everything = {name: _without(value, pattern) for name, value in everything.items()}
    return everything


def _places(view: View) -> dict[str, str]:
    """Return what each instance is called. What is about a child is named by the child, and so by who started it."""
    started = {child.run_id: child.component_id for child in view.child_runs}
    places = {"": ""}
    for one in view.components.values():
        child = one.input.get("run_id") if one.name == CHILD and isinstance(one.input, dict) else None
        places[one.id] = f"{one.parent_id} waits for {started[child]}" if child in started else one.id
    return places


class _Checks:
    """All checks of one run."""

    def __init__(self, events: Sequence[Event], marks: str | None) -> None:
        self.found: list[Finding] = []
        self.events = events
        self.marks = None if marks is None else re.compile(marks)
        self.pattern = marks
        self.instances: dict[str, _Instance] = {}
        self._parents: dict[str, str] = {}
        self.made: dict[str, int] = {}
        """Where each mark is in the log first, as a result."""
        self.state = RUN_STATE_QUEUED
        for event in events:
            if event.HasField("run_state_changed"):
                self.state = event.run_state_changed.state

    def say(self, invariant: Invariant, message: str) -> None:
        self.found.append(Finding(invariant, message))

    # The log

    def offsets(self) -> None:
        for place, event in enumerate(self.events, 1):
            if event.offset != place:
                self.say("dense offsets", f"event {place} of the log has offset {event.offset}")
                return
        if not self.events:
            self.say("accepted is kept", "the log is empty")

    def attempts(self) -> None:
        """Attempts open with AttemptStarted, rise, and write nothing once they were replaced."""
        opened = 0
        left: Event | None = None
        for event in self.events:
            attempt, offset = event.attempt, event.offset
            if attempt == 0:
                if event.HasField("run_state_changed") and event.run_state_changed.state in _LEFT:
                    left = event
                continue
            if event.HasField("attempt_started"):
                if attempt <= opened:
                    self.say("one writer", f"attempt {attempt} begins at offset {offset}, after attempt {opened}")
                opened, left = attempt, None
            elif attempt < opened:
                self.say("one writer", f"attempt {attempt} wrote offset {offset} after attempt {opened} had begun")
            elif attempt > opened:
                self.say("one writer", f"offset {offset} is of attempt {attempt}, which has not begun")
            elif left is not None:
                what = f"attempt {attempt} wrote offset {offset} after the run was taken from it at {left.offset}"
                self.say("one writer", what)
            if event.HasField("run_waiting") or event.run_state_changed.state in _LEFT:
                left = event

    def components(self) -> None:
        """What is finished stays so, and everything has its beginning."""
        for event in self.events:
            offset, one = event.offset, self.instances.get(event.component_id)
            match event.WhichOneof("kind"):
                case "component_started":
                    self._started(event)
                case "component_retrying":
                    if one is None:
                        self.say("done once", f"{event.component_id} is tried again at {offset} and had not begun")
                        continue
                    one.retries += 1
                    self._reopen(event.component_id)
                case "component_finished":
                    outcome = event.component_finished.outcome
                    if one is None or one.finished or not one.started_in:
                        name = event.component_id if one is None else one.name
                        self.say("done once", f"{name} ends at {offset} and was not running")
                        continue
                    one.started_in = 0
                    one.finished = outcome in (OUTCOME_OK, OUTCOME_ERROR)
                    one.results += outcome == OUTCOME_OK and not event.component_finished.cached
                    if outcome not in (OUTCOME_OK, OUTCOME_ERROR, OUTCOME_CANCELLED):
                        self.say("done once", f"{one.name} ends at {offset} without an outcome")
                    if event.component_finished.cached and outcome != OUTCOME_OK:
                        self.say("done once", f"{one.name} has no result at {offset}, and that from the cache")
                case "output_delta" | "status_updated" | "published" if one is not None and one.finished:
                    self.say("done once", f"{one.name} shows something at {offset}, after it had ended")

    def _started(self, event: Event) -> None:
        started = event.component_started
        one = self.instances.get(event.component_id)
        if one is None:
            value = decode(started.input)
            argument = list(value.values()) if isinstance(value, dict) else [value]
            one = self.instances[event.component_id] = _Instance(name=started.name, argument=argument)
        self._parents[event.component_id] = started.parent_id
        one.starts += 1
        if one.finished:
            what = f"{one.name}, whose result is in the log, began again at {event.offset}"
            self.say("done once", what)
        elif one.started_in == event.attempt:
            self.say("done once", f"{one.name} began again at {event.offset} while it was running")
        one.started_in, one.finished = event.attempt, False

    def _reopen(self, component_id: str) -> None:
        """A try of an instance failed: what lies below it counts no more."""
        below = {component_id}
        for child, parent in self._parents.items():  # a parent begins before its children
            if parent in below or (not component_id and child):
                below.add(child)
                self.instances[child].finished = False
                self.instances[child].started_in = 0

    def signals(self) -> None:
        """A wait takes a signal that is there, and of people's and programs' each is taken once."""
        sent: dict[int, str] = {}
        taken: dict[int, str] = {}
        for event in self.events:
            at = event.component_finished.signal_offset
            if event.HasField("signal_received"):
                sent[event.offset] = event.signal_received.name
            elif event.HasField("component_retrying"):
                taken = {offset: by for offset, by in taken.items() if not self._is_below(by, event.component_id)}
            elif at and at not in sent:
                self.say("acknowledged before used", f"a wait took a signal at {event.offset}, and at {at} is none")
            elif (
                at
                and not sent[at].startswith(RESERVED)
                and taken.setdefault(at, event.component_id) != event.component_id
            ):
                self.say("done once", f"signal {sent[at]} of offset {at} was taken again at {event.offset}")

    def _is_below(self, component_id: str, above: str) -> bool:
        while component_id and component_id != above:
            component_id = self._parents.get(component_id, "")
        return component_id == above

    def end(self, record: Run | None) -> None:
        """One end, which nothing follows, and the record says the same."""
        ends = [event for event in self.events if event.run_state_changed.state in TERMINAL]
        for event in ends[1:]:
            self.say("one end", f"the run ended at {ends[0].offset} and again at {event.offset}")
        if ends and ends[0] is not self.events[-1]:
            self.say("one end", f"{len(self.events) - ends[0].offset} events follow the end at {ends[0].offset}")
        if record is None or not self.events:
            return
        if not ends:
            if record.state in TERMINAL:
                self.say("one end", f"the record says {_name(record.state)} and the log has no end")
            return
        changed = ends[0].run_state_changed
        if record.state != changed.state:
            self.say("one end", f"the log ends {_name(changed.state)} and the record says {_name(record.state)}")
        if record.output != changed.output:
            self.say("one end", f"the output in the log is {changed.output} and in the record {record.output}")
        if record.error != changed.error:
            self.say("one end", f"the error in the log is {changed.error} and in the record {record.error}")
        if record.log.last_offset != self.events[-1].offset:
            last = f"the log ends at {self.events[-1].offset}"
            self.say("one end", f"{last} and the record says {record.log.last_offset}")
        if record.attempt < max(event.attempt for event in self.events):
            self.say("one writer", f"the record says attempt {record.attempt}, and a later one is in the log")
        gives = changed.HasField("output") + bool(changed.continued_as_run_id)
        if gives != (changed.state == RUN_STATE_SUCCEEDED):
            self.say("one end", f"the run ended {_name(changed.state)}, and its output is {changed.output}")

    def sizes(self) -> None:
        for event in self.events:
            if event.ByteSize() > EVENT_BYTES_MAX + 16:  # offset and attempt come on top
                self.say("nothing is unbounded", f"the event at {event.offset} has {event.ByteSize()} bytes")

    # What was used, and what was done

    def acknowledged(self, record: Run | None) -> None:
        """A mark is in the log as a result, or came from elsewhere, before it is anything else."""
        if record is not None:
            self.made.update(dict.fromkeys(self._marks_in(record.input), 0))
        for event in self.events:
            kind = event.WhichOneof("kind")
            for mark in self._marks_in(event):
                if kind in ("component_finished", "output_delta", "signal_received"):
                    self.made.setdefault(mark, event.offset)
                elif mark not in self.made and kind != "component_retrying":
                    what = f"offset {event.offset} ({kind}) has {mark}, which no result before it holds"
                    self.say("acknowledged before used", what)

    def done(self, effects: Sequence[Effect], record: Run | None) -> None:
        """What was done fits what the log tells of it.

        An attempt that was lost may have begun each instance once, and each further try of it, without a trace in the
        log; no other may.
        """
        counts = Counter((effect.component, _key(effect.argument)) for effect in effects)
        given = max([event.attempt for event in self.events] + [record.attempt if record is not None else 0], default=0)
        lost = given - 1 if self.state in TERMINAL and self.events[-1].attempt else given
        noting = {effect.component for effect in effects}
        for one in self.instances.values():
            if one.name not in noting:
                continue
            times = max((counts[one.name, _key(value)] for value in one.argument), default=0)
            if times < one.results:
                self.say("done once", f"{one.name}({one.argument[0]!r}) has a result, and was done {times} times")
            allowed = one.starts + one.retries
            if times > allowed + lost * (1 + one.retries):
                lines = f"the log tells of {allowed} times, and {lost} attempts were lost"
                self.say("done once", f"{one.name}({one.argument[0]!r}) was done {times} times; {lines}")
        if self.marks is None:
            return
        for effect in effects:
            for mark in (found.group() for text in effect.used for found in self.marks.finditer(text)):
                if mark not in self.made:
                    what = f"{effect.component}({effect.argument!r}) worked with {mark}, which is in no result"
                    self.say("acknowledged before used", what)

    def _marks_in(self, message: Event | Payload) -> Iterator[str]:
        assert self.marks is not None
        # Text in protobuf is as it is, and JSON does not escape what a mark is made of.
        text = message.SerializeToString().decode(errors="replace")
        yield from dict.fromkeys(found.group() for found in self.marks.finditer(text))

    # What was seen

    def views(self, settled: Sequence[Event] | None, reference: View | None) -> None:
        """fold(raw) = fold(settled) = the output = what an undisturbed run shows."""
        raw = fold(self.events)
        self._differ("the raw log and the settled one", shown(raw), shown(fold(settle(self.events))))
        if settled is not None:
            mine = [event.offset for event in settle(self.events)]
            theirs = [event.offset for event in settled]
            if mine != theirs:
                what = f"the settled view lacks {_some(set(mine) - set(theirs))}"
                self.say("one view", f"{what} and has too many: {_some(set(theirs) - set(mine))}")
            if fold(settled) != raw:
                self._differ("the raw log and the settled one as it was served", shown(raw), shown(fold(settled)))
        if raw.state == "SUCCEEDED" and raw.text and isinstance(raw.output, str) and raw.output != raw.text:
            self.say("one view", f"the run streamed {_brief(raw.text)} and returned {_brief(raw.output)}")
        if reference is not None:
            self._differ("an undisturbed run and this one", shown(reference, self.pattern), shown(raw, self.pattern))

    def client(self, one: Seen) -> None:
        """A client saw each event once, in order, from where it began, as it is in the log."""
        offsets = [event.offset for event in one.events]
        if offsets != sorted(set(offsets)):
            again = [offset for offset, count in Counter(offsets).items() if count > 1]
            what = f"saw {_some(again)} more than once" if again else "saw events out of order"
            self.say("exact resume", f"{one.who} {what}")
        log = {event.offset: event for event in self.events}
        for event in one.events:
            if log.get(event.offset) != event:
                self.say("exact resume", f"{one.who} saw another event at {event.offset} than the log has")
                break
        last = offsets[-1] if offsets else one.after
        through = self.events[-1].offset if one.to_end else last
        if one.view == "raw":
            wanted: Iterable[int] = range(one.after + 1, through + 1)
        else:
            # What was void before it came may be left out or not: that depends on when.
            wanted = [event.offset for event in settle(self.events) if one.after < event.offset <= through]
        if missing := set(wanted) - set(offsets):
            self.say("exact resume", f"{one.who} never saw {_some(missing)}")
        if early := [offset for offset in offsets if offset <= one.after]:
            self.say("exact resume", f"{one.who} began after {one.after} and saw {_some(early)}")
        if one.to_end and one.after == 0 and not missing:
            mine, theirs = shown(fold(self.events)), shown(fold(one.events))
            self._differ(f"the log and what {one.who} ended with", mine, theirs)

    def _differ(self, who: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
        for path, mine, theirs in _differences(one, other, ""):
            self.say("one view", f"{who} differ in {path}: {_brief(mine)} and {_brief(theirs)}")
            return


def _differences(one: Any, other: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in (*one, *(key for key in other if key not in one)):
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
    elif one != other:
        yield path, one, other


def _without(value: Any, marks: re.Pattern[str]) -> Any:
    """Return a value without what differs in its marks."""
    if isinstance(value, str):
        return marks.sub(lambda found: found.group().replace(found.group(1), "") if found.re.groups else "", value)
    if isinstance(value, Mapping):
        return {key: _without(each, marks) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without(each, marks) for each in value]
    return value


def _key(value: Any) -> str:
    return repr(value)


def _name(state: RunState.ValueType) -> str:
    return RunState.Name(state).removeprefix("RUN_STATE_")


def _some(offsets: Iterable[int]) -> str:
    ordered = sorted(offsets)
    return ", ".join(map(str, ordered[:10])) + (f" and {len(ordered) - 10} more" if len(ordered) > 10 else "")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]} … {text[-100:]}"
