"""What user code shows to the end user while it works: lines of progress, events, and named values that change.

All of it belongs to the component that runs, needs no waiting, works in threads too, and does nothing outside a run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

from onward.instance import CURRENT
from onward.journal import inline
from onward.log import INLINE_BYTES_MAX
from onward.secrets import masked
from onward.signature import dump_any
from onward.text import cut
from onward.v1.event_pb2 import CHANGE_EVENT, CHANGE_PATCH, CHANGE_SET, Change, Published, StatusUpdated

STATUS_CHARS_MAX = 1_000
COUNT_MAX = 2**63 - 1

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_NEEDS = {
    "add": "value",
    "replace": "value",
    "test": "value",
    "append": "value",
    "move": "from",
    "copy": "from",
    "remove": "",
}


def status(message: str, *, done: int | None = None, total: int | None = None) -> None:
    """Show a line of progress. It replaces the component's line before it.

    Args:
        message: One line; line breaks become spaces, and it is cut after 1,000 characters.
        done: Units finished. None counts nothing.
        total: Units in all. None is unknown.

    Raises:
        TypeError: The message is no text, or a count is no whole number.
        ValueError: A count is negative.
    """
    if not isinstance(message, str):
        raise TypeError(f"a status is text, not {type(message).__name__}")
    shown = StatusUpdated(
        # A secret may have lines, and may be where it is cut.
        message=cut(" ".join(masked(message).splitlines()), STATUS_CHARS_MAX),
        done=_count("done", done),
        total=_count("total", total),
    )
    instance = CURRENT.get()
    if instance is not None:
        instance.journal.call(instance.journal.status, instance, shown)


class Publish:
    """`publish(name, value)` shows one of a sequence of events; `.state` and `.patch` keep a value up to date.

    A name is 1 to 128 of A-Z a-z 0-9 _ . - and a value whatever JSON can say, up to 256 KiB of it.
    """

    __slots__ = ()

    def __call__(self, name: str, value: Any) -> None:
        """Show one of a sequence of events.

        Raises:
            TypeError: The value has no JSON form.
            ValueError: The value is too large, or the name is none.
        """
        _publish(name, CHANGE_EVENT, value)

    def state(self, name: str, value: Any) -> None:
        """Replace the value that is kept under `name`.

        Raises:
            TypeError: The value has no JSON form.
            ValueError: The value is too large, or the name is none.
        """
        _publish(name, CHANGE_SET, value)

    def patch(self, name: str, operations: Sequence[Mapping[str, Any]]) -> None:
        """Change the value that is kept under `name`.

        Args:
            name: What `state` set.
            operations: An RFC 6902 patch; {"op": "append", "path": "/text", "value": "more"} extends a string. A patch
                that does not apply as a whole is skipped by every reader.

        Raises:
            TypeError: An operation has no JSON form.
            ValueError: It is no patch, or too large.
        """
        for operation in operations:
            _check(operation)
        _publish(name, CHANGE_PATCH, list(operations))


publish = Publish()


def _publish(name: str, change: Change.ValueType, value: Any) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"a published name is 1 to 128 of A-Z a-z 0-9 _ . -, not {name!r}")
    data = dump_any(value, f"what is published as {name!r}")
    if len(data) > INLINE_BYTES_MAX:
        raise ValueError(
            f"what is published as {name!r} has {len(data)} bytes; at most {INLINE_BYTES_MAX} can be shown at once"
        )
    instance = CURRENT.get()
    if instance is not None:
        shown = Published(name=name, change=change, value=inline(data))
        instance.journal.call(instance.journal.published, instance, shown)


def _check(operation: Mapping[str, Any]) -> None:
    kind = operation.get("op")
    needs = _NEEDS.get(kind) if isinstance(kind, str) else None
    if needs is None:
        raise ValueError(f"{kind!r} is no patch operation: {', '.join(sorted(_NEEDS))}")
    for member in ("path", needs):
        if member and member not in operation:
            raise ValueError(f"the patch operation {kind} lacks {member!r}")
    for member in ("path", "from"):
        pointer = operation.get(member, "")
        if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
            raise ValueError(f'{pointer!r} is no JSON Pointer: "" or "/name/0"')


def _count(name: str, count: int | None) -> int | None:
    if count is None:
        return None
    try:
        number = index(count)
    except TypeError:
        raise TypeError(f"{name} is a whole number, not {type(count).__name__}") from None
    if not 0 <= number <= COUNT_MAX:
        raise ValueError(f"{name} is 0 or more, not {number}")
    return number
