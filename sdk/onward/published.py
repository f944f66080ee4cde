"""What a workflow published under one name: a sequence of events, and a state made of replacements and patches."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from onward.patch import Document, PatchError
from onward.payload import decode, parse_json
from onward.v1.event_pb2 import CHANGE_PATCH, CHANGE_SET, Published
from onward.v1.run_pb2 import Payload


@dataclass(slots=True)
class _Revision:
    """One replacement of a state or one patch to it. `undo` is set while it is applied and had an effect."""

    offset: int
    patch: bool
    payload: Payload
    undo: Callable[[], None] | None = None


class Publications:
    """The events and the state of one name. Any of them can turn out void later; what is left then counts alone.

    A state is made when it is read. A void revision takes back those after it and no more: nothing is read twice.
    """

    def __init__(self) -> None:
        self.events: list[Any] = []
        """Values of the events, oldest first."""
        self._event_offsets: list[int] = []
        self._revisions: list[_Revision] = []
        self._applied = 0
        self._document: Document | None = None

    def add(self, offset: int, published: Published) -> None:
        """Take what was published at an offset later than all before."""
        if published.change in (CHANGE_SET, CHANGE_PATCH):
            # A copy: a part of a message keeps the whole batch that it came in alive.
            payload = Payload()
            payload.CopyFrom(published.value)
            self._revisions.append(_Revision(offset, published.change == CHANGE_PATCH, payload))
        else:
            self.events.append(decode(published.value))
            self._event_offsets.append(offset)

    def drop(self, offset: int) -> None:
        """Forget what was published at an offset, as if it had never been."""
        index = bisect_left(self._event_offsets, offset)
        if index < len(self._event_offsets) and self._event_offsets[index] == offset:
            del self._event_offsets[index], self.events[index]
            return
        index = bisect_left(self._revisions, offset, key=attrgetter("offset"))
        while self._applied > index:
            self._applied -= 1
            revision = self._revisions[self._applied]
            if revision.undo is not None:
                revision.undo()
                revision.undo = None
        del self._revisions[index]

    def document(self) -> Document | None:
        """The state now, None where nothing was set."""
        while self._applied < len(self._revisions):
            revision = self._revisions[self._applied]
            revision.undo = self._patch(revision.payload) if revision.patch else self._set(revision.payload)
            self._applied += 1
        return self._document

    def __bool__(self) -> bool:
        return bool(self.events or self._revisions)

    def _set(self, payload: Payload) -> Callable[[], None]:
        old, self._document = self._document, Document(decode(payload))

        def undo() -> None:
            self._document = old

        return undo

    def _patch(self, payload: Payload) -> Callable[[], None] | None:
        document = self._document
        if document is None or payload.WhichOneof("value") != "data":
            return None
        try:
            steps = document.patch(parse_json(payload.data))
        except (PatchError, ValueError):
            return None
        return lambda: document.undo(steps)
