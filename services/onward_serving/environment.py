"""Settings as the environment holds them. What makes no sense is told with the name of its variable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CENTURY_S = 100 * 365 * 86_400.0
"""Longer than any time that is set."""


class SettingInvalid(ValueError):
    """A variable holds something else than it should."""


def whole(env: Mapping[str, str], name: str, default: int, *, least: int = 1) -> int:
    """Return the whole number that a variable holds.

    Raises:
        SettingInvalid: It holds none, or one below `least`.
    """
    text = env.get(name)
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise SettingInvalid(f"{name}={text}: a whole number from {least} is wanted")
    return value


def seconds(env: Mapping[str, str], name: str, default: float, *, least: float = 0.0) -> float:
    """Return the number of seconds that a variable holds.

    Raises:
        SettingInvalid: It holds none, one below `least`, or more than a century.
    """
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= CENTURY_S:  # nor NaN
        raise SettingInvalid(f"{name}={text}: a number of seconds from {least:g} to a century is wanted")
    return value


def listed(env: Mapping[str, str], name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the members of a list that a variable holds, separated by commas."""
    return members(env.get(name, "")) or default


def members(text: str) -> tuple[str, ...]:
    """Return the members of a list that is separated by commas."""
    return tuple(member.strip() for member in text.split(",") if member.strip())


def path(env: Mapping[str, str], name: str) -> Path | None:
    """Return the path that a variable holds; None where it is empty or not set."""
    return Path(env[name]) if env.get(name) else None


def told(env: Mapping[str, str], name: str) -> bool:
    """Return whether a variable is 1, as those that switch something on."""
    return env.get(name, "") == "1"
