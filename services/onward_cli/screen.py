"""A run on a terminal: what is finished scrolls by in order, what is under way stays below it, live."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from onward.errors import RequestError
from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import Run
from onward.views import Component, Status, View
from onward_cli.wording import (
    STATE_STYLES,
    Labels,
    compact,
    counted,
    cropped,
    duration,
    error_line,
    line,
    local,
    printable,
    question,
    ran_s,
    state_of,
    told,
    took,
)

HELD_MAX = 20
"""How many finished components wait for an earlier one that still writes, before they are shown out of order."""

TAIL_LINES_MAX = 8
"""Lines of text that one of several components may show while it writes."""

TAIL_CHARS_MAX = 8_192
"""Text that is looked at for those lines."""

LIST_LINES_MAX = 4
"""Lines that finished components, published states and questions may each take from what is under way."""

BAR_COLUMNS = 24
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
MARKS = {"ok": ("✓", "green"), "error": ("✗", "red"), "cancelled": ("■", "yellow"), "running": ("●", "cyan")}


class Screen:
    """Shows a run live. Feed it the run's events, and ask it to paint whenever time has passed.

    What an instance showed is written for good once it is finished, in the order in which instances began. Should it be
    void later, because a component around it is tried again, that is said below it.

    Args:
        console: The terminal.
        run: The run when it was first seen.
        after: What was finished up to this offset is not shown again.
        clock: The time.
    """

    def __init__(
        self,
        console: Console,
        run: Run,
        *,
        after: int = 0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._console = console
        self._run = run
        self._after = after
        self._clock = clock
        self._view = View()
        self._cut = False
        self._waits = ""
        self._labels = Labels()
        self._written: dict[str, datetime | None] = {}
        """Instances whose block was written, and when they had finished."""
        # Painted by us alone: rich's own thread would read a view that changes meanwhile.
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            vertical_overflow="crop",
            get_renderable=lambda: Group(*self.frame()),
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def take(self, event: Event, view: View) -> None:
        """Take note of an event and of what is to be seen after it. It is painted later."""
        self._view = view
        if event.component_id in view.components:
            self._labels.of(view.components[event.component_id])
        if event.offset <= self._after and event.HasField("component_finished"):
            self._written[event.component_id] = view.components[event.component_id].finished_time

    def connection(self, cut: RequestError | None) -> None:
        """Say that the connection was lost for as long as it is. It is painted later."""
        self._cut = cut is not None

    def waits(self, what: str) -> None:
        """Say what the run waits for, for as long as it does. It is painted later."""
        self._waits = what

    def paint(self) -> None:
        """Bring the terminal up to date."""
        self._write_finished(everything=False)
        self._live.refresh()

    def close(self) -> None:
        """Write what has not been written yet, and take the live part away."""
        self._write_finished(everything=self._view.done)
        self._live.stop()

    # --- What is finished --------------------------------------------------------------------------------------------

    def _write_finished(self, *, everything: bool) -> None:
        for void in self._void():
            self._console.print(Text(f"↺ {void} above is void: it runs again", style="yellow"))
        finished = self._finished(everything=everything)
        self._written.update({component.id: component.finished_time for component in finished})
        if finished:
            width = self._console.width
            self._console.print(*(block(each, self._labels.of(each), width) for each in finished), sep="\n")

    def _void(self) -> Iterator[str]:
        """Labels of instances whose written block shows what does not hold any more."""
        for written, finished in list(self._written.items()):
            component = self._view.components.get(written)
            if component is None or component.state == "running" or component.finished_time != finished:
                del self._written[written]
                yield self._labels.of(component) if component is not None else "something"

    def _finished(self, *, everything: bool) -> list[Component]:
        """The instances whose block can be written now, in the order they began."""
        ready: list[Component] = []
        held: list[Component] = []
        blocked = False
        for component in self._view.components.values():
            if component.state == "running":
                # Whoever called others or waits for a time or a signal may take as long as the run.
                blocked = blocked or not (component.due_time or self._view.children(component.id))
            elif component.id not in self._written:
                (held if blocked else ready).append(component)
        if everything or len(held) > HELD_MAX:
            return ready + held
        return ready

    # --- What is under way -------------------------------------------------------------------------------------------

    def frame(self) -> list[Text]:
        """Return the live part: lines that fit the terminal in width and number."""
        width, height = self._console.size
        view = self._view
        # One line stays free: the terminal scrolls when the last one is filled.
        room = max(height - 2, 3)
        top = [self._headline()]
        if view.body.status is not None:
            top.append(status_text(view.body.status))
        bottom = [*self._questions(), *self._states(width)]
        running, finished = self._under_way()
        rows = self._rows(running, room=room - len(top) - len(bottom) - 1, width=width)
        left = room - len(top) - len(rows) - len(bottom) - 1
        rows += self._held(finished, left)
        hint = Text("connection lost, resuming…  " if self._cut else "", style="dim")
        hint.append("Ctrl-C stops watching; the run goes on")
        lines = [*[*top, *rows, *bottom][: room - 1], hint]
        for each in lines:
            each.no_wrap = True
            each.overflow = "ellipsis"
            each.truncate(width, overflow="ellipsis")
        return lines

    def _headline(self) -> Text:
        view = self._view
        state = view.state if view.offset else state_of(self._run)
        headline = Text.assemble(
            (line(self._run.workflow), "bold"),
            "  ",
            (self._run.run_id, "dim"),
            "  ",
            (f"● {state}", STATE_STYLES.get(state, "")),
            "  ",
            duration(ran_s(self._run, self._clock())),
        )
        if view.attempt > 1:
            headline.append(f"  attempt {view.attempt}", style="yellow")
        if view.waiting is not None and not view.requests:
            headline.append(f"  waits for {line(view.waiting.reason)}", style="magenta")
        elif self._waits and state in ("QUEUED", "CANCELLING"):
            headline.append(f"  waits for {line(self._waits)}", style="magenta")
        return headline

    def _under_way(self) -> tuple[list[Component], list[Component]]:
        """The instances that run and have something to show, and those that finished and are not written yet."""
        running, finished = [], []
        view = self._view
        # The body last, as what it says is made of what the others gave.
        for component in [*view.components.values(), view.body]:
            if component is view.body:
                if component.parts:
                    running.append(component)
            elif component.state != "running":
                if component.id not in self._written:
                    finished.append(component)
            elif component.parts or component.statuses or not _any_running(view.children(component.id)):
                running.append(component)
        return running, finished

    def _rows(self, running: list[Component], *, room: int, width: int) -> list[Text]:
        """A title for each running instance, and below it the end of its text as far as there is room."""
        if len(running) > room:
            # The newest are those that move.
            hidden = len(running) - max(room - 1, 0)
            running = running[hidden:]
            rows = [Text(f"  and {hidden} more running", style="dim")] if room > 0 else []
            return rows + [self._title_with_text(component, width) for component in running]
        writing = [component for component in running if component.text or component.reasoning]
        tail_lines = (room - len(running)) // len(writing) if writing else 0
        if len(writing) > 1:
            tail_lines = min(tail_lines, TAIL_LINES_MAX)
        if not tail_lines:
            return [self._title_with_text(component, width) for component in running]
        rows = []
        for component in running:
            rows.append(self._title(component))
            if component.text:
                rows += tail(component.text, lines_max=tail_lines, width=width - 2, console=self._console)
            elif component.reasoning:
                thought = tail(component.reasoning, lines_max=tail_lines, width=width - 2, console=self._console)
                for each in thought:
                    each.stylize("dim italic")
                rows += thought
        return rows

    def _title(self, component: Component) -> Text:
        # Only what an executor holds moves.
        moves = self._view.state in ("RUNNING", "CANCELLING")
        spinner = SPINNER[math.floor(self._clock().timestamp() * 10) % len(SPINNER)] if moves else "·"
        if component is self._view.body:
            return Text.assemble((spinner, "cyan"), " ", ("output", "bold"))
        title = Text.assemble((spinner, "cyan"), " ", (self._labels.of(component), "bold"))
        if component.tries > 1:
            title.append(f"  try {component.tries}", style="yellow")
        if component.retrying and component.error is not None:
            title.append(f" after {error_line(component.error)}", style="yellow")
        if component.due_time is not None:
            title.append(f"  until {local(component.due_time)}", style="magenta")
        if component.status is not None:
            title.append("  ")
            title.append_text(status_text(component.status))
        if component.items:
            title.append(f"  {len(component.items)} items, the last: {compact(component.items[-1], 80)}", style="dim")
        elif component.status is None:
            title.append(f"  {told(component.input)}", style="dim")
        return title

    def _title_with_text(self, component: Component, width: int) -> Text:
        """A title, and on the same line the last words: there is no room for more."""
        title = self._title(component)
        room = width - title.cell_len - 3
        if component.text and room > 0:
            end = Text(line(component.text[-room:]).strip(), style="dim")
            title.append("  ").append_text(end)
        return title

    def _held(self, finished: list[Component], room: int) -> list[Text]:
        """Instances that are finished before one that began earlier."""
        room = min(room, LIST_LINES_MAX)
        rows = [headline_of(component, self._labels.of(component)) for component in finished]
        if len(rows) > room:
            hidden = len(rows) - max(room - 1, 0)
            rows = [*rows[:-hidden], Text(f"✓ and {hidden} more finished", style="dim")] if room > 0 else []
        return rows

    def _questions(self) -> list[Text]:
        rows = []
        for request in self._view.requests[:LIST_LINES_MAX]:
            rows.append(Text(f"? {question(request)}", style="bold magenta"))
            answer = f"  answer with: onward signal {self._run.run_id} {line(request.name)} JSON"
            rows.append(Text(answer, style="magenta"))
        return rows

    def _states(self, width: int) -> list[Text]:
        shown = [(name, compact(value, width)) for name, value in self._view.states.items()]
        shown += [(name, compact(values[-1], width)) for name, values in self._view.events.items()]
        return [Text.assemble((line(name), "blue"), " ", (value, "dim")) for name, value in shown[-LIST_LINES_MAX:]]


def status_text(status: Status) -> Text:
    """Return a line of progress, with a bar where it knows its end."""
    shown = Text(line(status.message))
    if status.done is not None and status.total:
        share = min(max(status.done / status.total, 0), 1)
        filled = round(share * BAR_COLUMNS)
        shown.append("  ")
        shown.append("━" * filled, style="cyan")
        shown.append("─" * (BAR_COLUMNS - filled), style="dim")
    if count := counted(status):
        shown.append(f"  {count}", style="cyan")
    return shown


def tail(text: str, *, lines_max: int, width: int, console: Console) -> list[Text]:
    """Return the last lines of a text as it is shown at a width, indented by two."""
    if lines_max <= 0:
        return []
    if len(text) > TAIL_CHARS_MAX:
        # The beginning moves in steps, or each new word would break all the lines before it anew.
        step = TAIL_CHARS_MAX // 2
        text = text[(len(text) - step) // step * step :]
    wrapped = Text(printable(text).rstrip("\n")).wrap(console, max(width, 1))
    return [Text.assemble("  ", each) for each in wrapped[-lines_max:]]


def headline_of(component: Component, label: str) -> Text:
    """Return one line that says how an instance ended."""
    mark, style = MARKS[component.state]
    shown = Text.assemble((mark, style), " ", (label, "bold"))
    if heard := told(component.input, 40):
        shown.append(f"  {heard}")
    if lasted := took(component):
        shown.append(f"  {lasted}", style="dim")
    if component.cached:
        shown.append("  from the cache", style="dim")
    if component.fell_back and component.state == "ok":
        shown.append("  from its fallback", style="yellow")
    if component.tries > 1:
        shown.append(f"  try {component.tries}", style="yellow")
    if component.state == "error" and component.error is not None:
        shown.append(f"  {error_line(component.error)}", style="red")
    elif component.state == "cancelled":
        shown.append("  stopped", style="yellow")
    return shown


def block(component: Component, label: str, width: int) -> Group:
    """Return what stays on the terminal of an instance that is finished: how it ended, and its text or result."""
    headline = headline_of(component, label)
    if component.text:
        return Group(headline, Text(printable(component.text).strip("\n")), "")
    room = width - headline.cell_len - 4
    if component.tools and room > 10:
        headline.append(f"  calls {cropped('; '.join(map(_tool, component.tools)), room)}", style="cyan")
    elif component.state == "ok" and component.output is not None and room > 10:
        headline.append(f"  → {cropped(compact(component.output, width), room)}", style="dim")
    headline.no_wrap = True
    headline.overflow = "ellipsis"
    return Group(headline)


def _tool(call: Any) -> str:
    if not isinstance(call, dict) or "name" not in call:
        return compact(call, TAIL_CHARS_MAX)
    return f"{line(str(call['name']))}({told(call.get('arguments'))})"


def _any_running(components: list[Component]) -> bool:
    return any(component.state == "running" for component in components)
