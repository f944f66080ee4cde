"""Crash points: places in a run at which its executor dies, named by what the log says there, never by time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from onward.v1.event_pb2 import Event


class Named(Protocol):
    """Something with a name, such as a component."""

    @property
    def name(self) -> str: ...


Look = Callable[[Event], bool]
"""Shown an attempt's events one after the other; tells whether this is the place."""


class PointNotReached(AssertionError):
    """A run ended without coming by a point at which it was to crash: the test shows less than it seems to."""


@dataclass(frozen=True)
class Point:
    """A place at which an executor dies. What counts is what the attempt that dies writes, from its own beginning.

    Attributes:
        name: Says where it is.
    """

    name: str
    look: Callable[[], Look]
    """Makes what looks at one attempt."""
    before: bool = False
    """Whether the executor dies before the event at that place is written, and not after it."""

    def __str__(self) -> str:
        return self.name


def after_start(component: str | Named, nth: int = 1) -> Point:
    """The executor dies when the attempt has begun `component` for the `nth` time, before that can give anything."""
    name = component if isinstance(component, str) else component.name

    def look() -> Look:
        count = 0

        def here(event: Event) -> bool:
            nonlocal count
            count += event.component_started.name == name
            return count == nth

        return here

    return Point(f"after start {nth} of {name}", look)


def after_finish(component: str | Named, nth: int = 1) -> Point:
    """The executor dies when the `nth` call of `component` that ends in the attempt is in the log, result or error.

    Its caller has not had it by then.
    """
    name = component if isinstance(component, str) else component.name

    def look() -> Look:
        count = 0
        ids: set[str] = set()

        def here(event: Event) -> bool:
            nonlocal count
            if event.component_started.name == name:
                ids.add(event.component_id)
            count += event.HasField("component_finished") and event.component_id in ids
            return count == nth

        return here

    return Point(f"after end {nth} of {name}", look)


def after_text(text: str, of: str | Named | None = None) -> Point:
    """The executor dies in mid-stream, when what was streamed in the attempt holds `text`.

    Args:
        text: May be spread over several pieces of one part.
        of: The component that streams it; by default any, and the workflow itself.

    Raises:
        ValueError: `text` is empty.
    """
    if not text:
        raise ValueError("every text holds the empty one")
    name = of if of is None or isinstance(of, str) else of.name

    def look() -> Look:
        names: dict[str, str] = {}
        texts: dict[tuple[str, int], str] = {}

        def here(event: Event) -> bool:
            if event.HasField("component_started"):
                names[event.component_id] = event.component_started.name
            delta = event.output_delta
            if not delta.text or (name is not None and names.get(event.component_id) != name):
                return False
            place = event.component_id, delta.part
            texts[place] = texts.get(place, "") + delta.text
            return text in texts[place]

        return here

    return Point(f"after the text {text!r}" + ("" if name is None else f" of {name}"), look)


def before_end() -> Point:
    """The executor dies when everything is done and the event that closes the log is all that is missing."""

    def look() -> Look:
        return lambda event: event.HasField("run_state_changed")

    return Point("before the end", look, before=True)


def after_offset(offset: int) -> Point:
    """The executor dies when the log is this long."""

    def look() -> Look:
        return lambda event: event.offset == offset

    return Point(f"after offset {offset}", look)
