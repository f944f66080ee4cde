"""What earlier attempts left: results to give again, what had been shown already, and in which order it all went.

`read` makes it from one pass over the log. It keeps what a later attempt can ask for and no more: of a finished
instance its result, of an unfinished one what it had shown, of what lies below a finished one nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count, repeat

from pydantic_core import from_json, to_json

from onward.log import ASKED, INLINE_BYTES_MAX, PLACES, AttemptLog
from onward.turns import NEVER
from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_WOKEN,
    OUTCOME_CANCELLED,
    OUTCOME_ERROR,
    OUTCOME_OK,
    Event,
    Outcome,
    OutputDelta,
    SignalReceived,
)
from onward.v1.run_pb2 import Payload, RunError

ITEMS = "application/vnd.onward.items+json"
"""Media type of a memo that holds a stream's items one by one, as a JSON array."""

DELTAS = "application/vnd.onward.deltas"
"""Media type of a memo that says: the items are the instance's deltas in the log, one each."""

PIECES = "application/vnd.onward.pieces"
"""Media type of a memo that says: the items are in pieces of their own in the memo, beside their deltas in the log."""

BUDGET, PROVIDER = BEFORE_ASKING = "onward.budget", "onward.provider"
"""What a model call's waits are called: for its budget, and for a provider that is down. They come before anything that
the call shows."""

_Line = tuple[str, bytes]


class Trail:
    """What one instance had shown that is not void, and what of it has come again."""

    __slots__ = ("_lines", "_said", "deltas", "last")

    def __init__(self) -> None:
        self.deltas: deque[tuple[int, OutputDelta]] = deque()
        """What has not come again, oldest first."""
        self.last = 0
        """The offset of the last delta that did."""
        self._lines: dict[_Line, deque[int]] = {}
        self._said: list[tuple[int, Event]] = []

    def __bool__(self) -> bool:
        return bool(self.deltas or self._lines)

    # Reading

    def add(self, kind: str, event: Event) -> None:
        """Take in an event of the log."""
        if kind == "output_delta":
            self.deltas.append((event.offset, event.output_delta))
        else:
            self._lines.setdefault(_line(event), deque()).append(event.offset)

    def void(self, after_offset: int) -> None:
        """Forget what came after."""
        while self.deltas and self.deltas[-1][0] > after_offset:
            self.deltas.pop()
        for line, offsets in list(self._lines.items()):
            while offsets and offsets[-1] > after_offset:
                offsets.pop()
            if not offsets:
                del self._lines[line]

    # Matching

    def has_line(self, event: Event) -> bool:
        """Tell whether a status or published value stands in the log already; each one there counts once."""
        line = _line(event)
        offsets = self._lines.get(line)
        offset = NEVER
        if offsets:
            offset = offsets.popleft()
            if not offsets:
                del self._lines[line]
        if self.deltas:
            # As long as a delta may turn out not to match, it may have to be said again.
            self._said.append((offset, event))
        return offset != NEVER

    def match(self) -> None:
        """The next delta has come again."""
        self.last, _ = self.deltas.popleft()
        if not self.deltas:
            self._said.clear()

    def rest(self) -> list[Event]:
        """Void everything after the last delta that matched, and return what has to be said again."""
        again = [event for offset, event in self._said if offset > self.last]
        self.void(self.last)
        self._said.clear()
        return again


def _line(event: Event) -> _Line:
    kind = event.WhichOneof("kind") or ""
    return kind, getattr(event, kind).SerializeToString()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of what a stream gave, where its deltas do not tell all of it. Piece n of instance c is "c/n" in the memo.

    Attributes:
        deltas: How many deltas show it.
        epoch: Eight bytes that all pieces of one reading share. A stream that begins anew writes over the pieces of the
            one before, and may end sooner.
        data: What it is.
    """

    deltas: int
    epoch: bytes
    data: bytes

    def dump(self) -> bytes:
        """Return its bytes."""
        return self.deltas.to_bytes(4, "big") + self.epoch + self.data

    @classmethod
    def load(cls, data: bytes) -> Piece:
        """Return the piece that `dump` made bytes of."""
        return cls(int.from_bytes(data[:4], "big"), data[4:12], data[12:])


class Places:
    """After which offset of the log each item of a stream was given, where the log does not show the items.

    Its reader may have called something between two of them, so they cannot all come again where the stream ended.
    """

    def __init__(self) -> None:
        self._runs: list[list[int]] = []

    def add(self, offset: int) -> None:
        """An item is given now, after what stands at `offset` and before what stands next."""
        if self._runs and self._runs[-1][0] == offset:
            self._runs[-1][1] += 1
        else:
            self._runs.append([offset, 1])

    def beside(self, instance_id: str) -> dict[str, bytes]:
        """Return them for the memo. So many that they take too much room are not kept."""
        data = to_json(self._runs)
        return {instance_id + PLACES: data} if self._runs and len(data) <= INLINE_BYTES_MAX else {}

    @staticmethod
    def load(data: bytes, otherwise: int) -> Iterator[int]:
        """Yield the offset of each item, and for those of which nothing is known `otherwise`."""
        runs = from_json(data) if data else ()
        # 0 is where nothing at all had been given before.
        return chain(chain.from_iterable(repeat(offset or 1, times) for offset, times in runs), repeat(otherwise))


@dataclass(slots=True, eq=False)
class Record:
    """What earlier attempts left of one instance.

    Attributes:
        id: The instance; empty for the body.
        name: Its component.
        parent: Who called it; None for the body.
        started_offset: Where it began first.
        started_s: When it did, in seconds since the epoch.
        digest: Identifies its input.
        tries: How many of its tries have failed.
        uncounted: How many of them do not count among those of its policy.
        fell_back: No further try follows: its fallback answers.
        try_s: When its present try began, or is to begin, in seconds since the epoch.
        delay_s: The wait before that.
        finished_offset: Where it ended; 0 where it did not.
        outcome: How it ended.
        due_s: When the time of a wait is up, in seconds since the epoch; None is never.
        signal_offset: The signal that a wait took.
        output: Its result as readers see it.
        memo: Its result where that differs.
        error: Why it failed.
        pieces: What it gave, where it is a stream that wrote pieces.
        places: When it gave them, where it is a stream whose items the log does not show. See `Places`.
        trail: What it had shown.
        below: Its calls by id, those that a later attempt can meet again.
        gone: Ids below it that it cannot, and that had shown something.
        called_offset: Where it last began a call of its own in its present try; 0 where it did not.
        first_item_offset: Its first delta that is not void; 0 where there is none.
        holds_offset: What stands from here on waits until it is called again. That is where it began first, but where
            it comes later this time.
        met: It was called again, or nobody waits for that any more.
    """

    id: str
    name: str = ""
    parent: Record | None = None
    started_offset: int = 0
    started_s: float = 0.0
    digest: bytes = b""
    tries: int = 0
    uncounted: int = 0
    fell_back: bool = False
    try_s: float = 0.0
    delay_s: float = 0.0
    finished_offset: int = 0
    outcome: Outcome.ValueType = 0  # type: ignore[assignment]
    due_s: float | None = None
    signal_offset: int = 0
    output: Payload | None = None
    memo: Payload | None = None
    error: RunError | None = None
    pieces: list[Piece] = field(default_factory=list)
    places: bytes = b""
    trail: Trail = field(default_factory=Trail)
    below: dict[str, Record] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    called_offset: int = 0
    holds_offset: int = 0
    met: bool = False

    @property
    def remembered(self) -> bool:
        """Whether it is given again instead of being run."""
        return self.outcome in (OUTCOME_OK, OUTCOME_ERROR)

    @property
    def cancelled(self) -> bool:
        return self.outcome == OUTCOME_CANCELLED

    @property
    def items_are_used(self) -> bool:
        """Whether its caller went on with its items: it called a component after the first, or has left the stream."""
        deltas = self.trail.deltas
        if not deltas or self.parent is None:
            return False
        return self.cancelled or self.parent.called_offset > deltas[0][0]

    def all_below(self) -> Iterator[Record]:
        """Yield every record below it."""
        stack = list(self.below.values())
        while stack:
            one = stack.pop()
            yield one
            stack.extend(one.below.values())


class Past:
    """Everything that earlier attempts left.

    Attributes:
        records: By id; what nobody can ask for is not there. The body is there always.
        shown: Ids of instances that have shown something which is not void.
        resumed_s: When the run was last taken up after an attempt was lost, in seconds since the epoch. A wait that it
            parked for is no loss.
        signals: The signals that came, by offset.
        taken: The signals that a wait took whose result counts, each with the ids of those above and of the wait.
        asked: The schemas of what is asked for, by the name of the signal.
        children: The runs that it started, each with the ids of the instance that did and of those above it; without
            those that were cancelled with a failed try, or outlive the run.
        children_started: All that it ever started.
    """

    def __init__(self, memo: Mapping[str, bytes]) -> None:
        self.root = Record("")
        self.records: dict[str, Record] = {"": self.root}
        self.shown: dict[str, None] = {}
        self.resumed_s = 0.0
        self.signals: dict[int, SignalReceived] = {}
        self.taken: dict[int, tuple[str, ...]] = {}
        self.asked = {name.removeprefix(ASKED): value for name, value in memo.items() if name.startswith(ASKED)}
        self.children: dict[str, tuple[str, ...]] = {}
        self.children_started: set[str] = set()
        self._memo = memo
        self._void: dict[str, None] = {}
        """Shown in a failed try whose Rollback is missing."""

    def take(self, event: Event) -> None:
        """Take in the next event of the log."""
        kind = event.WhichOneof("kind")
        if kind == "component_started":
            self._started(event)
        elif kind == "component_finished":
            self._finished(event)
        elif kind in ("output_delta", "status_updated", "published"):
            self.shown[event.component_id] = None
            record = self.records.get(event.component_id)
            if record is not None:
                record.trail.add(kind, event)
        elif kind == "component_retrying":
            self._retrying(event)
        elif kind == "child_started":
            self._child(event)
        elif kind == "signal_received":
            self.signals[event.offset] = event.signal_received
        elif kind == "rollback":
            for component_id in event.rollback.component_ids:
                self._rolled_back(component_id, event.rollback.after_offset)
        elif kind == "attempt_started":
            began_s = _seconds(event)
            if not self.root.started_s:
                self.root.started_s = self.root.try_s = began_s
            if event.attempt_started.cause != ATTEMPT_CAUSE_WOKEN:
                self.resumed_s = began_s

    def _child(self, event: Event) -> None:
        child, record = event.child_started, self.records.get(event.component_id)
        self.children_started.add(child.run_id)
        if not child.detached and record is not None:
            self.children[child.run_id] = tuple(_path(record))

    def _started(self, event: Event) -> None:
        started = event.component_started
        parent = self.records.get(started.parent_id)
        if parent is None or parent.remembered:
            return  # Below what is finished.
        record = self.records.get(event.component_id)
        if record is None:
            record = Record(event.component_id, started.name, parent, event.offset, _seconds(event))
            record.try_s = record.started_s
            self.records[record.id] = parent.below[record.id] = record
        if started.name not in BEFORE_ASKING:
            parent.called_offset = event.offset
        record.digest = started.input_digest
        if started.HasField("due_time"):
            record.due_s = started.due_time.ToNanoseconds() / 1e9
        record.finished_offset = 0
        record.outcome = 0  # type: ignore[assignment]

    def _finished(self, event: Event) -> None:
        record = self.records.get(event.component_id)
        if record is None:
            return
        finished = event.component_finished
        record.finished_offset = event.offset
        record.outcome = finished.outcome
        if not record.remembered:
            return
        if finished.signal_offset:
            record.signal_offset = finished.signal_offset
            self.taken[finished.signal_offset] = tuple(_path(record))
        memo = self._memo.get(record.id)
        record.memo = Payload.FromString(memo) if memo is not None else None
        record.places = self._memo.get(record.id + PLACES, b"")
        if finished.outcome == OUTCOME_ERROR:
            record.error = finished.error
        elif finished.output.WhichOneof("value") is not None:
            record.output = finished.output
        elif memo is None and not finished.signal_offset:
            record.outcome = 0  # type: ignore[assignment]  # Written by a version that remembered nothing.
        self.drop_below(record)
        if record.memo is None or record.memo.media_type not in (DELTAS, PIECES):
            record.trail = Trail()

    def _retrying(self, event: Event) -> None:
        record = self.records.get(event.component_id)
        if record is None:
            return
        retrying = event.component_retrying
        record.tries += 1
        record.uncounted += retrying.uncounted
        record.fell_back = retrying.fallback
        record.delay_s = retrying.delay.ToMilliseconds() / 1000
        record.try_s = _seconds(event) + record.delay_s
        self.taken = {offset: path for offset, path in self.taken.items() if record.id not in path}
        self.children = {run_id: path for run_id, path in self.children.items() if record.id not in path}
        self._void.update(dict.fromkeys(self.shown_by(record)))
        self.forget(record)

    def _rolled_back(self, component_id: str, after_offset: int) -> None:
        self._void.pop(component_id, None)
        record = self.records.get(component_id)
        if record is not None:
            record.trail.void(after_offset)
        if after_offset == 0 or (record is not None and not record.trail):
            self.shown.pop(component_id, None)

    def drop_below(self, record: Record) -> None:
        """Forget what lies below, but not that it had shown something."""
        for one in record.all_below():
            self.records.pop(one.id, None)
            one.met = True
            record.gone.extend(name for name in (one.id, *one.gone) if name in self.shown)
        record.below.clear()

    def forget(self, record: Record) -> None:
        """A try failed: nothing that came of it counts."""
        for one in record.all_below():
            self.records.pop(one.id, None)
            one.met = True
        record.below.clear()
        record.gone.clear()
        record.trail = Trail()
        record.called_offset = 0

    def shown_by(self, record: Record) -> Iterator[str]:
        """Yield the ids of the instance and of those below it that have shown what is not void."""
        for one in (record, *record.all_below()):
            yield from (name for name in (one.id, *one.gone) if name in self.shown)

    # After the last event

    def close(self) -> Iterable[str]:
        """Return whom the Rollback of the lost attempt names, and forget what they had shown.

        These are unfinished instances that had called nothing: they run again from their first line. What had called
        something is matched instead, and so is what was cancelled, which likely nobody calls to its end again.
        """
        lost = dict(self._void)
        for record in self._unfinished():
            if record.called_offset or record.items_are_used or record.id not in self.shown:
                continue
            lost[record.id] = None
            record.trail = Trail()
        for name in lost:
            self.shown.pop(name, None)
        self._void.clear()
        for record in self.records.values():
            if record.items_are_used or (record.memo is not None and record.memo.media_type == PIECES):
                record.pieces = list(self._pieces(record.id))
        self._memo = {}
        return lost

    def _pieces(self, name: str) -> Iterator[Piece]:
        epoch = None
        for number in count():
            data = self._memo.get(f"{name}/{number}")
            if data is None:
                return
            piece = Piece.load(data)
            if piece.epoch != (epoch := epoch or piece.epoch):
                return
            yield piece

    def expected(self) -> list[Record]:
        """Return what the same code calls again, in the order in which it does so."""
        cancelled = {id(one) for record in self.records.values() if record.cancelled for one in record.all_below()}
        found = [one for one in self.records.values() if one.parent is not None and id(one) not in cancelled]
        for one in found:
            one.holds_offset = one.started_offset
        found.sort(key=_by_place)
        for stream in found:
            if not stream.outcome and stream.items_are_used:
                _come_later(stream)
        return sorted((one for one in found if one.holds_offset < NEVER), key=_by_place)

    def _unfinished(self) -> Iterator[Record]:
        ended = {id(one) for record in self.records.values() if record.cancelled for one in record.all_below()}
        for record in self.records.values():
            if record.parent is not None and not record.outcome and id(record) not in ended:
                yield record


async def read(log: AttemptLog) -> Past:
    """Return what the attempts before this one left in the log."""
    past = Past(await log.read_memo())
    async for event in log.read():
        past.take(event)
    return past


def _seconds(event: Event) -> float:
    return event.create_time.seconds + event.create_time.nanos / 1e9


def _path(record: Record) -> Iterator[str]:
    above: Record | None = record
    while above is not None:
        yield above.id
        above = above.parent


def _come_later(stream: Record) -> None:
    """Note when what lies below a stream is called again whose reader is given the recorded items first.

    Its code begins when the reader asks for more than these. That the reader had done so the last time is known from
    what the code called after the last of them; where it called nothing, nobody may wait for it.
    """
    last, _ = stream.trail.deltas[-1]
    below = list(stream.all_below())
    again = min((one.holds_offset for one in below if one.started_offset > last), default=NEVER)
    for one in below:
        if one.started_offset < last:
            one.holds_offset = max(one.holds_offset, again)


def _by_place(record: Record) -> tuple[int, int]:
    return record.holds_offset, record.started_offset
