"""Group commit: what all runs of a process append in the same moment goes out in one pipeline and is synced once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from redis.exceptions import RedisError

from onward.log import (
    EVENT_BYTES_MAX,
    UNSENT_BYTES_MAX,
    UNSENT_EVENTS_MAX,
    AttemptFenced,
    EventTooLarge,
    LogClosed,
    LogError,
    LogFull,
    RunCancelling,
    add_usage,
    usage_of,
)
from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import RUN_STATE_CANCELLING, RunState, Usage
from onward_runlog import keys
from onward_runlog.bell import Bell
from onward_runlog.connection import Argument
from onward_runlog.errors import StoreUnavailable
from onward_runlog.record import pairs, usage_text
from onward_runlog.store import Store

logger = logging.getLogger(__name__)

LOG_EVENTS_MAX = 1_000_000
LOG_BYTES_MAX = 256 * 1024 * 1024
"""A live log is never trimmed: a run that reaches either is PAUSED with LOG_LIMIT. What lies beside it (memo, blobs)
counts as its bytes."""

WARN_AT = 0.9
"""Part of either limit at which the process that runs it says so."""

RETENTION_S = 7 * 24 * 3600
"""How long a finished run and its log are kept."""

BATCH_EVENTS_MAX = 512
BATCH_BYTES_MAX = EVENT_BYTES_MAX
"""What one run may add to one append, or one event."""

CALL_BYTES_MAX = 8 * 1024 * 1024
"""What one call of append may carry, or one run's batch: the server does nothing else meanwhile."""

LINGER_S = 0.005
"""How long an event that nobody waits for may wait for company."""

_LAST_STATES = (RunState.RUN_STATE_PAUSED, RunState.RUN_STATE_CANCELLED)
"""How a run may end whose log takes nothing else."""

READ_EVENTS = 500
"""Events in one read of a replay."""

PAUSE_S = 1.0
"""Pause before a server that refuses writes (out of memory, disk full) is asked again."""


@dataclass(slots=True)
class _Unsent:
    """What goes into the log in one step: an event, values for the memo, entries for the outbox."""

    event: bytes | None
    usage: Usage | None
    memo: tuple[str | bytes, ...]
    outbox: Sequence[bytes]
    size: int


@dataclass(slots=True)
class _Batch:
    log: RedisAttemptLog
    items: int
    events: int
    size: int
    arguments: list[Argument]


class LogWriter:
    """Appends for all runs that a process holds."""

    def __init__(
        self,
        store: Store,
        *,
        log_events_max: int = LOG_EVENTS_MAX,
        log_bytes_max: int = LOG_BYTES_MAX,
        retention_s: float = RETENTION_S,
        on_commit: Callable[[float], None] = lambda _duration_s: None,
    ) -> None:
        """Args:
        on_commit: Called with the seconds that each batch took, from being sent until it was acknowledged.
        """
        self._on_commit = on_commit
        self.store = store
        self.limits = (log_events_max, log_bytes_max)
        self._limits = (*self.limits, int(retention_s * 1000))
        self.warn_events, self.warn_bytes = WARN_AT * log_events_max, WARN_AT * log_bytes_max
        self._dirty: dict[RedisAttemptLog, None] = {}
        self._loop = asyncio.get_running_loop()
        self._wanted = Bell()
        self._linger: asyncio.TimerHandle | None = None
        self._insisting: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[LogWriter]:
        """Commit until the block ends. What is unsent then is lost: end the attempts first."""
        task = asyncio.create_task(self._serve(), name="log writer")
        try:
            yield self
        finally:
            if self._linger is not None:
                self._linger.cancel()
            tasks = [task, *self._insisting]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def log(
        self,
        namespace: str,
        run_id: str,
        attempt: int,
        *,
        last_offset: int = 0,
        on_cancelling: Callable[[], None] = lambda: None,
    ) -> RedisAttemptLog:
        """Return the log of a run for the attempt that holds it.

        Args:
            last_offset: The log's newest offset when the run was claimed.
            on_cancelling: Called when a reply tells that the run's cancellation was asked for, so that it takes effect
                also where the call that says so was lost.
        """
        base, ref = self.store.place(namespace, run_id)
        return RedisAttemptLog(self, base, ref, attempt, last_offset, on_cancelling)

    def touch(self, log: RedisAttemptLog, *, urgent: bool) -> None:
        """Note that a log has something to send: at once, or within LINGER_S."""
        self._dirty[log] = None
        if urgent:
            self._wanted.ring()
        elif self._linger is None:
            self._linger = self._loop.call_later(LINGER_S, self._lingered)

    def _lingered(self) -> None:
        self._linger = None
        if self._dirty:
            self._wanted.ring()

    async def _serve(self) -> None:
        while True:
            await self._wanted.answer()
            dirty, self._dirty = self._dirty, {}
            by_base: dict[str, list[_Batch]] = {}
            for log in dirty:
                if batch := log.take():
                    by_base.setdefault(log.base, []).append(batch)
            began = self._loop.time()
            under_way = [
                (base, group, self._append(base, group))
                for base, batches in by_base.items()
                for group in _groups(batches)
            ]
            try:
                for base, group, replies in under_way:
                    await self._settle(base, group, replies, began)
            finally:
                for _, _, replies in under_way:
                    replies.cancel()

    def _append(self, base: str, batches: list[_Batch]) -> asyncio.Future[Any]:
        arguments: list[Argument] = [*self._limits]
        for batch in batches:
            arguments += batch.arguments
        # For ever: the sequence number makes a repeat harmless, and nobody else may answer for these events.
        return self.store.call("append", base, *arguments, patience_s=float("inf"))

    async def _settle(self, base: str, batches: list[_Batch], under_way: asyncio.Future[Any], began: float) -> None:
        try:
            replies = await under_way
        except (RedisError, StoreUnavailable) as error:
            logger.error("the store refuses to write for %d runs, trying on: %s", len(batches), error)
            for batch in batches:
                task = asyncio.create_task(self._commit_alone(base, batch), name="log writer insists")
                self._insisting.add(task)
                task.add_done_callback(self._insisting.discard)
        else:
            self._on_commit(self._loop.time() - began)
            for batch, reply in zip(batches, replies, strict=True):
                batch.log.settle(batch, reply)

    async def _commit_alone(self, base: str, batch: _Batch) -> None:
        """What is wrong with one run must not hold up the others."""
        await asyncio.sleep(PAUSE_S)
        [reply] = await self.insist("append", base, *self._limits, *batch.arguments)
        batch.log.settle(batch, reply)

    async def insist(self, function: str, base: str, *arguments: Argument) -> Any:
        """Call a function that may be repeated until the server takes it, and return its reply."""
        while True:
            try:
                return await self.store.call(function, base, *arguments, patience_s=float("inf"))
            except (RedisError, StoreUnavailable) as error:
                logger.debug("the store refuses %s: %s", function, error)
            await asyncio.sleep(PAUSE_S)


class RedisAttemptLog:
    """An AttemptLog (see onward.log) on Redis."""

    def __init__(
        self,
        writer: LogWriter,
        base: str,
        ref: str,
        attempt: int,
        last_offset: int,
        on_cancelling: Callable[[], None],
    ) -> None:
        self.on_others: Callable[[], None] | None = None
        self._on_cancelling = on_cancelling
        self.base = base
        self.ref = ref
        self.attempt = attempt
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._sequence = 0
        self._blobs = 0
        self._unsent: deque[_Unsent] = deque()
        self._unsent_bytes = 0
        self._ending: tuple[str, bytes, bytes] | None = None
        self._in_flight = False
        self._warned = False
        self._handed_over = 0
        self._committed = 0
        self._last_offset = last_offset
        """The newest offset that this attempt knows of."""
        self._told = 0
        """The newest that it was told of; if that is above, an append of nothing asks what is there."""
        self._asked = 0
        """What it had been told of when it asked last: if the log is shorter all the same, that was wrong."""
        self._gaps: list[tuple[int, int]] = []
        """Where others wrote, after one offset and up to the other, and `others` has not told yet."""
        self._heard = 0
        """How often others turned out to have written."""
        self._idle: asyncio.Future[None] | None = None
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._crowded: list[asyncio.Future[None]] = []
        self._refused: LogError | None = None
        self._finishing: LogError | None = None
        """What is said to whoever comes after `finish`: nothing follows the closing event."""

    # What the engine calls.

    def post(self, event: Event, memo: Mapping[str, bytes] | None = None, *, outbox: Sequence[bytes] = ()) -> None:
        """See AttemptLog.post."""
        data = _serialized(event)
        if self._refused is None and self._finishing is None:
            self._take_in(data, usage_of(event), memo, outbox)
            self._writer.touch(self, urgent=False)

    async def append(
        self, *events: Event, memo: Mapping[str, bytes] | None = None, outbox: Sequence[bytes] = ()
    ) -> int:
        """See AttemptLog.append."""
        self._raise_refusal()
        encoded = [(_serialized(event), usage_of(event)) for event in events]
        for data, usage in encoded[:-1]:
            self._take_in(data, usage)
        if encoded:
            self._take_in(*encoded[-1], memo, outbox)
        elif memo or outbox:
            self._take_in(None, None, memo, outbox)
        return await self._commit()

    @property
    def crowded(self) -> bool:
        """See AttemptLog.crowded."""
        return self._is_crowded() or self._refused is not None or self._finishing is not None

    async def room(self) -> None:
        """See AttemptLog.room."""
        while self._is_crowded():
            self._raise_refusal()
            room: asyncio.Future[None] = self._loop.create_future()
            self._crowded.append(room)
            await room
        self._raise_refusal()

    async def finish(self, event: Event, *, outbox: Sequence[bytes] = ()) -> None:
        """See AttemptLog.finish."""
        change = event.run_state_changed
        data = _serialized(event)
        if change.state in _LAST_STATES and isinstance(self._refused, LogFull | RunCancelling):
            self._refused = self._finishing = None
        self._raise_refusal()
        output = change.output.SerializeToString() if change.HasField("output") else b""
        error = change.error.SerializeToString() if change.HasField("error") else b""
        self._take_in(data, None, None, outbox)
        into = str(int(change.state))
        if change.continued_as_run_id:
            into = f"{into} {change.continued_as_run_id}"
        self._ending = (into, output, error)
        paused = change.state == RunState.RUN_STATE_PAUSED
        self._finishing = AttemptFenced("the run was paused") if paused else LogClosed("the run has ended")
        await self._commit()

    async def park(self, event: Event, *, wake_s: float | None) -> bool:
        """See AttemptLog.park."""
        data = _serialized(event)
        waiting = event.run_waiting
        heard = self._heard
        while self._in_flight or self._unsent:
            self._raise_refusal()
            self._idle = self._loop.create_future()
            self._writer.touch(self, urgent=True)
            await self._idle
        self._raise_refusal()
        if self._gaps or self._is_behind() or self._heard != heard:
            # Also where `others` has been called meanwhile: what it tells comes too late for a run that is let go.
            return False
        self._in_flight = True
        self._sequence += 1
        arguments: list[Argument] = [self.ref, self.attempt, self._sequence, self._last_offset, *self._writer.limits]
        arguments += [data, waiting.reason, "" if wake_s is None else max(0, round(wake_s * 1000))]
        status, state, _, last_offset, _ = await self._writer.insist(
            "park", self.base, *arguments, len(waiting.signals), *waiting.signals
        )
        self._in_flight = False
        if status == b"ok":
            self._finishing = AttemptFenced("the run is parked")
            return True
        if status != b"stale":
            refusal = self._refusal(status)
            self._refuse(refusal)
            raise refusal
        self._sequence -= 1  # the log did not count it
        self._know(last_offset, last_offset)
        if self._unsent:
            self._writer.touch(self, urgent=True)
        if state == RUN_STATE_CANCELLING:
            self._on_cancelling()
        return False

    async def others(self) -> Sequence[Event]:
        """See AttemptLog.others."""
        gaps, self._gaps = self._gaps, []
        return [event for after, through in gaps async for event in self.read(after=after, through=through)]

    async def read(self, *, after: int = 0, through: int | None = None) -> AsyncIterator[Event]:
        """See AttemptLog.read; `through` is the last offset that is wanted."""
        while True:
            start, end = f"{after + 1}-0", "+" if through is None else f"{through}-0"
            log = keys.log(self.base, self.ref)
            entries = await self._command("XRANGE", log, start, end, "COUNT", READ_EVENTS)
            for _, fields in entries:
                event = Event.FromString(fields[1])
                after = event.offset
                yield event
            if len(entries) < READ_EVENTS:
                return

    async def read_memo(self) -> Mapping[str, bytes]:
        """See AttemptLog.read_memo."""
        memo = pairs(await self._command("HGETALL", keys.memo(self.base, self.ref)))
        return {name.decode(): value for name, value in memo.items()}

    async def put_blob(self, data: bytes) -> str:
        """See AttemptLog.put_blob."""
        self._raise_refusal()
        self._blobs += 1
        name = f"{self.attempt}-{self._blobs}"
        [status] = await self._writer.insist("blob", self.base, self.ref, self.attempt, name, data)
        if status != b"ok":
            raise self._refusal(status)
        return f"blob:{name}"

    async def get_blob(self, blob_uri: str, run_id: str = "") -> bytes:
        """See AttemptLog.get_blob."""
        base, ref = self.base, self.ref
        if run_id:
            base, ref = self._writer.store.place(ref.partition("/")[0], run_id)
        value: bytes | None = await self._command("GET", keys.blob(base, ref, blob_uri.removeprefix("blob:")))
        if value is None:
            raise KeyError(blob_uri)
        return value

    def _command(self, *command: Argument) -> asyncio.Future[Any]:
        # For ever, as an append: an attempt goes on when the store is back.
        return self._writer.store.command(*command, patience_s=float("inf"))

    # What the writer calls.

    def take(self) -> _Batch | None:
        """Return what goes out next, or None: one batch of a log is under way at a time, so order is kept."""
        asks = self._is_behind() and self._sequence > 0 and not self._finishing
        if self._in_flight or self._refused or not (self._unsent or asks):
            return None
        events: list[bytes] = []
        memo: list[Argument] = []
        outbox: list[Argument] = []
        used: Usage | None = None
        items, size = 0, 0
        for item in self._unsent:
            if items == BATCH_EVENTS_MAX or (items and size + item.size > BATCH_BYTES_MAX):
                break
            if item.event is not None:
                events.append(item.event)
            memo += item.memo
            outbox += item.outbox
            if item.usage is not None:
                used = used or Usage()
                add_usage(used, item.usage)
            items += 1
            size += item.size
        ending: tuple[str, bytes, bytes] = ("", b"", b"")
        if self._ending and items == len(self._unsent):  # the closing event is the newest
            ending, self._ending = self._ending, None
            size += len(ending[1]) + len(ending[2])
        self._in_flight = True
        self._asked = self._told
        self._sequence += 1
        arguments: list[Argument] = [self.ref, self.attempt, self._sequence, *ending]
        arguments += ("" if used is None else usage_text(used), len(events), *events)
        arguments += (len(memo) // 2, *memo, len(outbox), *outbox)
        return _Batch(self, items, len(events), size, arguments)

    def told(self, last_offset: int) -> None:
        """Learn from elsewhere how long the log is: what is above the last reply may be somebody else's."""
        if self.on_others is not None and last_offset > max(self._told, self._last_offset):
            self._told = last_offset
            self._writer.touch(self, urgent=True)

    def settle(self, batch: _Batch, reply: list[Any]) -> None:
        """Take the function's reply to the batch under way."""
        self._in_flight = False
        status, state, _, last_offset, size = reply
        if status != b"ok":
            self._refuse(self._refusal(status))
            return
        if not self._warned and (last_offset > self._writer.warn_events or size > self._writer.warn_bytes):
            self._warned = True
            logger.warning("the log of run %s is at nine tenths of its limit: full, the run is paused", self.ref)
        for _ in range(batch.items):
            self._unsent_bytes -= self._unsent.popleft().size
        self._committed += batch.items
        self._know(last_offset, last_offset - batch.events)
        while self._waiting and self._waiting[0][0] <= self._committed:
            waiter = self._waiting.popleft()[1]
            if not waiter.done():
                waiter.set_result(last_offset)
        if self._crowded and not self._is_crowded():
            self._let_in()
        if self._unsent:
            self._writer.touch(self, urgent=bool(self._waiting or self._idle))
        elif self._is_behind():
            self._writer.touch(self, urgent=True)
        self._rest()
        if state == RUN_STATE_CANCELLING:
            self._on_cancelling()

    def _know(self, last_offset: int, others_through: int) -> None:
        """Note how long the log is, and up to where others wrote after what was known before."""
        gap = (self._last_offset, others_through)
        self._last_offset = last_offset
        if gap[0] < gap[1]:
            self._heard += 1
            self._gaps.append(gap)
            if self.on_others is not None:
                self.on_others()

    def _is_behind(self) -> bool:
        return self._told > max(self._last_offset, self._asked)

    def _rest(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _take_in(
        self,
        event: bytes | None,
        usage: Usage | None,
        memo: Mapping[str, bytes] | None = None,
        outbox: Sequence[bytes] = (),
    ) -> None:
        size = len(event) if event is not None else 0
        pairs: tuple[str | bytes, ...] = ()
        if memo:
            pairs = tuple(chain.from_iterable(memo.items()))
            size += sum(map(len, pairs))
        size += sum(map(len, outbox))
        self._unsent.append(_Unsent(event, usage, pairs, outbox, size))
        self._unsent_bytes += size
        self._handed_over += 1

    async def _commit(self) -> int:
        if self._committed == self._handed_over:
            return self._last_offset
        committed: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append((self._handed_over, committed))
        self._writer.touch(self, urgent=True)
        return await committed

    def _is_crowded(self) -> bool:
        return len(self._unsent) >= UNSENT_EVENTS_MAX or self._unsent_bytes >= UNSENT_BYTES_MAX

    def _let_in(self) -> None:
        for room in self._crowded:
            if not room.done():
                room.set_result(None)
        self._crowded.clear()

    def _raise_refusal(self) -> None:
        if error := self._refused or self._finishing:
            raise type(error)(*error.args)

    def _refusal(self, status: bytes) -> LogError:
        match status:
            case b"closed":
                return LogClosed(f"run {self.ref} has ended")
            case b"full":
                events_max, bytes_max = self._writer.limits
                limit = f"{events_max:,} events or {bytes_max:,} bytes, with the results that lie beside it"
                return LogFull(f"the log of run {self.ref} is at its limit of {limit}")
            case b"cancelling":
                return RunCancelling(f"run {self.ref} is to be cancelled: it does not pause")
            case b"jump":
                return AttemptFenced(f"an append to run {self.ref} is missing")
            case _:
                return AttemptFenced(f"another attempt holds run {self.ref}, or it was taken back")

    def _refuse(self, error: LogError) -> None:
        self._refused = error
        if isinstance(error, LogFull | RunCancelling):
            self._sequence -= 1  # the log did not count it: `finish` comes in its place
        self._unsent.clear()
        self._unsent_bytes = 0
        self._handed_over = self._committed
        self._ending = None
        for _, waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(error)
        self._waiting.clear()
        self._let_in()
        self._rest()


def _serialized(event: Event) -> bytes:
    data = event.SerializeToString()
    if len(data) > EVENT_BYTES_MAX:
        raise EventTooLarge(len(data))
    return data


def _groups(batches: list[_Batch]) -> Iterator[list[_Batch]]:
    """Yield the batches in groups of at most CALL_BYTES_MAX, or one."""
    group: list[_Batch] = []
    size = 0
    for batch in batches:
        if group and size + batch.size > CALL_BYTES_MAX:
            yield group
            group, size = [], 0
        group.append(batch)
        size += batch.size
    yield group
