"""A run as plain lines, for log files and pipes: no control codes, nothing is taken back silently."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from onward.errors import RequestError
from onward.payload import decode
from onward.v1.event_pb2 import (
    CHANGE_PATCH,
    CHANGE_SET,
    CHANNEL_ITEM,
    CHANNEL_REASONING,
    CHANNEL_TEXT,
    CHANNEL_TOOL,
    CHANNEL_UNSPECIFIED,
    Channel,
    ComponentFinished,
    Event,
    RollbackCause,
    RunStateChanged,
)
from onward.v1.run_pb2 import Run
from onward.views import Component, View
from onward_cli.wording import (
    Labels,
    compact,
    duration,
    error_line,
    line,
    local,
    printable,
    question,
    status_line,
    took,
)

_CHANNELS = {
    CHANNEL_UNSPECIFIED: "",
    CHANNEL_TEXT: "",
    CHANNEL_REASONING: " reasoning",
    CHANNEL_TOOL: " tool",
    CHANNEL_ITEM: " item",
}
_CAUSES = {
    "RETRY": "its try failed",
    "ATTEMPT_LOST": "its executor was lost",
    "FALLBACK": "another provider takes over",
}


@dataclass(slots=True)
class _Written:
    """How much of one part's text was written: whole lines only."""

    chars: int = 0
    pending: list[str] = field(default_factory=list)
    """Pieces of the line that has not ended."""


class Lines:
    """Shows a run as lines, each when it is whole.

    What a later event voids has been written already: a line says so, and what replaces it follows.

    Args:
        write: Takes a line.
        run: The run when it was first seen.
        after: What happened up to this offset is not written.
        warn: Takes a line that is not about the run.
    """

    def __init__(
        self, write: Callable[[str], None], run: Run, *, after: int = 0, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self._write = write
        self._warn = warn
        self._run = run
        self._after = after
        self._labels = Labels()
        self._written: defaultdict[str, dict[int, _Written]] = defaultdict(dict)
        self._muted = False

    def take(self, event: Event, view: View) -> None:
        """Write what an event tells; `view` is what is to be seen after it."""
        self._muted = event.offset <= self._after
        match event.WhichOneof("kind"):
            case "run_state_changed":
                self._state(event.run_state_changed, view)
            case "attempt_started":
                started = event.attempt_started
                again = f", attempt {event.attempt}" if event.attempt > 1 else ""
                self._say(f"run {self._run.run_id} RUNNING on {line(started.executor_id)}{again}")
            case "component_started":
                component = self._component(event, view)
                due = f" until {local(component.due_time)}" if component.due_time else ""
                self._say(f"{self._prefix(component)} started{due}")
            case "component_retrying":
                # A line that has not ended is not written: it is about to be void.
                retrying = event.component_retrying
                follows = f"the next one in {duration(retrying.delay.ToNanoseconds() / 1e9)}"
                if retrying.fallback:
                    follows = "its fallback answers"
                self._say(
                    f"{self._prefix(self._component(event, view))} try {retrying.try_number} failed, {follows}: "
                    f"{error_line(retrying.error)}"
                )
            case "component_finished":
                self._finished(event, view)
            case "output_delta":
                self._delta(event, view)
            case "status_updated":
                component = self._component(event, view)
                if component.status is not None:
                    self._say(f"{self._prefix(component)} status: {status_line(component.status)}")
            case "published":
                change = {CHANGE_SET: " =", CHANGE_PATCH: " changed:"}.get(event.published.change, ":")
                value = compact(decode(event.published.value))
                prefix = self._prefix(self._component(event, view))
                self._say(f"{prefix} published {line(event.published.name)}{change} {value}")
            case "rollback":
                for component_id in event.rollback.component_ids:
                    self._take_back(component_id, view, event.rollback.cause)
            case "input_requested":
                asked = next((each for each in view.requests if each.offset == event.offset), None)
                if asked is not None:
                    answer = f"onward signal {self._run.run_id} {line(asked.name)} JSON"
                    self._say(f"run {self._run.run_id} {question(asked)}; answer with: {answer}")
            case "signal_received":
                received = event.signal_received
                self._say(f"signal {line(received.name)}: {compact(decode(received.value))}")
            case "run_waiting":
                self._say(f"run {self._run.run_id} WAITING: {line(event.run_waiting.reason)}")
            case "child_started":
                child = event.child_started
                prefix = self._prefix(self._component(event, view))
                self._say(f"{prefix} started run {child.run_id} of {line(child.workflow)}")

    def connection(self, cut: RequestError | None) -> None:
        """Tell that the connection was lost; that it is there again is told by what comes."""
        if cut is not None:
            self._warn(f"connection lost, resuming: {line(str(cut))}")

    def waits(self, what: str) -> None:
        """Write what the run waits for; that it does no more is told by what comes."""
        if what:
            self._write(f"run {self._run.run_id} waits for {line(what)}")

    def paint(self) -> None:
        """Do nothing: every line was written when it was whole."""

    def close(self) -> None:
        """Do nothing: a line that never ended is written when the run ends."""

    def _say(self, text: str) -> None:
        if not self._muted:
            self._write(text)

    def _component(self, event: Event, view: View) -> Component:
        # Not known any more only where the event voids it.
        return view.components.get(event.component_id, view.body) if event.component_id else view.body

    def _prefix(self, component: Component, channel: Channel.ValueType = CHANNEL_TEXT) -> str:
        label = self._labels.of(component) if component.id else line(self._run.workflow)
        return f"[{label}{_CHANNELS.get(channel, '')}]"

    def _state(self, change: RunStateChanged, view: View) -> None:
        if view.done:
            for component_id in list(self._written):
                self._flush(component_id, view)
        label = ""
        if view.error is not None and view.error.component_id in view.components:
            label = self._labels.of(view.components[view.error.component_id])
        why = [line(change.reason)] if change.reason else []
        why += [error_line(view.error, label)] if view.error is not None else []
        self._say(f"run {self._run.run_id} {view.state}" + (f": {'; '.join(why)}" if why else ""))

    def _finished(self, event: Event, view: View) -> None:
        self._flush(event.component_id, view)
        component = self._component(event, view)
        prefix = self._prefix(component)
        match component.state:
            case "ok":
                self._say(f"{prefix} finished in {took(component)}{_result(component, event.component_finished)}")
            case "error" if component.error is not None:
                self._say(f"{prefix} failed after {took(component)}: {error_line(component.error)}")
            case _:
                self._say(f"{prefix} stopped after {took(component)}")

    def _delta(self, event: Event, view: View) -> None:
        delta = event.output_delta
        component = self._component(event, view)
        if delta.HasField("value"):
            self._say(f"{self._prefix(component, delta.channel)} {compact(decode(delta.value))}")
        if not delta.text:
            return
        written = self._written[event.component_id].setdefault(delta.part, _Written())
        before, newline, rest = delta.text.rpartition("\n")
        if not newline:
            written.pending.append(rest)
            return
        self._write_text(component, delta.part, written, before + newline)
        written.pending = [rest] if rest else []

    def _write_text(self, component: Component, part: int, written: _Written, text: str) -> None:
        text = "".join([*written.pending, text])
        written.chars += len(text)
        written.pending = []
        prefix = self._prefix(component, component.parts[part].channel)
        for each in printable(text).removesuffix("\n").split("\n"):
            self._say(f"{prefix} {each}".rstrip())

    def _flush(self, component_id: str, view: View) -> None:
        """Write lines that have not ended: nothing more comes."""
        component = view.components.get(component_id, view.body)
        for part, written in self._written[component_id].items():
            if written.pending:
                self._write_text(component, part, written, "")

    def _take_back(self, component_id: str, view: View, cause: RollbackCause.ValueType) -> None:
        """Say so where lines were written that are void, and write again what is left of the line that was cut."""
        component = view.components.get(component_id) if component_id else view.body
        void = False
        for part, written in self._written.pop(component_id, {}).items():
            left = component.parts[part].text if component is not None and part in component.parts else ""
            void = void or written.chars > len(left)
            if not left:
                continue
            chars = min(written.chars, left.rfind("\n") + 1)
            self._written[component_id][part] = _Written(chars, [left[chars:]])
        if void and component is not None:
            why = _CAUSES.get(RollbackCause.Name(cause).removeprefix("ROLLBACK_CAUSE_"), "it is made anew")
            self._say(f"{self._prefix(component)} what it wrote is void: {why}")


def _result(component: Component, finished: ComponentFinished) -> str:
    cached = ", from the cache" if finished.cached else ""
    if component.text or component.output is None:
        return cached
    return f"{cached}: {compact(component.output)}"
