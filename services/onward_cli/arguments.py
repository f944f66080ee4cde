"""What a person types, as values: inputs, labels, times."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from onward.durations import seconds
from onward.payload import parse_json


class Refused(Exception):
    """What was typed makes no sense; the message says why and what would."""


def workflow_input(given: str | None, pairs: Sequence[str]) -> dict[str, Any]:
    """Return a workflow's input: a JSON object, and single parameters on top of it.

    Args:
        given: JSON, `@FILE`, or `-` for the standard input.
        pairs: NAME=VALUE each; a value that is JSON is that, any other is text.

    Raises:
        Refused: It is no JSON, or no object.
    """
    values: dict[str, Any] = {}
    if given is not None:
        values = json_value(given, "--input")
        if not isinstance(values, dict):
            raise Refused(
                f"--input is a JSON object of the workflow's parameters by name, not {json.dumps(values)[:60]}"
            )
    return {**values, **{name: _lenient(value) for name, value in _pairs(pairs, "input")}}


def meant_as_text(pairs: Sequence[str], violations: Iterable[str]) -> dict[str, str]:
    """Return the parameters that were typed as a number, true, false or null, and refused as such, as text.

    A phone number, a year or an id may be text, which only the workflow's schema knows.

    Args:
        pairs: NAME=VALUE each.
        violations: What is wrong with the input, "/NAME: why" each.
    """
    refused = {violation.partition(": ")[0] for violation in violations}
    return {
        name: value
        for name, value in dict(_pairs(pairs, "input")).items()
        if f"/{name}" in refused and not isinstance(_lenient(value), str | dict | list)
    }


def json_value(given: str, what: str) -> Any:
    """Return the value of JSON that was typed, or stands in `@FILE`, or comes from the standard input with `-`.

    Raises:
        Refused: It is not JSON, or cannot be read. The message begins with `what`.
    """
    data, source = _read(given, what)
    try:
        return parse_json(data)
    except ValueError as error:
        raise Refused(f"{what}{source} is not JSON: {error}") from None


def labels(pairs: Iterable[str]) -> dict[str, str]:
    """Return labels that were typed as KEY=VALUE.

    Raises:
        Refused: One has no `=`.
    """
    return dict(_pairs(pairs, "--label"))


def schedule(at: str | None, delay: str | None, now: datetime) -> datetime | None:
    """Return when a run shall start: at a time, or after a delay; None for at once.

    Raises:
        Refused: It is no time, no duration, or both.
    """
    if at is not None and delay is not None:
        raise Refused("--at and --in exclude each other")
    if delay is not None:
        try:
            return now + timedelta(seconds=duration_s(delay, "--in"))
        except OverflowError:
            raise Refused(f"--in {delay} is behind the year 9999") from None
    if at is None:
        return None
    try:
        # Without a zone it is the time on this machine's clock.
        return datetime.fromisoformat(at).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refused(f'--at {at!r} is not a time: write "2026-11-22T08:00" or "2026-11-22T08:00+01:00"') from None


def duration_s(given: str, what: str) -> float:
    """Return a duration that was typed, in seconds.

    Raises:
        Refused: It is none. The message begins with `what`.
    """
    try:
        return seconds(given)
    except ValueError as error:
        raise Refused(f"{what}: {error}") from None


def _read(given: str, what: str) -> tuple[bytes, str]:
    try:
        if given == "-":
            return sys.stdin.buffer.read(), " from the standard input"
        if given.startswith("@"):
            return Path(given[1:]).read_bytes(), f" in {given[1:]}"
    except OSError as error:
        raise Refused(f"{what}: cannot read {error.filename or given}: {error.strerror}") from None
    return given.encode(errors="surrogateescape"), ""


def _pairs(pairs: Iterable[str], what: str) -> list[tuple[str, str]]:
    split = []
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise Refused(f"{what} {pair!r} is not NAME=VALUE")
        split.append((name, value))
    return split


def _lenient(value: str) -> Any:
    try:
        return parse_json(value.encode())
    except ValueError:
        return value
