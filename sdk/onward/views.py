"""From a run's log to what a user sees.

The log only grows; what a failed try or a lost attempt had shown is voided by Rollback events. A `View` takes events in
order and always shows what the run would show had nothing gone wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp

from onward.payload import decode
from onward.published import Publications
from onward.v1.event_pb2 import (
    CHANNEL_ITEM,
    CHANNEL_REASONING,
    CHANNEL_TEXT,
    CHANNEL_TOOL,
    CHANNEL_UNSPECIFIED,
    OUTCOME_CANCELLED,
    OUTCOME_ERROR,
    OUTCOME_OK,
    Channel,
    Event,
    WaitKind,
)
from onward.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_CANCELLING,
    RUN_STATE_FAILED,
    RUN_STATE_RUNNING,
    RUN_STATE_SUCCEEDED,
    RUN_STATE_UNSPECIFIED,
    RUN_STATE_WAITING,
    RunError,
    RunState,
)

TERMINAL = frozenset({RUN_STATE_SUCCEEDED, RUN_STATE_FAILED, RUN_STATE_CANCELLED})
"""The states in which nothing follows any more."""

_State = Literal["running", "ok", "error", "cancelled"]
_OUTCOMES: dict[int, _State] = {OUTCOME_OK: "ok", OUTCOME_ERROR: "error", OUTCOME_CANCELLED: "cancelled"}


@dataclass(frozen=True, slots=True)
class Status:
    """A line of progress.

    Attributes:
        offset: Its place in the log.
        component_id: The instance it belongs to; empty for the run itself.
        message: One line.
        done: Units finished; None where it counts nothing.
        total: Units in all; None when unknown.
        time: When it was written.
    """

    offset: int
    component_id: str
    message: str
    done: int | None
    total: int | None
    time: datetime


@dataclass(slots=True)
class Part:
    """One part of a component's output: a text, a reasoning trace, a tool call, items.

    Attributes:
        number: Its place among the parts of its component, from 0.
        channel: What it is.
        texts: The pieces of its text.
        values: Its items, where it is not text.
    """

    number: int
    channel: Channel.ValueType
    texts: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its text so far."""
        return "".join(self.texts)


@dataclass(slots=True)
class Component:
    """One instance of a component, as far as it has come.

    Attributes:
        id: Names it in the run; empty for the workflow's own body.
        name: The component's registered name.
        parent_id: The instance that called it; empty for the workflow's own body.
        state: How it stands. Still "running" between two tries.
        tries: The try that runs, or ran last, from 1; 0 before it began.
        retrying: Whether a try failed and the next one has not begun.
        fell_back: Whether its fallback answers, since its tries have failed.
        error: Why it failed; while it is tried again or its fallback answers, why the last try did.
        started_time: When it began, the last time that it did.
        finished_time: When it ended.
        due_time: When its timer fires or its wait gives up.
        input: What it was called with as readers may see it.
        output: What it returned as readers may see it.
        cached: Whether the result came from the cache.
        statuses: Its lines of progress, oldest first.
        parts: Its output by part number.
    """

    id: str
    name: str = ""
    parent_id: str = ""
    state: _State = "running"
    tries: int = 0
    retrying: bool = False
    fell_back: bool = False
    error: RunError | None = None
    started_time: datetime | None = None
    finished_time: datetime | None = None
    due_time: datetime | None = None
    input: Any = None
    output: Any = None
    cached: bool = False
    statuses: list[Status] = field(default_factory=list)
    parts: dict[int, Part] = field(default_factory=dict)

    @property
    def status(self) -> Status | None:
        """Its current line of progress."""
        return self.statuses[-1] if self.statuses else None

    @property
    def text(self) -> str:
        """Its answer text, all parts in order."""
        return "".join(part.text for part in self._of(CHANNEL_TEXT))

    @property
    def reasoning(self) -> str:
        """Its model's reasoning, all parts in order."""
        return "".join(part.text for part in self._of(CHANNEL_REASONING))

    @property
    def items(self) -> list[Any]:
        """What it yielded that is not text, in order."""
        return [value for part in self._of(CHANNEL_ITEM) for value in part.values]

    @property
    def tools(self) -> list[Any]:
        """Its tool calls and their results, in order."""
        return [value for part in self._of(CHANNEL_TOOL) for value in part.values]

    def _of(self, channel: Channel.ValueType) -> list[Part]:
        return [part for _, part in sorted(self.parts.items()) if part.channel == channel]


@dataclass(frozen=True, slots=True)
class InputRequest:
    """A question that the run waits to have answered with `Client.signal`.

    Attributes:
        offset: Its place in the log.
        component_id: The instance that asks.
        name: The signal to send.
        prompt: For the person who answers.
        schema: JSON Schema that the answer must satisfy; None means anything.
        expire_time: When the run stops waiting; None means never.
    """

    offset: int
    component_id: str
    name: str
    prompt: str
    schema: Any
    expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a parked run waits for.

    Attributes:
        reason: In words.
        kinds: Each of "TIMER", "SIGNAL", "CHILD", "BUDGET", "PROVIDER" at most once.
        signals: Names of the signals that wake it.
        wake_time: The latest time at which it goes on; None when no timer wakes it.
    """

    reason: str
    kinds: tuple[str, ...]
    signals: tuple[str, ...]
    wake_time: datetime | None


@dataclass(frozen=True, slots=True)
class ChildRun:
    """A run that this run started.

    Attributes:
        run_id: The child.
        workflow: What it runs.
        component_id: The instance that started it.
        detached: Whether it outlives this run's cancellation.
    """

    run_id: str
    workflow: str
    component_id: str
    detached: bool


@dataclass(slots=True)
class _Trail:
    """What one instance has shown and a Rollback can void. Events come in order: what is void ends each list."""

    pieces: list[tuple[int, Part, list[Any]]] = field(default_factory=list)
    """Offset, part, and which of the part's lists the piece went into."""
    published: list[tuple[int, str]] = field(default_factory=list)
    """Offset and name."""


class View:
    """What a user sees of a run. Feed it the run's events in order; it can be read after any of them.

    Everything it returns is alive: copy what you keep, change nothing. Two views are equal when they show the same.

    Attributes:
        offset: The last event taken in; 0 before the first.
        state: RunState without its prefix, e.g. "RUNNING"; "UNSPECIFIED" before the first event.
        done: Whether that state is terminal: nothing follows.
        attempt: The execution in force; 0 before the first.
        deployment: The build that runs it.
        body: The workflow's own body: its statuses, and the run's own text, items, reasoning and tools.
        components: All other instances by id, in the order they began.
        output: What the run returned, decoded; a `Blob` where it is long; None unless it SUCCEEDED.
        continued_as: The run that it goes on as, where it does.
        error: Why it is FAILED or PAUSED.
        reason: Why it is in this state, in words.
        waiting: What it waits for while it is parked.
        child_runs: Runs that it started.
    """

    def __init__(self) -> None:
        self.offset = 0
        self.state = _state_name(RUN_STATE_UNSPECIFIED)
        self.done = False
        self.attempt = 0
        self.deployment = ""
        self.body = Component("")
        self.components: dict[str, Component] = {}
        self.output: Any = None
        self.continued_as = ""
        self.error: RunError | None = None
        self.reason = ""
        self.waiting: Waiting | None = None
        self.child_runs: list[ChildRun] = []
        self._children: defaultdict[str, list[str]] = defaultdict(list)
        self._requests: dict[int, InputRequest] = {}
        self._names: dict[str, Publications] = {}
        self._trails: defaultdict[str, _Trail] = defaultdict(_Trail)

    def apply(self, event: Event) -> None:
        """Take in the next event.

        One at an offset that was taken in already is skipped, and so is a kind newer than this program.
        """
        if event.offset <= self.offset:
            return
        self.offset = event.offset
        if (kind := event.WhichOneof("kind")) is not None:
            getattr(self, f"_on_{kind}")(event)

    @property
    def text(self) -> str:
        """The run's own answer text."""
        return self.body.text

    @property
    def status(self) -> Status | None:
        """The newest line of progress in the whole run."""
        newest = [component.statuses[-1] for component in self._instances() if component.statuses]
        return max(newest, key=_offset, default=None)

    @property
    def statuses(self) -> list[Status]:
        """All lines of progress of the run, oldest first."""
        shown = (status for component in self._instances() for status in component.statuses)
        return sorted(shown, key=_offset)

    @property
    def events(self) -> dict[str, list[Any]]:
        """Values of the published events by name, oldest first."""
        return {name: publications.events for name, publications in self._names.items() if publications.events}

    @property
    def states(self) -> dict[str, Any]:
        """Published states by name."""
        documents = {name: publications.document() for name, publications in self._names.items()}
        return {name: document.value for name, document in documents.items() if document is not None}

    @property
    def requests(self) -> list[InputRequest]:
        """Questions that nobody has answered yet, oldest first."""
        return list(self._requests.values())

    def children(self, component_id: str = "") -> list[Component]:
        """The instances that an instance called, or by default the workflow's own body, in the order they began."""
        return [self.components[child] for child in self._children.get(component_id, ())]

    def __eq__(self, other: object) -> bool:
        return self._shown() == other._shown() if isinstance(other, View) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"<View {self.state} offset={self.offset} attempt={self.attempt} components={len(self.components)}>"

    def _shown(self) -> tuple[Any, ...]:
        where = (self.offset, self.state, self.attempt, self.deployment)
        why = (self.output, self.continued_as, self.error, self.reason, self.waiting, self.requests)
        return (*where, *why, self.body, self.components, self.child_runs, self.events, self.states)

    def _instances(self) -> Iterator[Component]:
        yield self.body
        yield from self.components.values()

    def _instance(self, component_id: str) -> Component:
        """The instance, also where it speaks before its start was read: a log may be read from its middle."""
        if not component_id:
            return self.body
        component = self.components.get(component_id)
        if component is None:
            component = self.components[component_id] = Component(component_id)
        return component

    def _on_run_state_changed(self, event: Event) -> None:
        change = event.run_state_changed
        self.state = _state_name(change.state)
        self.reason = change.reason
        self.output = decode(change.output)
        self.continued_as = change.continued_as_run_id
        self.error = _copy(change.error) if change.HasField("error") else None
        self.waiting = None
        self.done = change.state in TERMINAL
        if self.done:
            self._requests.clear()
            # Whoever had no chance to say that it ended does not run any more.
            for component in self.components.values():
                if component.state == "running":
                    component.state = "cancelled"

    def _on_attempt_started(self, event: Event) -> None:
        self.attempt = event.attempt
        self.deployment = event.attempt_started.deployment
        self.waiting = None
        # A run that has to clean up after its cancellation needs an attempt too.
        if self.state != _state_name(RUN_STATE_CANCELLING):
            self.state = _state_name(RUN_STATE_RUNNING)
            self.error = None
            self.reason = ""

    def _on_component_started(self, event: Event) -> None:
        started = event.component_started
        component = self._instance(event.component_id)
        if component.started_time is None and component is not self.body:
            self._children[started.parent_id].append(component.id)
        component.name = started.name
        component.parent_id = started.parent_id
        # Where a lost attempt had left it running, or between two tries, its tries are counted on.
        if not component.tries or (component.state != "running" and not component.retrying):
            component.tries = 1
            component.fell_back = False
            component.error = None
        component.state = "running"
        component.retrying = False
        component.started_time = _time(event.create_time)
        component.finished_time = None
        component.due_time = _time(started.due_time) if started.HasField("due_time") else None
        component.input = decode(started.input)
        component.output = None
        component.cached = False
        self._stop_asking(event.component_id)

    def _on_component_retrying(self, event: Event) -> None:
        component = self._instance(event.component_id)
        retrying = event.component_retrying
        component.fell_back = retrying.fallback
        component.tries = retrying.try_number + (not retrying.fallback)
        component.error = _copy(retrying.error)
        component.retrying = not retrying.fallback

    def _on_component_finished(self, event: Event) -> None:
        finished = event.component_finished
        component = self._instance(event.component_id)
        component.state = _OUTCOMES.get(finished.outcome, "error")
        component.retrying = False
        if finished.HasField("error"):
            component.error = _copy(finished.error)
        elif not component.fell_back:
            component.error = None
        component.output = decode(finished.output)
        component.cached = finished.cached
        component.finished_time = _time(event.create_time)
        self._stop_asking(event.component_id)

    def _on_output_delta(self, event: Event) -> None:
        delta = event.output_delta
        parts = self._instance(event.component_id).parts
        part = parts.get(delta.part)
        if part is None:
            channel = CHANNEL_TEXT if delta.channel == CHANNEL_UNSPECIFIED else delta.channel
            part = parts[delta.part] = Part(delta.part, channel)
        pieces = self._trails[event.component_id].pieces
        # An empty piece too is one: it begins its part.
        if delta.HasField("value"):
            part.values.append(decode(delta.value))
            pieces.append((event.offset, part, part.values))
        if delta.text or not delta.HasField("value"):
            part.texts.append(delta.text)
            pieces.append((event.offset, part, part.texts))

    def _on_status_updated(self, event: Event) -> None:
        updated = event.status_updated
        status = Status(
            offset=event.offset,
            component_id=event.component_id,
            message=updated.message,
            done=updated.done if updated.HasField("done") else None,
            total=updated.total if updated.HasField("total") else None,
            time=_time(event.create_time),
        )
        self._instance(event.component_id).statuses.append(status)

    def _on_published(self, event: Event) -> None:
        name = event.published.name
        publications = self._names.get(name)
        if publications is None:
            publications = self._names[name] = Publications()
        publications.add(event.offset, event.published)
        self._trails[event.component_id].published.append((event.offset, name))

    def _on_rollback(self, event: Event) -> None:
        for component_id in event.rollback.component_ids:
            self._void(component_id, event.rollback.after_offset)

    def _void(self, component_id: str, after_offset: int) -> None:
        trail = self._trails[component_id]
        while trail.published and trail.published[-1][0] > after_offset:
            offset, name = trail.published.pop()
            self._names[name].drop(offset)
            if not self._names[name]:
                del self._names[name]
        component = self.body if not component_id else self.components.get(component_id)
        if component is None:
            return
        while component.statuses and component.statuses[-1].offset > after_offset:
            component.statuses.pop()
        while trail.pieces and trail.pieces[-1][0] > after_offset:
            _, part, pieces = trail.pieces.pop()
            pieces.pop()
            if not part.texts and not part.values:
                del component.parts[part.number]
        if component == Component(component_id) and component is not self.body:
            # Nothing is known of it but what was void.
            del self.components[component_id]

    def _on_input_requested(self, event: Event) -> None:
        requested = event.input_requested
        self._requests[event.offset] = InputRequest(
            offset=event.offset,
            component_id=event.component_id,
            name=requested.name,
            prompt=requested.prompt,
            schema=decode(requested.schema),
            expire_time=_time(requested.expire_time) if requested.HasField("expire_time") else None,
        )

    def _on_signal_received(self, event: Event) -> None:
        # Signals of one name go to the waits of that name in the order they began.
        name = event.signal_received.name
        oldest = next((offset for offset, request in self._requests.items() if request.name == name), None)
        if oldest is not None:
            del self._requests[oldest]

    def _on_run_waiting(self, event: Event) -> None:
        waiting = event.run_waiting
        self.state = _state_name(RUN_STATE_WAITING)
        self.waiting = Waiting(
            reason=waiting.reason,
            kinds=tuple(_name(WaitKind, kind, "WAIT_KIND_") for kind in waiting.kinds),
            signals=tuple(waiting.signals),
            wake_time=_time(waiting.wake_time) if waiting.HasField("wake_time") else None,
        )

    def _on_child_started(self, event: Event) -> None:
        child = event.child_started
        self.child_runs.append(ChildRun(child.run_id, child.workflow, event.component_id, child.detached))

    def _stop_asking(self, component_id: str) -> None:
        """An instance that ended, or began anew, does not wait for an answer to what it asked before."""
        for request in self.requests:
            if request.component_id == component_id:
                del self._requests[request.offset]


def fold(events: Iterable[Event]) -> View:
    """Return what a user sees after these events of one run, in order. RAW and SETTLED events give the same."""
    view = View()
    for event in events:
        view.apply(event)
    return view


def _name(enum: Any, value: int, prefix: str) -> str:
    """An enum value without its prefix; its number where it is newer than this program."""
    return str(enum.Name(value)).removeprefix(prefix) if value in enum.values() else str(value)


def _state_name(state: RunState.ValueType) -> str:
    return _name(RunState, state, "RUN_STATE_")


def _offset(status: Status) -> int:
    return status.offset


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


def _copy(error: RunError) -> RunError:
    # A part of a message keeps the whole batch that it came in alive.
    copied = RunError()
    copied.CopyFrom(error)
    return copied
