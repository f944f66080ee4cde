"""A run and its log in memory, for tests: the same promises as the real one, for as long as the process lives."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Protocol

from onward.cache import Owner, StillMade
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
from onward.v1.event_pb2 import Event, RunStateChanged, RunWaiting, SignalReceived
from onward.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_CANCELLING,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_QUEUED,
    RUN_STATE_RUNNING,
    RUN_STATE_SUCCEEDED,
    RUN_STATE_WAITING,
    Payload,
    RunState,
    Usage,
)

EVENTS_MAX = 1_000_000
BYTES_MAX = 256 * 1024 * 1024

TERMINAL = frozenset((RUN_STATE_SUCCEEDED, RUN_STATE_FAILED, RUN_STATE_CANCELLED))


class Place(Protocol):
    """Where an executor dies."""

    @property
    def before(self) -> bool:
        """Whether it does so before it writes the event there, and not after it."""

    @property
    def look(self) -> Callable[[], Callable[[Event], bool]]:
        """Makes what is shown an attempt's events, one after the other, and tells whether this is the place."""


class MemoryRun:
    """One run: its events, its state, and the attempt that may write. Begins with the event that says QUEUED.

    Attributes:
        state: Where it is in its life.
        attempt: The attempt in force; 0 before the first.
        memo: What appends put there, by component_id.
        blobs: Values kept beside the log, by blob_uri.
        usage: What its model calls used.
        waiting: What it waits for while it is parked; None while it is not.
        errands: What it asked of other runs, oldest first, as serialized Errands.
        on_errand: Called when there is another one.
        related: Other runs, whose blobs it may read, by run_id.
    """

    def __init__(self, *, events_max: int = EVENTS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.state: RunState.ValueType = RUN_STATE_QUEUED
        self.attempt = 0
        self.memo: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.usage = Usage()
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._log: list[bytes] = []
        self._bytes = 0
        self.online = asyncio.Event()
        self.online.set()
        self.held = False
        self.waiting: RunWaiting | None = None
        self.errands: list[bytes] = []
        self.on_errand: Callable[[], None] = lambda: None
        self.related: Mapping[str, MemoryRun] = {}
        self._holder: MemoryLog | None = None
        self.write(Event(run_state_changed=RunStateChanged(state=RUN_STATE_QUEUED)).SerializeToString(), attempt=0)

    @property
    def events(self) -> list[Event]:
        """The log, oldest first."""
        return [Event.FromString(data) for data in self._log]

    @property
    def last_offset(self) -> int:
        """The newest offset."""
        return len(self._log)

    @property
    def ended(self) -> bool:
        """Whether nobody is to take it up again by itself: it is terminal or PAUSED."""
        return self.state in TERMINAL or self.state == RUN_STATE_PAUSED

    def begin(self, *, dies_after: int = 0, dies: Place | None = None) -> MemoryLog:
        """Hand the run to a new attempt and return its log. Every earlier attempt is fenced.

        Args:
            dies_after: The offset after which nothing of this attempt arrives any more, as if its executor had died; 0
                is never.
            dies: Where it does so, told by what it writes.

        Raises:
            LogClosed: The run has ended.
        """
        if self.state in TERMINAL:
            raise LogClosed("the run has ended")
        self.attempt += 1
        if self.state != RUN_STATE_CANCELLING:
            self.state = RUN_STATE_RUNNING
        self.held = True
        self._holder = MemoryLog(self, self.attempt, dies_after, dies)
        return self._holder

    def reopened(self) -> MemoryRun:
        """Return a copy of the run as it was before its last event, held by nobody."""
        copy = MemoryRun(events_max=self._events_max, bytes_max=self._bytes_max)
        copy.state = RUN_STATE_RUNNING
        copy.attempt = self.attempt
        copy.memo = dict(self.memo)
        copy.blobs = dict(self.blobs)
        copy.usage.CopyFrom(self.usage)
        copy._log = self._log[:-1]
        copy._bytes = self._bytes - len(self._log[-1])
        return copy

    def signal(self, name: str, data: bytes, media_type: str = "", request_id: str = "") -> None:
        """Send a signal with this JSON; where the run is parked and waits for it, it is to be taken up again."""
        value = Payload(data=data, size=len(data), media_type=media_type)
        received = SignalReceived(name=name, value=value, request_id=request_id)
        self._write_as_other(Event(signal_received=received))
        if self.waiting is not None and name in self.waiting.signals:
            self.wake()

    def wake(self) -> None:
        """End a parked run's wait, as its timer does."""
        self.waiting = None
        self.state = RUN_STATE_QUEUED
        self._write_as_other(Event(run_state_changed=RunStateChanged(state=RUN_STATE_QUEUED)))

    def cancel(self) -> None:
        """Ask for the end of a run that is held or parked, as CancelRun does."""
        self.waiting = None
        self.state = RUN_STATE_CANCELLING
        self._write_as_other(Event(run_state_changed=RunStateChanged(state=RUN_STATE_CANCELLING)))

    def lose(self) -> None:
        """Take the run from whoever holds it, as the end of a lease does."""
        self.held = False
        self._holder = None

    def close(self, state: RunState.ValueType = RUN_STATE_CANCELLED, reason: str = "") -> None:
        """End the run from outside, as CancelRun and a run timeout do."""
        changed = RunStateChanged(state=state, reason=reason)
        self.write(Event(run_state_changed=changed).SerializeToString(), attempt=0)
        self.state = state
        self.held = False
        self.waiting = None

    @contextmanager
    def offline(self) -> Iterator[None]:
        """Let nothing arrive while the block runs, as if the store were away."""
        self.online.clear()
        try:
            yield
        finally:
            self.online.set()

    def _write_as_other(self, event: Event) -> None:
        event.create_time.GetCurrentTime()
        self.write(event.SerializeToString(), attempt=0)
        if self.held and self._holder is not None and self._holder.on_others is not None:
            self._holder.on_others()

    # For MemoryLog

    def ask(self, outbox: Sequence[bytes]) -> None:
        if outbox:
            self.errands.extend(outbox)
            self.on_errand()

    def refusal(self, attempt: int) -> LogError | None:
        if self.state in TERMINAL:
            return LogClosed("the run has ended")
        if not self.held or attempt != self.attempt:
            return AttemptFenced(f"attempt {attempt} no longer holds the run")
        return None

    def full(self, size: int) -> bool:
        return len(self._log) >= self._events_max or self._bytes + size > self._bytes_max

    def write(self, data: bytes, *, attempt: int) -> None:
        # The last value of a field wins, so what the writer set does not count.
        data += Event(offset=len(self._log) + 1, attempt=attempt).SerializeToString()
        if attempt == 0:
            data += b"\x18\x00"
        self._log.append(data)
        self._bytes += len(data)

    def remember(self, memo: Mapping[str, bytes]) -> None:
        """Put values into the memo."""
        for name, value in memo.items():
            before = self.memo.get(name)
            self._bytes += len(value) - len(before) if before is not None else len(name) + len(value)
            self.memo[name] = value

    def keep(self, uri: str, data: bytes) -> None:
        """Keep a value beside the log."""
        self.blobs[uri] = data
        self._bytes += len(data)


class MemoryLog:
    """`onward.log.AttemptLog` on a `MemoryRun`."""

    def __init__(self, run: MemoryRun, attempt: int, dies_after: int = 0, dies: Place | None = None) -> None:
        self.run = run
        self.attempt = attempt
        self.on_others: Callable[[], None] | None = None
        self._dies_after = dies_after
        self._others_after = run.last_offset
        self._is_place = None if dies is None else dies.look()
        self._dies_before = dies is not None and dies.before
        self._unsent: deque[tuple[bytes, Usage | None, Mapping[str, bytes] | None, Sequence[bytes]]] = deque()
        """Events, each with what it says was used, its memo and its errands; no bytes where there is a memo alone."""
        self._unsent_bytes = 0
        self._refusal: LogError | None = None

    def post(self, event: Event, memo: Mapping[str, bytes] | None = None, *, outbox: Sequence[bytes] = ()) -> None:
        self._queue(_serialized(event), usage_of(event), memo, outbox)
        if self.run.online.is_set():
            self._send()

    async def append(self, *events: Event, memo: Mapping[str, bytes] | None = None) -> int:
        unsent = [(_serialized(event), usage_of(event)) for event in events] or [(b"", None)]
        for data, usage in unsent[:-1]:
            self._queue(data, usage)
        self._queue(*unsent[-1], memo)
        if not self.run.online.is_set():
            await self.run.online.wait()
        self._send()
        self._raise()
        return self.run.last_offset

    @property
    def crowded(self) -> bool:
        return self._is_full() or (self._refusal or self.run.refusal(self.attempt)) is not None

    def _is_full(self) -> bool:
        return len(self._unsent) >= UNSENT_EVENTS_MAX or self._unsent_bytes >= UNSENT_BYTES_MAX

    async def room(self) -> None:
        if self._is_full():
            await self.run.online.wait()
            self._send()
        self._raise()

    async def finish(self, event: Event, *, outbox: Sequence[bytes] = ()) -> None:
        state = event.run_state_changed.state
        if state not in TERMINAL and state != RUN_STATE_PAUSED:
            raise ValueError(f"a run does not finish into {RunState.Name(state)}")
        data = _serialized(event)
        await self.run.online.wait()
        self._send()
        last = state in (RUN_STATE_PAUSED, RUN_STATE_CANCELLED)
        if not (last and isinstance(self._refusal, LogFull | RunCancelling)):
            if self._dies_before and self._is_here(data):
                self.run.lose()
            self._raise()
            if not last and self.run.full(len(data)):
                raise LogFull("the log is at its limit")
        if state == RUN_STATE_PAUSED and self.run.state == RUN_STATE_CANCELLING:
            self._refusal = RunCancelling("the run is to be cancelled")
            raise self._refusal
        self.run.write(data, attempt=self.attempt)
        self.run.state = state
        self.run.held = False
        self.run.ask(outbox)

    async def park(self, event: Event, *, wake_s: float | None) -> bool:
        data = _serialized(event)
        known = self._others_after
        await self.run.online.wait()
        self._send()
        self._raise()
        if self.run.state != RUN_STATE_RUNNING or self._written_by_others() or self._others_after != known:
            return False
        if self.run.full(len(data)):
            raise LogFull("the log is at its limit")
        self.run.write(data, attempt=self.attempt)
        self.run.state = RUN_STATE_WAITING
        self.run.waiting = event.run_waiting
        self.run.lose()
        return True

    async def others(self) -> Sequence[Event]:
        await self.run.online.wait()
        found = self._written_by_others()
        self._others_after = self.run.last_offset
        return found

    def _written_by_others(self) -> list[Event]:
        return [event for event in self.run.events[self._others_after :] if event.attempt != self.attempt]

    async def read(self, *, after: int = 0) -> AsyncIterator[Event]:
        await self.run.online.wait()
        for event in self.run.events[after:]:
            yield event

    async def read_memo(self) -> Mapping[str, bytes]:
        return dict(self.run.memo)

    async def put_blob(self, data: bytes) -> str:
        await self.run.online.wait()
        self._raise()
        uri = f"{self.attempt}-{blake2b(data, digest_size=8).hexdigest()}-{len(self.run.blobs)}"
        self.run.keep(uri, data)
        return uri

    async def get_blob(self, blob_uri: str, run_id: str = "") -> bytes:
        run = self.run.related[run_id] if run_id else self.run
        return run.blobs[blob_uri]

    def _queue(
        self,
        data: bytes,
        usage: Usage | None,
        memo: Mapping[str, bytes] | None = None,
        outbox: Sequence[bytes] = (),
    ) -> None:
        self._unsent.append((data, usage, memo, outbox))
        self._unsent_bytes += len(data)

    def _send(self) -> None:
        run = self.run
        while self._unsent and self._refusal is None:
            data, usage, memo, outbox = self._unsent[0]
            if data and self._dies_before and self._is_here(data):
                run.lose()
            self._refusal = run.refusal(self.attempt)
            if self._refusal is None and data and run.full(len(data)):
                self._refusal = LogFull("the log is at its limit")
            if self._refusal is None:
                self._unsent.popleft()
                self._unsent_bytes -= len(data)
                if data:
                    run.write(data, attempt=self.attempt)
                if usage is not None:
                    add_usage(run.usage, usage)
                if memo:
                    run.remember(memo)
                run.ask(outbox)
                if data and (run.last_offset == self._dies_after or (not self._dies_before and self._is_here(data))):
                    run.lose()
        if self._refusal is not None:
            self._unsent.clear()
            self._unsent_bytes = 0

    def _is_here(self, data: bytes) -> bool:
        """Tell whether the event is the one at which the executor dies."""
        if self._is_place is None:
            return False
        event = Event.FromString(data)
        event.offset = self.run.last_offset
        return self._is_place(event)

    def _raise(self) -> None:
        refusal = self._refusal or self.run.refusal(self.attempt)
        if refusal is not None:
            raise refusal


def _serialized(event: Event) -> bytes:
    data = event.SerializeToString()
    if len(data) > EVENT_BYTES_MAX:
        raise EventTooLarge(len(data))
    return data


class MemoryCache:
    """`onward.cache.Cache` for as long as the process lives.

    Args:
        clock: The time in seconds, from whenever.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[str, tuple[float, bytes]] = {}
        self._made: dict[str, tuple[Owner, asyncio.Event]] = {}

    async def take(self, key: str, owner: Owner, *, patience_s: float | None = None) -> bytes | None:
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    expiry, value = self._kept.get(key, (0.0, b""))
                    if expiry > self._clock():
                        return value
                    made_by, over = self._made.get(key, (owner, asyncio.Event()))
                    if made_by.call == owner.call and made_by.attempt <= owner.attempt:
                        self._made[key] = (owner, over)
                        return None
                    await over.wait()
        except TimeoutError:
            raise StillMade(key) from None

    def keep(self, key: str, owner: Owner, value: bytes, ttl_s: float) -> None:
        self._kept[key] = (self._clock() + ttl_s, value)
        self.release(key, owner)

    def release(self, key: str, owner: Owner) -> None:
        made = self._made.get(key)
        if made is not None and made[0] == owner:
            del self._made[key]
            made[1].set()


class MemoryPermits:
    """`onward.permits.Permits` for as long as the process lives."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._lines: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    async def acquire(self, name: str, limit: int, holder: str) -> Callable[[], None]:
        place = (limit, asyncio.get_running_loop().create_future())
        line = self._lines.setdefault(name, deque())
        line.append(place)
        self._grant(name)
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._held[name] -= 1
                self._grant(name)

        try:
            await place[1]
        except asyncio.CancelledError:
            if place[1].cancelled():
                self._lines[name].remove(place)
                self._grant(name)
            else:
                release()
            raise
        return release

    def _grant(self, name: str) -> None:
        line = self._lines[name]
        while line and self._held[name] < line[0][0]:
            _, granted = line[0]
            if granted.cancelled():
                return  # It leaves the line in a moment, and looks again.
            line.popleft()
            self._held[name] += 1
            granted.set_result(None)
