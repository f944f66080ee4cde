"""Durations as people write them."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from onward.durations import Duration, seconds, text


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        ("100ms", 0.1),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("1h30m", 5_400.0),
        ("7d", 604_800.0),
        ("1m 30s", 90.0),
        ("0s", 0.0),
        (2, 2.0),
        (0.25, 0.25),
        (timedelta(minutes=2), 120.0),
        ("3652500d", 315_576_000_000.0),
    ],
)
def test_every_form_is_understood(duration: Duration, expected: float) -> None:
    """Text, numbers of seconds and timedeltas say the same."""
    assert seconds(duration) == pytest.approx(expected)


@pytest.mark.parametrize(
    "duration",
    [
        *("", "2", "2 minutes", "-1s", "1s..2s", "s", "1.s", "1e3s", "3652501d", "9" * 400 + "d"),
        *(-1, math.inf, math.nan, 10**400, timedelta.max),
    ],
)
def test_what_is_no_duration_is_refused(duration: Duration) -> None:
    """The message repeats what was written."""
    with pytest.raises(ValueError, match="duration"):
        seconds(duration)


def test_another_type_is_refused() -> None:
    """None is not a duration."""
    with pytest.raises(TypeError, match="NoneType"):
        seconds(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("duration_s", "expected"), [(0.25, "250ms"), (1, "1s"), (90, "1m30s"), (120, "2m"), (90_061, "1d1h1m1s")]
)
def test_seconds_are_written_as_people_do(duration_s: float, expected: str) -> None:
    """Errors name a limit in the words it was given in."""
    assert text(duration_s) == expected
    assert seconds(expected) == duration_s
