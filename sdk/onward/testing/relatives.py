"""The checker, between runs: does what a run left behind in its children, and in those it goes on as, fit together?

found = testing.check_relatives([testing.Relative(events, record), testing.Relative(childs_events, childs_record)])
assert not found, *found
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from onward.log import ACCEPTED, ENDED, RESERVED
from onward.testing.checking import Finding, Invariant
from onward.v1.event_pb2 import ChildStarted, Event
from onward.v1.run_pb2 import Run, RunState
from onward.views import TERMINAL

_INHERITED = ("workflow", "parent_run_id", "parent_component_id", "detached", "depth", "priority", "fairness_key")
"""What a run that another one goes on as has of that."""


@dataclass(frozen=True)
class Relative:
    """One run of a family, as it was left.

    Attributes:
        events: Its whole log, raw.
        record: The run as GetRun returns it.
    """

    events: Sequence[Event]
    record: Run


def check_relatives(relatives: Iterable[Relative], *, marks: str | None = None) -> list[Finding]:
    """Return everything between runs that should not be; nothing where all is well.

    To be asked when all of them have come to rest.

    Args:
        relatives: A run, all that it and its children started, and all that any of them goes on as.
        marks: As in `check`: what a child is given, its parent had.
    """
    checks = _Checks({one.record.run_id: one for one in relatives}, None if marks is None else re.compile(marks))
    for one in checks.runs.values():
        checks.ended(one)
        checks.link(one)
        if not one.record.forked_from_run_id:  # The log of a fork begins with the children of its source.
            checks.children(one)
            checks.told(one)
    checks.parents()
    return checks.found


class _Checks:
    def __init__(self, runs: Mapping[str, Relative], marks: re.Pattern[str] | None) -> None:
        self.runs = runs
        self.found: list[Finding] = []
        self._marks = marks
        self._started: dict[str, tuple[str, str, ChildStarted]] = {}
        """By the child: who started it, where, and what the log says of it."""

    def say(self, run_id: str, invariant: Invariant, message: str) -> None:
        self.found.append(Finding(invariant, message, run_id))

    # Children

    def children(self, parent: Relative) -> None:
        """A call starts one child in each of its tries, and one that was accepted is there."""
        run_id = parent.record.run_id
        above: dict[str, str] = {}
        retries: dict[str, int] = {}
        times: dict[str, int] = {}
        for event in parent.events:
            match event.WhichOneof("kind"):
                case "component_started":
                    above[event.component_id] = event.component_started.parent_id
                case "component_retrying":
                    retries[event.component_id] = retries.get(event.component_id, 0) + 1
                case "child_started":
                    child = event.child_started
                    times[event.component_id] = times.get(event.component_id, 0) + 1
                    if child.run_id in self._started:
                        self.say(run_id, "done once", f"it starts {child.run_id} at {event.offset}, once more")
                    self._started[child.run_id] = (run_id, event.component_id, child)
                    self._given(parent, event)
        for component_id, count in times.items():
            tries = 1 + sum(retries.get(one, 0) for one in _path(component_id, above))
            if count > tries:
                what = f"{component_id} started {count} children in {tries} tries"
                self.say(run_id, "done once", what)
        for child_id in _accepted(parent.events):
            if child_id not in self.runs:
                self.say(run_id, "accepted is kept", f"its child {child_id} was accepted, and is not there")

    def _given(self, parent: Relative, event: Event) -> None:
        child = self.runs.get(event.child_started.run_id)
        if self._marks is None or child is None:
            return
        before = b"".join(one.SerializeToString() for one in parent.events[: event.offset - 1])
        known = {*self._found(before), *self._found(parent.record.input.data)}
        for mark in self._found(child.record.input.data):
            if mark not in known:
                what = f"it was given {mark}, which its parent's log does not hold before {event.offset}"
                self.say(child.record.run_id, "acknowledged before used", what)

    def _found(self, data: bytes) -> Iterator[str]:
        assert self._marks is not None
        yield from (found.group() for found in self._marks.finditer(data.decode(errors="replace")))

    def parents(self) -> None:
        """Who says that it is a child was started, and is what it was started as."""
        for one in self.runs.values():
            record = one.record
            if record.parent_run_id not in self.runs or record.continued_from_run_id:
                continue
            parent_id, component_id, started = self._started.get(record.run_id, ("", "", ChildStarted()))
            if parent_id != record.parent_run_id:
                what = f"it says that {record.parent_run_id} started it, and the log of that says nothing"
                self.say(record.run_id, "done once", what)
                continue
            said = (record.parent_component_id, record.workflow, record.detached, record.depth)
            meant = (component_id, started.workflow, started.detached, self.runs[parent_id].record.depth + 1)
            if said != meant:
                self.say(record.run_id, "accepted is kept", f"it was started as {meant}, and is {said}")

    def ended(self, one: Relative) -> None:
        """A run's end is the end of its children, but of those that are detached."""
        record = one.record
        parent = self.runs.get(record.parent_run_id)
        if parent is None or record.detached or record.state in TERMINAL:
            return
        if parent.record.state in TERMINAL:
            what = f"it is {_name(record.state)}, and its parent {parent.record.run_id} has ended"
            self.say(record.run_id, "one end", what)

    def told(self, parent: Relative) -> None:
        """What a run is told of its children's ends is how they ended, and is told once."""
        for event, name, told in _facts(parent.events, ENDED):
            run_id = parent.record.run_id
            if told is None:
                self.say(run_id, "one end", f"what it is told at {event.offset} is no run")
                continue
            last = self.runs.get(told.run_id)
            if last is None or (last.record.first_run_id or told.run_id) != name:
                self.say(run_id, "one end", f"it is told at {event.offset} of {told.run_id}, which is not its child")
                continue
            mine = (told.state, told.output, told.error)
            theirs = (last.record.state, last.record.output, last.record.error)
            if mine != theirs:
                self.say(run_id, "one end", f"it is told at {event.offset} that {told.run_id} ended otherwise")
        for kind in (ACCEPTED, ENDED):
            names = [name for _, name, _ in _facts(parent.events, kind)]
            for name in {name for name in names if names.count(name) > 1}:
                self.say(parent.record.run_id, "done once", f"it is told more than once of {kind}{name}")

    # Chains

    def link(self, one: Relative) -> None:
        """A run goes on as one other that is what it was, and that gets every signal which nobody has taken."""
        record, run_id = one.record, one.record.run_id
        following = [
            other.record.run_id for other in self.runs.values() if other.record.continued_from_run_id == run_id
        ]
        named = one.events[-1].run_state_changed.continued_as_run_id if one.events else ""
        if record.continued_as_run_id != named:
            what = f"its log says that it goes on as {named!r}, its record {record.continued_as_run_id!r}"
            self.say(run_id, "one end", what)
        if following != [named] * bool(named):
            kept = named in following or not named
            what = f"it goes on as {named or 'nobody'}, and there is {', '.join(following) or 'none'}"
            self.say(run_id, "done once" if kept else "accepted is kept", what)
        if named not in following:
            return
        successor = self.runs[named]
        meant = [getattr(record, name) for name in _INHERITED]
        meant += [dict(record.labels), record.first_run_id or run_id]
        now = [getattr(successor.record, name) for name in _INHERITED]
        now += [dict(successor.record.labels), successor.record.first_run_id]
        if meant != now:
            self.say(named, "accepted is kept", f"it goes on for {run_id} as {now} and not as {meant}")
        self._signals(one, successor)

    def _signals(self, one: Relative, successor: Relative) -> None:
        run_id, named = one.record.run_id, successor.record.run_id
        there = [
            (event.signal_received.request_id, event.signal_received.name)
            for event in successor.events
            if event.HasField("signal_received")
        ]
        left = [
            (event.signal_received.request_id or f"{run_id}.{event.offset}", event.signal_received.name)
            for event in untaken(one.events)
        ]
        for request_id, name in left:
            if not (count := there.count((request_id, name))):
                self.say(named, "accepted is kept", f"signal {name} ({request_id}) that {run_id} had is lost")
            elif count > 1:
                self.say(named, "done once", f"signal {name} ({request_id}) came {count} times")
        for name in {name for _, name in left}:
            before = [request_id for request_id, each in left if each == name]
            after = [request_id for request_id, each in there if each == name]
            if after[: len(before)] != before and set(before) <= set(after):
                what = f"signals {name} came as {after}, and {run_id} had {before} before"
                self.say(named, "accepted is kept", what)


def _path(component_id: str, above: Mapping[str, str]) -> Iterator[str]:
    while component_id:
        yield component_id
        component_id = above.get(component_id, "")
    yield ""


def _facts(events: Iterable[Event], kind: str) -> Iterator[tuple[Event, str, Run | None]]:
    """Yield the suite's own signals of a kind, each with the run that it is about and what it says of that."""
    for event in events:
        signal = event.signal_received
        if signal.name.startswith(kind):
            try:
                said = Run.FromString(signal.value.data)
            except DecodeError:
                said = None
            yield event, signal.name.removeprefix(kind), said


def _accepted(events: Iterable[Event]) -> Iterator[str]:
    for _, name, said in _facts(events, ACCEPTED):
        if said is not None and not said.HasField("error"):
            yield said.run_id or name


def untaken(events: Sequence[Event]) -> list[Event]:
    """Return the signals of a log that no wait took whose result counts, without the suite's own."""
    above: dict[str, str] = {}
    taken: dict[int, list[str]] = {}
    for event in events:
        match event.WhichOneof("kind"):
            case "component_started":
                above[event.component_id] = event.component_started.parent_id
            case "component_finished" if event.component_finished.signal_offset:
                taken[event.component_finished.signal_offset] = list(_path(event.component_id, above))
            case "component_retrying":
                taken = {offset: path for offset, path in taken.items() if event.component_id not in path}
    return [
        event
        for event in events
        if event.HasField("signal_received")
        and event.offset not in taken
        and not event.signal_received.name.startswith(RESERVED)
    ]


def _name(state: RunState.ValueType) -> str:
    return RunState.Name(state).removeprefix("RUN_STATE_")
