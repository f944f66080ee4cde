"""How things are said to a person, on a terminal as in a log file: states, durations, values, errors."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from onward.payload import Blob
from onward.v1.run_pb2 import Run, RunError, RunState, Usage
from onward.views import Component, InputRequest, Status

STATE_STYLES = {
    "QUEUED": "yellow",
    "RUNNING": "cyan",
    "WAITING": "magenta",
    "CANCELLING": "yellow",
    "PAUSED": "bold yellow",
    "SUCCEEDED": "green",
    "FAILED": "bold red",
    "CANCELLED": "red",
}
"""The colour of each state wherever one is shown."""

_SAID_BY_ITSELF = ("COMPONENT_FAILED", "WORKFLOW_FAILED")
"""Reasons that tell nothing beside the error's own words."""

# A run's texts come from models and from whoever started it: what would steer the terminal does not reach it.
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_CONTROLS_OF_LINE = {**_CONTROLS, ord("\n"): " ", ord("\t"): " "}


class Labels:
    """A short name for each component instance: its component's, numbered from the second one on."""

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}
        self._seen: Counter[str] = Counter()

    def of(self, component: Component) -> str:
        """Return the label of an instance. Ask for instances in the order they began."""
        label = self._labels.get(component.id)
        if label is None:
            name = line(component.name) or "?"
            self._seen[name] += 1
            count = self._seen[name]
            label = self._labels[component.id] = name if count == 1 else f"{name}#{count}"
        return label


def printable(text: str) -> str:
    """Return text without what would steer a terminal. Lines stay lines."""
    return text.translate(_CONTROLS)


def line(text: str) -> str:
    """Return text as one line, without what would steer a terminal."""
    return text.translate(_CONTROLS_OF_LINE)


def cropped(text: str, chars_max: int) -> str:
    """Return one line of at most `chars_max` characters."""
    text = line(text[: chars_max + 1])
    return text if len(text) <= chars_max else text[: max(chars_max - 1, 0)] + "…"


def compact(value: Any, chars_max: int = 200) -> str:
    """Return a value on one line: JSON, cut where it is long."""
    if isinstance(value, Blob):
        return f"({size(value.size)} of {value.media_type})"
    if isinstance(value, bytes):
        return f"({size(len(value))} of bytes)"
    return cropped(json.dumps(value, ensure_ascii=False), chars_max)


def told(arguments: Any, chars_max: int = 80) -> str:
    """Return what a component was called with on one line: a single argument as it is, several by name."""
    if not isinstance(arguments, dict) or not arguments:
        return "" if arguments is None or arguments == {} else compact(arguments, chars_max)
    texts = {name: value if isinstance(value, str) else compact(value, chars_max) for name, value in arguments.items()}
    if len(texts) == 1:
        return cropped(next(iter(texts.values())), chars_max)
    return cropped(", ".join(f"{name}={text[:chars_max]}" for name, text in texts.items()), chars_max)


def duration(seconds: float) -> str:
    """Return a duration as a person reads it: 0.4s, 12s, 3m05s, 2h07m, 4d03h."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    days, hours_rest = divmod(hours, 24)
    if days:
        return f"{days}d{hours_rest:02}h"
    if hours:
        return f"{hours}h{minutes_rest:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def size(size_bytes: int) -> str:
    """Return a length in bytes as a person reads it."""
    if size_bytes < 1024:
        return f"{size_bytes} bytes"
    if size_bytes < 1024**2:
        return f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / 1024**2:.1f} MiB"


def state_of(run: Run) -> str:
    """Return a run's state without its prefix; its number where it is newer than this program."""
    known = run.state in RunState.values()
    return RunState.Name(run.state).removeprefix("RUN_STATE_") if known else str(run.state)


def ran_s(run: Run, now: datetime) -> float:
    """Return how long a run has lived, or did, from its acceptance, in seconds."""
    end = run.end_time.ToDatetime(UTC) if run.HasField("end_time") else now
    return (end - run.create_time.ToDatetime(UTC)).total_seconds()


def took(component: Component) -> str:
    """Return how long an instance took."""
    if component.started_time is None or component.finished_time is None:
        return ""
    return duration((component.finished_time - component.started_time).total_seconds())


def status_line(status: Status) -> str:
    """Return a line of progress with its count."""
    count = counted(status)
    return f"{line(status.message)} {count}" if count else line(status.message)


def counted(status: Status) -> str:
    """Return how far a line of progress has come, e.g. "2/4"; nothing where it counts nothing."""
    if status.done is None:
        return ""
    return f"{status.done}/{status.total}" if status.total is not None else str(status.done)


def error_line(error: RunError, label: str = "") -> str:
    """Return an error on one line: where, what, and the word for programs."""
    message = line(error.message).removeprefix(f"{label.partition('#')[0]}: ")
    said = ": ".join(part for part in (label, error.type.rpartition(".")[2], message) if part)
    if not error.reason or (said and error.reason in _SAID_BY_ITSELF):
        return said
    return f"{said} ({error.reason})" if said else error.reason


def question(request: InputRequest) -> str:
    """Return what a run asks."""
    prompt = f": {line(request.prompt)}" if request.prompt else ""
    expiry = f" (until {local(request.expire_time)})" if request.expire_time else ""
    return f"waits for signal {line(request.name)}{prompt}{expiry}"


def used(usage: Usage) -> str:
    """Return what a run's model calls used; nothing where there were none."""
    if not usage.calls:
        return ""
    calls = "1 model call" if usage.calls == 1 else f"{usage.calls:,} model calls"
    tokens = f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"
    cost = f", ${usage.cost_usd_micros / 1e6:.4f}" if usage.cost_usd_micros else ""
    return f"{calls}, {tokens}{cost}"


def local(time: datetime) -> str:
    """Return a time in the zone of this machine; in its own where there is none, at the ends of the calendar."""
    try:
        time = time.astimezone()
    except OverflowError:
        pass
    return time.strftime("%Y-%m-%d %H:%M:%S %Z")
