"""Proof that a reader of a log misses nothing and sees nothing twice, in any view and over any number of reads."""

from __future__ import annotations

from collections.abc import Sequence

from onward.v1.event_pb2 import Event
from onward.v1.gateway_service_pb2 import VIEW_SETTLED, Position, View


class EventsMissing(Exception):
    """The server left events out."""


class Continuity:
    """Where a reader of a log is.

    Args:
        start: Where it begins.
        view: What it reads. Only in VIEW_RAW must every offset be there.

    Attributes:
        through: Everything up to this offset was read; None while it is not known where reading begins.
    """

    def __init__(self, start: Position, view: View.ValueType) -> None:
        self.through = start.after_offset if start.HasField("after_offset") else None
        self._settled = view == VIEW_SETTLED

    def begin(self, after_offset: int) -> None:
        """What comes next begins after this offset. Earlier than where reading ended is a repeat and does no harm.

        Raises:
            EventsMissing: It is later.
        """
        if self.through is None:
            self.through = after_offset
        if after_offset > self.through:
            raise EventsMissing(f"{self.through + 1} to {after_offset}")

    def take(self, events: Sequence[Event], after_offset: int, through_offset: int) -> Sequence[Event]:
        """Return those of a batch that are new.

        Raises:
            EventsMissing: There is a hole before, among or after them. Then none of them counts as read.
        """
        self.begin(after_offset)
        read = self.through or 0
        wanted = range(read + 1, through_offset + 1)
        offsets = [event.offset for event in events]
        if self._settled or offsets != list(wanted):
            events = _rising(events, read)
            offsets = [event.offset for event in events]
            sound = all(offset in wanted for offset in offsets) if self._settled else offsets == list(wanted)
            if not sound:
                raise EventsMissing(f"among {read + 1} to {max([through_offset, *offsets])}")
        self.through = max(read, through_offset)
        return events

    def end(self, offset: int) -> None:
        """The server says that everything up to this offset was sent.

        Raises:
            EventsMissing: It was not.
        """
        if offset > (self.through or 0):
            raise EventsMissing(f"{(self.through or 0) + 1} to {offset}")


def _rising(events: Sequence[Event], read: int) -> list[Event]:
    """Leave out what was read before."""
    new = []
    for event in events:
        if event.offset > read:
            new.append(event)
            read = event.offset
    return new
