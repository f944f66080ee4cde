"""Which events are void: an index of each run's rollbacks, built from its log once and carried on from there."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence

from onward.v1.event_pb2 import Event, Rollback
from onward_runlog.reader import Chunk, Reader, Sizing, chunk_from, unframed

INDEX_ENTRIES_MAX = 200_000
"""Component ids of rollbacks kept over all runs; the indexes that were used longest ago go first."""

_ROLLBACK_TAG = b"\x92\x01"  # field 18, length-delimited: an event without these bytes is no Rollback
_VOIDABLE = frozenset({"output_delta", "status_updated", "published"})


class Voids:
    """What a set of rollbacks makes void."""

    def __init__(self, rollbacks: Iterable[tuple[int, Rollback]]) -> None:
        """Args:
        rollbacks: In the order of their offsets.
        """
        self.before = 0
        """Events at this offset and after are not void."""
        spans: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for offset, rollback in rollbacks:
            self.before = offset
            for component_id in rollback.component_ids:
                spans[component_id].append((rollback.after_offset, offset))
        self._spans = {component_id: _merged(each) for component_id, each in spans.items()}

    def __contains__(self, event: Event) -> bool:
        if event.WhichOneof("kind") not in _VOIDABLE:
            return False
        spans = self._spans.get(event.component_id)
        if spans is None:
            return False
        # The first span that ends after the event is the only one it can lie in.
        at = bisect_left(spans, event.offset + 1, key=lambda span: span[1])
        return at < len(spans) and spans[at][0] < event.offset

    def settle(self, chunk: Chunk) -> Sequence[bytes]:
        """Return the events of a chunk that are not void."""
        if chunk.after + 1 >= self.before:
            return chunk.events
        return [event for event in chunk.events if Event.FromString(unframed(event)) not in self]


class Settling:
    """Knows the rollbacks of the runs that were read settled of late."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._indexes: OrderedDict[tuple[str, str], _Index] = OrderedDict()
        self._entries = 0
        """Of all indexes together."""

    async def voids(self, base: str, ref: str, log_id: str, through: int) -> Voids:
        """Return what the rollbacks up to and with offset `through` make void.

        Raises:
            StoreUnavailable: The log cannot be read.
        """
        name = ref, log_id
        index = self._indexes.setdefault(name, _Index())
        self._indexes.move_to_end(name)
        async with index.lock:
            await self._extend(index, base, ref, through)
        if self._indexes.get(name) is index:
            self._entries += index.entries - index.counted
            index.counted = index.entries
        self._forget()
        return Voids((offset, rollback) for offset, rollback in index.rollbacks if offset <= through)

    async def _extend(self, index: _Index, base: str, ref: str, through: int) -> None:
        sizing = Sizing(1)
        while index.through < through:
            count = min(sizing.count, through - index.through)
            chunk = chunk_from(await self._reader.events(base, ref, index.through, count), index.through)
            if not chunk.events:
                return  # trimmed to the end: nothing is left that could be void
            sizing.saw(chunk)
            for element in chunk.events:
                if _ROLLBACK_TAG in element:
                    index.add(Event.FromString(unframed(element)))
            index.through = chunk.through

    def _forget(self) -> None:
        while self._entries > INDEX_ENTRIES_MAX and len(self._indexes) > 1:
            self._entries -= self._indexes.popitem(last=False)[1].counted


class _Index:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.through = 0
        self.rollbacks: list[tuple[int, Rollback]] = []
        self.entries = 1
        self.counted = 0
        """How many of them are in the sum over all indexes."""

    def add(self, event: Event) -> None:
        if event.HasField("rollback"):
            self.rollbacks.append((event.offset, event.rollback))
            self.entries += len(event.rollback.component_ids)


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the union of spans (after, before), both exclusive, disjoint and in order."""
    merged: list[tuple[int, int]] = []
    for after, before in spans:  # by `before`
        while merged and after < merged[-1][1]:
            after = min(after, merged.pop()[0])
        merged.append((after, before))
    return merged
