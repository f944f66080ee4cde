"""Group commit: what all runs of a process append in the same moment goes out in one pipeline and is synced once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from onward.log import (
    EVENT_BYTES_MAX,
    UNSENT_BYTES_MAX,
    UNSENT_EVENTS_MAX,
    AttemptFenced,
    EventTooLarge,
    LogClosed,
    LogError,
    LogFull,
)
from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import RunState
from onward_runlog import keys
from onward_runlog.connection import Argument
from onward_runlog.record import pairs
from onward_runlog.store import Store

logger = logging.getLogger(__name__)

LOG_EVENTS_MAX = 1_000_000
LOG_BYTES_MAX = 256 * 1024 * 1024
"""A live log is never trimmed: a run that reaches either is PAUSED with LOG_LIMIT."""

RETENTION_S = 7 * 24 * 3600
"""How long a finished run and its log are kept."""

BATCH_EVENTS_MAX = 512
BATCH_BYTES_MAX = EVENT_BYTES_MAX
"""What one run may add to one append, or one event."""

LINGER_S = 0.002
"""How long an event that nobody waits for may wait for company."""

READ_EVENTS = 500
"""Events in one read of a replay."""

PAUSE_S = 1.0
"""Pause before a server that refuses writes (out of memory, disk full) is asked again."""

_REFUSALS: dict[bytes, type[LogError]] = {
    b"fenced": AttemptFenced,
    b"jump": AttemptFenced,
    b"closed": LogClosed,
    b"full": LogFull,
}


@dataclass(slots=True)
class _Batch:
    log: RedisAttemptLog
    events: int
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
    ) -> None:
        self.store = store
        self._limits: tuple[Argument, ...] = (log_events_max, log_bytes_max, int(retention_s * 1000))
        self._dirty: dict[RedisAttemptLog, None] = {}
        self._wanted = asyncio.Event()
        self._linger: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[LogWriter]:
        """Commit until the block ends. What is unsent then is lost: end the attempts first."""
        task = asyncio.create_task(self._serve(), name="log writer")
        try:
            yield self
        finally:
            if self._linger is not None:
                self._linger.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def log(
        self, namespace: str, run_id: str, attempt: int, *, on_cancelling: Callable[[], None] = lambda: None
    ) -> RedisAttemptLog:
        """Return the log of a run for the attempt that holds it.

        Args:
            on_cancelling: Called when a reply tells that the run's cancellation was asked for, so that it takes effect
                also where the call that says so was lost.
        """
        base, ref = self.store.place(namespace, run_id)
        return RedisAttemptLog(self, base, ref, attempt, on_cancelling)

    def touch(self, log: RedisAttemptLog, *, urgent: bool) -> None:
        """Note that a log has something to send: at once, or within LINGER_S."""
        self._dirty[log] = None
        if urgent:
            self._wanted.set()
        elif self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._lingered)

    def _lingered(self) -> None:
        self._linger = None
        if self._dirty:
            self._wanted.set()

    async def _serve(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            dirty, self._dirty = self._dirty, {}
            by_base: dict[str, list[_Batch]] = {}
            for log in dirty:
                if batch := log.take():
                    by_base.setdefault(log.base, []).append(batch)
            await asyncio.gather(*(self._commit(base, batches) for base, batches in by_base.items()))

    async def _commit(self, base: str, batches: list[_Batch]) -> None:
        arguments: list[Argument] = [*self._limits]
        for batch in batches:
            arguments += batch.arguments
        while True:
            try:
                # For ever: the sequence number makes a repeat harmless, and nobody else may answer for these events.
                replies = await self.store.call("append", base, *arguments, patience_s=float("inf"))
                break
            except ResponseError as error:
                logger.error("the store refuses to write, trying again: %s", error)
                await asyncio.sleep(PAUSE_S)
        for batch, reply in zip(batches, replies, strict=True):
            batch.log.settle(batch.events, reply)


class RedisAttemptLog:
    """An AttemptLog (see onward.log) on Redis."""

    def __init__(self, writer: LogWriter, base: str, ref: str, attempt: int, on_cancelling: Callable[[], None]) -> None:
        self._on_cancelling = on_cancelling
        self.base = base
        self.ref = ref
        self.attempt = attempt
        self._writer = writer
        self._sequence = 0
        self._blobs = 0
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._memo: list[Argument] = []
        self._ending: tuple[Argument, Argument, Argument] | None = None
        self._in_flight = 0
        self._handed_over = 0
        self._committed = 0
        self._last_offset = 0
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._crowded: list[asyncio.Future[None]] = []
        self._refused: LogError | None = None

    # What the engine calls.

    def post(self, event: Event) -> None:
        """See AttemptLog.post."""
        self._take_in(event)
        self._writer.touch(self, urgent=False)

    async def append(self, *events: Event, memo: Mapping[str, bytes] | None = None) -> int:
        """See AttemptLog.append."""
        self._raise_refusal()
        encoded = [event.SerializeToString() for event in events]
        for data in encoded:
            if len(data) > EVENT_BYTES_MAX:
                raise EventTooLarge(len(data))
        for data in encoded:
            self._unsent.append(data)
            self._unsent_bytes += len(data)
        self._handed_over += len(encoded)
        for name, value in (memo or {}).items():
            self._memo += (name, value)
        return await self._commit()

    async def room(self) -> None:
        """See AttemptLog.room."""
        while self._is_crowded():
            self._raise_refusal()
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._crowded.append(room)
            await room
        self._raise_refusal()

    async def finish(self, event: Event) -> None:
        """See AttemptLog.finish."""
        change = event.run_state_changed
        if isinstance(self._refused, LogFull):
            self._refused = None
        output = change.output.SerializeToString() if change.HasField("output") else b""
        error = change.error.SerializeToString() if change.HasField("error") else b""
        self._take_in(event)
        self._ending = (int(change.state), output, error)
        await self._commit()

    async def read(self, *, after: int = 0) -> AsyncIterator[Event]:
        """See AttemptLog.read."""
        while True:
            start = f"{after + 1}-0"
            log = keys.log(self.base, self.ref)
            entries = await self._writer.store.command("XRANGE", log, start, "+", "COUNT", READ_EVENTS)
            for _, fields in entries:
                event = Event.FromString(fields[1])
                after = event.offset
                yield event
            if len(entries) < READ_EVENTS:
                return

    async def read_memo(self) -> Mapping[str, bytes]:
        """See AttemptLog.read_memo."""
        memo = pairs(await self._writer.store.command("HGETALL", keys.memo(self.base, self.ref)))
        return {name.decode(): value for name, value in memo.items()}

    async def put_blob(self, data: bytes) -> str:
        """See AttemptLog.put_blob."""
        self._raise_refusal()
        self._blobs += 1
        name = f"{self.attempt}-{self._blobs}"
        call = self._writer.store.call("blob", self.base, self.ref, self.attempt, name, data, patience_s=float("inf"))
        status = (await call)[0]
        if status != b"ok":
            raise AttemptFenced("another attempt holds the run")
        return f"blob:{name}"

    async def get_blob(self, blob_uri: str) -> bytes:
        """See AttemptLog.get_blob."""
        name = blob_uri.removeprefix("blob:")
        value: bytes | None = await self._writer.store.command("GET", keys.blob(self.base, self.ref, name))
        if value is None:
            raise KeyError(blob_uri)
        return value

    # What the writer calls.

    def take(self) -> _Batch | None:
        """Return what goes out next, or None: one batch of a log is under way at a time, so order is kept."""
        if self._in_flight or self._refused or not (self._unsent or self._memo or self._ending):
            return None
        events: list[bytes] = []
        size = 0
        for data in self._unsent:
            if len(events) == BATCH_EVENTS_MAX or (events and size + len(data) > BATCH_BYTES_MAX):
                break
            events.append(data)
            size += len(data)
        last = len(events) == len(self._unsent)
        # Memo and end belong to the newest events, so they go with the batch that holds these.
        ending = self._ending if last and self._ending else ("", b"", b"")
        memo = self._memo if last else []
        if last:
            self._memo, self._ending = [], None
        self._in_flight = len(events) or 1
        self._sequence += 1
        arguments: list[Argument] = [self.ref, self.attempt, self._sequence, *ending, len(events), *events]
        arguments += (len(memo) // 2, *memo)
        return _Batch(self, len(events), arguments)

    def settle(self, events: int, reply: list[Any]) -> None:
        """Take the function's reply to the batch under way."""
        self._in_flight = 0
        status, state, _, last_offset, _ = reply
        if status != b"ok":
            self._refuse(_REFUSALS[status](_why(status, self.ref)))
            return
        for _ in range(events):
            self._unsent_bytes -= len(self._unsent.popleft())
        self._committed += events
        self._last_offset = last_offset
        while self._waiting and self._waiting[0][0] <= self._committed:
            waiter = self._waiting.popleft()[1]
            if not waiter.done():
                waiter.set_result(last_offset)
        if self._crowded and not self._is_crowded():
            self._let_in()
        if self._unsent or self._memo or self._ending:
            self._writer.touch(self, urgent=bool(self._waiting))
        if state == RunState.RUN_STATE_CANCELLING:
            self._on_cancelling()

    def _take_in(self, event: Event) -> None:
        self._raise_refusal()
        data = event.SerializeToString()
        if len(data) > EVENT_BYTES_MAX:
            raise EventTooLarge(len(data))
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        self._handed_over += 1

    async def _commit(self) -> int:
        if self._committed == self._handed_over and not (self._memo or self._ending):
            return self._last_offset
        committed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
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
        if self._refused is not None:
            raise type(self._refused)(*self._refused.args)

    def _refuse(self, error: LogError) -> None:
        self._refused = error
        if isinstance(error, LogFull):
            self._sequence -= 1  # the log did not count it: `finish` comes in its place
        self._unsent.clear()
        self._unsent_bytes = 0
        self._handed_over = self._committed
        self._memo, self._ending = [], None
        for _, waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(error)
        self._waiting.clear()
        self._let_in()


def _why(status: bytes, ref: str) -> str:
    return {
        b"fenced": f"another attempt holds run {ref}, or it was taken back",
        b"jump": f"an append to run {ref} is missing",
        b"closed": f"run {ref} has ended",
        b"full": f"the log of run {ref} is at its limit",
    }[status]
