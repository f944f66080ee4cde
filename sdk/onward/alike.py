"""Whether two values are the same, to the type: a result, and what comes back of it from its JSON."""

from __future__ import annotations

import marshal
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

PLAIN = frozenset((type(None), bool, int, str))
"""Types whose values come back from JSON as they are."""


def alike(one: Any, other: Any, *, exact: bool) -> bool:
    """Tell whether two values are the same.

    Args:
        one: What came back.
        other: What it was.
        exact: Compare every type. Else what compares as equal is, where the two as a whole have one type: an annotation
            has made of it what it says.
    """
    if exact:
        try:
            # Only what JSON can say in Python's own types, compared by type and value, without a loop in Python.
            return marshal.dumps(one, 2) == marshal.dumps(other, 2)
        except ValueError:
            return False
    try:
        if (type(one) is type(other) or _numbers(one, other)) and one == other:
            return True
        return _same(one, other, 0)
    except Exception:  # noqa: BLE001 - whatever a user's __eq__ raises
        return False


def _numbers(one: Any, other: Any) -> bool:
    return isinstance(one, int | float) and isinstance(other, int | float)


def _same(one: Any, other: Any, depth: int) -> bool:
    """The slow way, for what does not compare: NaN, and objects that are equal to themselves alone."""
    if depth > 100:
        return False
    if one is other or (one != one and other != other):
        return True
    if type(one) is not type(other):
        # Types that stand for each other (datetime's zones, paths) are equal; what is not, is not.
        return bool(one == other) and not isinstance(other, str | tuple | list | dict | set | frozenset)
    depth += 1
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(a, b, depth) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(value, other[key], depth) for key, value in one.items())
    if is_dataclass(one):
        names = [field.name for field in fields(one)]
        return all(_same(getattr(one, name, None), getattr(other, name, None), depth) for name in names)
    if isinstance(one, BaseModel):
        return _same(one.__dict__, other.__dict__, depth) and _same(
            one.__pydantic_private__, other.__pydantic_private__, depth
        )
    return bool(one == other)


def holds_set(value: Any, depth: int = 0) -> bool:
    """Tell whether there is a set in it."""
    if type(value) in PLAIN or isinstance(value, str | int | float | bytes) or depth > 100:
        return False
    if isinstance(value, set | frozenset):
        return True
    depth += 1
    if isinstance(value, dict):
        return any(holds_set(one, depth) for one in value.values())
    if isinstance(value, list | tuple):
        return any(holds_set(one, depth) for one in value)
    inside = _inside(value)
    return inside is not None and holds_set(inside, depth)


def sets_sorted(value: Any) -> Any:
    """Return it with every set as a list in an order that does not depend on the process."""
    if isinstance(value, set | frozenset):
        return sorted((sets_sorted(one) for one in value), key=to_json)
    if isinstance(value, dict):
        return {key: sets_sorted(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [sets_sorted(one) for one in value]
    inside = _inside(value)
    return value if inside is None else sets_sorted(inside)


def _inside(value: Any) -> dict[str, Any] | None:
    if isinstance(value, BaseModel):
        return dict(value.__dict__)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in fields(value)}
    return None
