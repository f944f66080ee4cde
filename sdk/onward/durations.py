"""Durations as people write them: "2m", "1.5s", "1h30m", a number of seconds, a timedelta."""

from __future__ import annotations

import re
from datetime import timedelta

Duration = str | float | timedelta
"""Text such as "100ms", "1.5s", "2m", "1h30m" or "7d"; a number of seconds; or a timedelta."""

LONGEST_S = 315_576_000_000.0
"""10,000 years: the longest duration that protobuf has."""

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


def seconds(duration: Duration) -> float:
    """Return `duration` in seconds: 0 or more, and at most 10,000 years.

    Raises:
        ValueError: It is not a duration, negative, or longer.
        TypeError: It is of another type.
    """
    value: float
    if isinstance(duration, str):
        text = duration.replace(" ", "")
        if not _WHOLE.fullmatch(text):
            raise ValueError(f'{duration!r} is not a duration: write "100ms", "1.5s", "2m", "1h30m" or "7d"')
        value = sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))
    elif isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, float | int):
        value = duration
    else:
        raise TypeError(f"a duration is text, a number of seconds or a timedelta, not {type(duration).__name__}")
    if not 0 <= value <= LONGEST_S:
        raise ValueError(f"a duration is 0 or more and at most 10,000 years, not {duration!r}")
    return float(value)


def text(duration_s: float) -> str:
    """Return seconds as people write them: 0.25 is "250ms", 90 is "1m30s"."""
    if duration_s < 1:
        return f"{duration_s * 1000:g}ms"
    parts = []
    for unit in ("d", "h", "m"):
        count, duration_s = divmod(duration_s, _UNIT_S[unit])
        if count:
            parts.append(f"{count:g}{unit}")
    if duration_s or not parts:
        parts.append(f"{duration_s:g}s")
    return "".join(parts)
