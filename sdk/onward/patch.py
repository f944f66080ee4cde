"""A JSON document that is patched in place, all or nothing, and can go back.

RFC 6902 with one operation more: {"op": "append", "path": …, "value": "text"} extends a string. Every reader of a log
has to agree on which patches apply, so the choices that the RFC leaves open are made here: true is not 1, an array
index has no sign and no leading zero, and the whole document can be replaced but not removed.

Not python-json-patch: it copies the whole document for each patch, takes true for 1, and cannot undo.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

Undo = list[Callable[[], None]]
"""What takes a patch back, newest step last."""

_INDEX = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_BAD_ESCAPE = re.compile(r"~(?![01])")


class PatchError(ValueError):
    """The patch does not apply. The document is as it was."""


class Document:
    """A JSON value and the patches applied to it.

    The value is changed in place: copy what you keep.
    """

    def __init__(self, value: Any) -> None:
        # One container above the root makes "replace the whole document" an ordinary replacement.
        self._holder: list[Any] = [value]

    @property
    def value(self) -> Any:
        """The document now."""
        return self._holder[0]

    def patch(self, operations: Any) -> Undo:
        """Apply a parsed RFC 6902 patch. The document takes over the values in it.

        Returns:
            What `undo` needs to take exactly this patch back, once every later one was taken back.

        Raises:
            PatchError: An operation is malformed or does not apply; nothing was changed.
        """
        if not isinstance(operations, list):
            raise PatchError("a patch is an array of operations")
        undo: Undo = []
        try:
            for operation in operations:
                self._apply(operation, undo)
        except PatchError:
            self.undo(undo)
            raise
        except RecursionError as error:
            self.undo(undo)
            raise PatchError("nested too deep") from error
        return undo

    @staticmethod
    def undo(steps: Undo) -> None:
        """Take a patch back."""
        for step in reversed(steps):
            step()

    def _apply(self, operation: Any, undo: Undo) -> None:
        if not isinstance(operation, dict):
            raise PatchError("an operation is an object")
        path = _pointer(operation, "path")
        match operation.get("op"):
            case "add":
                self._add(path, _value(operation), undo)
            case "remove":
                self._remove(path, undo)
            case "replace":
                self._replace(path, _value(operation), undo)
            case "move":
                source = _pointer(operation, "from")
                if path[: len(source)] == source and len(path) > len(source):
                    raise PatchError("a value cannot move into itself")
                moved = self._get(source)
                if path != source:
                    self._remove(source, undo)
                    self._add(path, moved, undo)
            case "copy":
                self._add(path, deepcopy(self._get(_pointer(operation, "from"))), undo)
            case "test":
                if not equal(self._get(path), _value(operation)):
                    raise PatchError(f"test failed at {operation['path']!r}")
            case "append":
                self._append(path, _value(operation), undo)
            case other:
                raise PatchError(f"unknown operation {other!r}")

    def _parent(self, path: list[str]) -> Any:
        parent: Any = self._holder
        for token in ["0", *path][:-1]:
            parent = parent[_key(parent, token)]
        return parent

    def _locate(self, path: list[str]) -> tuple[Any, Any]:
        """The container and key of a value that exists."""
        parent = self._parent(path)
        return parent, _key(parent, path[-1] if path else "0")

    def _get(self, path: list[str]) -> Any:
        parent, key = self._locate(path)
        return parent[key]

    def _add(self, path: list[str], value: Any, undo: Undo) -> None:
        parent = self._parent(path)
        if path and isinstance(parent, list):
            index = len(parent) if path[-1] == "-" else _index(path[-1], len(parent) + 1)
            parent.insert(index, value)
            undo.append(lambda: parent.__delitem__(index))
        elif path and isinstance(parent, dict) and path[-1] not in parent:
            parent[path[-1]] = value
            undo.append(lambda: parent.__delitem__(path[-1]))
        else:
            self._replace(path, value, undo)

    def _remove(self, path: list[str], undo: Undo) -> None:
        if not path:
            raise PatchError("the whole document cannot be removed")
        parent, key = self._locate(path)
        old = parent.pop(key)
        if isinstance(parent, list):
            undo.append(lambda: parent.insert(key, old))
        else:
            undo.append(lambda: parent.__setitem__(key, old))

    def _replace(self, path: list[str], value: Any, undo: Undo) -> None:
        parent, key = self._locate(path)
        old = parent[key]
        parent[key] = value
        undo.append(lambda: parent.__setitem__(key, old))

    def _append(self, path: list[str], text: Any, undo: Undo) -> None:
        parent, key = self._locate(path)
        old = parent[key]
        if not isinstance(old, str) or not isinstance(text, str):
            raise PatchError("append extends a string with a string")
        length = len(old)
        # With no other reference to the string CPython extends it where it is: a long text grows in linear time.
        parent[key] = None
        old += text
        parent[key] = old
        # The length, not the old string: a text of n appends would otherwise be kept n times.
        undo.append(lambda: parent.__setitem__(key, parent[key][:length]))


def equal(left: Any, right: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    return bool(left == right)


def _pointer(operation: dict[str, Any], member: str) -> list[str]:
    pointer = operation.get(member)
    if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")) or _BAD_ESCAPE.search(pointer):
        raise PatchError(f"{member} is not a JSON pointer: {pointer!r}")
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def _value(operation: dict[str, Any]) -> Any:
    if "value" not in operation:
        raise PatchError("value is missing")
    return operation["value"]


def _key(container: Any, token: str) -> Any:
    """The key of a value that exists."""
    if isinstance(container, list):
        return _index(token, len(container))
    if isinstance(container, dict) and token in container:
        return token
    raise PatchError(f"nothing at {token!r}")


def _index(token: str, end: int) -> int:
    # 18 digits are past any list and keep a hostile index from costing a huge integer.
    if len(token) > 18 or not _INDEX.fullmatch(token) or (index := int(token)) >= end:
        raise PatchError(f"no index {token!r}")
    return index
