"""Reads of one run: its record, a range of its log, a position. Plain commands only: a reader never writes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from onward.v1.gateway_service_pb2 import GapPolicy, Position
from onward.v1.run_pb2 import Run
from onward_runlog import keys
from onward_runlog.cursor import Cursor, Cursors, event_hash, parse
from onward_runlog.errors import BlobNotFound, EventsTrimmed, LogRebuilt, OffsetAhead, RunNotFound
from onward_runlog.record import FULL, LISTED, run_from
from onward_runlog.store import Store

BATCH_BYTES_MAX = 1024 * 1024
"""Events together, or one event, in a batch or page."""

READ_EVENTS_MAX = 4_096
"""Events asked for at a time, where they are small."""

FIRST_READ_EVENTS = 32
"""Events read together with the record: a short run needs no second round trip."""

BLOB_PIECE_BYTES = 1024 * 1024

_BLOB_PREFIX = "blob:"

Reply = list[Any]
"""XRANGE's: for each entry its id and its fields."""


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_VARINTS = [_varint(number) for number in range(4_096)]
# What stands before an event in EventBatch.events, ListRunEventsResponse.events and any other field with number 1.
_PREFIXES = [b"\n" + size for size in _VARINTS]


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    return _VARINTS[number] if number < len(_VARINTS) else _varint(number)


def framed(event: bytes) -> bytes:
    """Return a stored event as an element of a message's repeated field 1: joined, such elements are the field.

    So a batch is made without parsing what is in it.
    """
    size = len(event)
    return (_PREFIXES[size] if size < len(_PREFIXES) else b"\n" + varint(size)) + event


def unframed(element: bytes) -> bytes:
    """Return the event of a framed one."""
    start = 2
    while element[start - 1] > 127:
        start += 1
    return element[start:]


def first_offset(reply: Reply, last_offset: int) -> int:
    """Return the oldest retained offset, from the reply to an XRANGE for the first entry."""
    return _offset(reply[0]) if reply else last_offset + 1


class Chunk(NamedTuple):
    """Events in a row, none missing.

    Attributes:
        after: The offset before the first.
        events: Each framed.
    """

    after: int
    events: Sequence[bytes]

    @property
    def through(self) -> int:
        """The offset of the last event."""
        return self.after + len(self.events)

    @property
    def hash(self) -> int:
        """The last event's hash, for a cursor."""
        return event_hash(self.events[-1])


def chunk_from(reply: Reply, after: int) -> Chunk:
    """Return the events of an XRANGE that asked for what follows `after`.

    The chunk is dense. It ends before a hole, and begins after one where the very next event is gone: then its `after`
    is above the one that was asked for.
    """
    events = [framed(entry[1][1]) for entry in reply]
    if not events:
        return Chunk(after, events)
    first = _offset(reply[0])
    if _offset(reply[-1]) - first >= len(events):
        dense = next(i for i, entry in enumerate(reply) if _offset(entry) != first + i)
        del events[dense:]
    return Chunk(first - 1, events)


def cut(chunk: Chunk, bytes_max: int = BATCH_BYTES_MAX) -> Chunk:
    """Return the first events of a chunk: one, or as many as are at most `bytes_max` bytes together.

    What is kept for a reader that may never take it is cut as soon as it is read: a reply is as large as its events
    are. The rest is read again.
    """
    if sum(map(len, chunk.events)) <= bytes_max:
        return chunk
    total = 0
    for i, event in enumerate(chunk.events):
        total += len(event)
        if total > bytes_max and i > 0:
            return Chunk(chunk.after, chunk.events[:i])
    return chunk


class Sizing:
    """How many events to ask for, so that a reply is near BATCH_BYTES_MAX. XRANGE knows no limit in bytes."""

    def __init__(self, mean_bytes: int) -> None:
        """Args:
        mean_bytes: An event's mean size in the whole log.
        """
        self._log_mean = max(mean_bytes, 1)
        self._mean = self._log_mean
        self._last = FIRST_READ_EVENTS

    @property
    def count(self) -> int:
        """Events to ask for. Grows fourfold at most, so that one quiet stretch does not promise another."""
        wanted = BATCH_BYTES_MAX // max(self._mean, self._log_mean)
        return max(1, min(wanted, 4 * self._last, READ_EVENTS_MAX))

    def saw(self, chunk: Chunk) -> None:
        """Take note of a reply."""
        if chunk.events:
            self._mean = max(1, sum(map(len, chunk.events)) // len(chunk.events))
            self._last = max(len(chunk.events), FIRST_READ_EVENTS // 4)


@dataclass(frozen=True, slots=True)
class Start:
    """A read that is fixed: where it begins and what there was.

    Attributes:
        run: Snapshot without input and output.
        after: The position, exclusive.
        after_hash: Hash of the event there, 0 where it is not at hand.
        resumed: Where events are read from: `after`, or later where a gap was accepted.
        cursors: For the run's log.
        chunk: The first events after `resumed`, no more than a batch; may be empty though there are more.
        sizing: For what follows.
    """

    run: Run
    after: int
    after_hash: int
    resumed: int
    cursors: Cursors
    chunk: Chunk
    sizing: Sizing


class Reader:
    """Reads from one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def run(self, namespace: str, run_id: str, *, input: bool = False, output: bool = False) -> Run:
        """Return a run, with its input and output where asked for.

        Raises:
            RunNotFound: There is no such run.
        """
        base, ref = self._store.place(namespace, run_id)
        fields = [name for name in FULL if (name != "input" or input) and (name != "output" or output)]
        record, first = await asyncio.gather(
            self._store.command("HMGET", keys.run(base, ref), *fields), self._first(base, ref)
        )
        return _run(run_id, fields, record, first)

    def events(self, base: str, ref: str, after: int, count: int) -> asyncio.Future[Reply]:
        """Ask for up to `count` events after an offset; `chunk_from` reads the reply."""
        return self._store.command("XRANGE", keys.log(base, ref), f"{after + 1}-0", "+", "COUNT", count)

    async def start(self, namespace: str, run_id: str, position: Position) -> Start:
        """Fix where a read begins.

        Raises:
            RunNotFound: There is no such run.
            CursorInvalid: The cursor is malformed or of another run.
            OffsetAhead: The position is after the newest event.
            EventsTrimmed: Events after it are gone, and the position does not allow a gap.
            LogRebuilt: The log is not the one that the position was taken from.
        """
        base, ref = self._store.place(namespace, run_id)
        at = position.WhichOneof("at")
        cursor = parse(ref, position.after_cursor) if at == "after_cursor" else None
        asked = cursor.offset if cursor else position.after_offset if at == "after_offset" else None
        fields = (*LISTED, "bytes")
        calls = [self._store.command("HMGET", keys.run(base, ref), *fields), self._first(base, ref)]
        if at != "last":
            calls.append(self.events(base, ref, asked or 0, FIRST_READ_EVENTS))
        if asked:
            calls.append(self._event(base, ref, asked))
        record, first, *reads = await asyncio.gather(*calls)
        run = _run(run_id, fields, record, first)
        cursors = Cursors(ref, run.log.log_id)
        if at == "last":
            after = max(run.log.last_offset - position.last, run.log.first_offset - 1)
            chunk_reply, at_reply = await asyncio.gather(
                self.events(base, ref, after, FIRST_READ_EVENTS), self._event(base, ref, after)
            )
        else:
            after = run.log.first_offset - 1 if asked is None else asked
            chunk_reply, at_reply = reads[0], reads[1] if asked else []
        hash_there = event_hash(framed(at_reply[0][1][1])) if at_reply else 0
        if position.log_id and position.log_id != run.log.log_id:
            raise LogRebuilt(run.log.log_id)
        if asked is not None:
            _check(run, cursors, asked, hash_there, cursor)
        resumed = after
        if asked is not None and asked + 1 < run.log.first_offset:
            if position.on_gap != GapPolicy.GAP_POLICY_SKIP:
                raise EventsTrimmed(run.log.first_offset)
            resumed = run.log.first_offset - 1
        chunk = chunk_from(chunk_reply, after)
        return Start(
            run=run,
            after=after,
            after_hash=hash_there,
            resumed=resumed,
            cursors=cursors,
            # What begins elsewhere was trimmed in this very moment: the next read finds that out.
            chunk=cut(chunk) if chunk.after == resumed else Chunk(resumed, []),
            sizing=Sizing(int(record[-1] or 0) // max(run.log.last_offset, 1)),
        )

    async def blob_piece(self, namespace: str, run_id: str, blob_uri: str, start: int) -> bytes:
        """Return up to BLOB_PIECE_BYTES of a blob from byte `start` on; nothing at its end.

        Raises:
            RunNotFound: There is no such run.
            BlobNotFound: The run has no such blob.
        """
        record, key = self._blob(namespace, run_id, blob_uri)
        known, exists, piece = await asyncio.gather(
            self._store.command("EXISTS", record),
            self._store.command("EXISTS", key),
            self._store.command("GETRANGE", key, start, start + BLOB_PIECE_BYTES - 1),
        )
        _check_blob(known, exists, run_id, blob_uri)
        return bytes(piece)

    async def blob_size(self, namespace: str, run_id: str, blob_uri: str) -> int:
        """Return how many bytes a blob has; raises as `blob_piece`."""
        record, key = self._blob(namespace, run_id, blob_uri)
        known, exists, size = await asyncio.gather(
            self._store.command("EXISTS", record),
            self._store.command("EXISTS", key),
            self._store.command("STRLEN", key),
        )
        _check_blob(known, exists, run_id, blob_uri)
        return int(size)

    def _blob(self, namespace: str, run_id: str, blob_uri: str) -> tuple[str, str]:
        """Return the keys of a run's record and of its blob."""
        base, ref = self._store.place(namespace, run_id)
        name = blob_uri.removeprefix(_BLOB_PREFIX)
        if name == blob_uri or not name:
            raise BlobNotFound(blob_uri)
        return keys.run(base, ref), keys.blob(base, ref, name)

    def _first(self, base: str, ref: str) -> asyncio.Future[Reply]:
        return self._store.command("XRANGE", keys.log(base, ref), "-", "+", "COUNT", 1)

    def _event(self, base: str, ref: str, offset: int) -> asyncio.Future[Reply]:
        return self._store.command("XRANGE", keys.log(base, ref), f"{offset}-0", f"{offset}-0")


def _check_blob(known: int, exists: int, run_id: str, blob_uri: str) -> None:
    if not known:
        raise RunNotFound(run_id)
    if not exists:
        raise BlobNotFound(blob_uri)


def _run(run_id: str, fields: Sequence[str], record: Sequence[bytes | None], first: Reply) -> Run:
    if record[0] is None:
        raise RunNotFound(run_id)
    run = run_from({name.encode(): value for name, value in zip(fields, record, strict=True)})
    run.log.first_offset = first_offset(first, run.log.last_offset)
    return run


def _check(run: Run, cursors: Cursors, asked: int, hash_there: int, cursor: Cursor | None) -> None:
    if cursor and cursor.log != cursors.log:
        raise LogRebuilt(run.log.log_id)
    if asked > run.log.last_offset:
        raise OffsetAhead(run.log.last_offset)
    if cursor and cursor.event and hash_there and cursor.event != hash_there:
        raise LogRebuilt(run.log.log_id)


def _offset(entry: Any) -> int:
    return int(entry[0].partition(b"-")[0])
