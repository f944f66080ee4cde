"""What is new in the runs that somebody follows here: one subscription and one ring per run for a whole process.

Messages on the wake channels are hints, and mostly carry the events. The truth is the log: what a hint does not bring,
or what a lost hint would have brought, is read from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import Any, Protocol

from redis.exceptions import RedisError

from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import Run, RunState
from onward.v1.wake_pb2 import Appended, Wake
from onward_runlog import keys
from onward_runlog.errors import LogRebuilt, RunLogError, RunNotFound, StoreUnavailable
from onward_runlog.reader import Chunk, Reader, Sizing, chunk_from, cut, framed, unframed
from onward_runlog.record import TERMINAL
from onward_runlog.store import Store
from onward_runlog.subscription import messages

logger = logging.getLogger(__name__)

RING_EVENTS_MAX = 1_024
RING_BYTES_MAX = 4 * 1024 * 1024
"""The newest events of a run that are kept for its followers; older ones are read from the store."""

TICK_S = 0.5
"""How often it is looked which runs are due to be read again."""

CHECK_HOT_S = 1.0
"""A run that was heard of less than HOT_S ago is read again after this long without a word."""

CHECK_IDLE_S = 4.0
"""Any other run: how late an event can be whose hint was lost."""

HOT_S = 10.0
"""A run that was not heard of for longer keeps no ring: its followers have it all, or read it from the store."""

RINGS_BYTES_MAX = 128 * 1024 * 1024
"""All rings together; beyond it those that were not heard of for longest go."""

RENEW_MIN_S = 5.0
"""A subscription that loses hints is made anew at most this often."""

_STATE_CHANGE_TAG = b"R"  # field 10, length-delimited: an event without this byte is no RunStateChanged


class Follower(Protocol):
    """Somebody who follows a run."""

    def wake(self) -> None:
        """Called when the run has news: events, its end, or a failure. Must not block."""


class FollowedRun:
    """A run that somebody follows here.

    Attributes:
        base: Its partition's base name.
        ref: Namespace and run_id.
        last: The newest offset in the ring; -1 before anything is known.
        end: The offset of the last event of a closed log; None while it is open.
        paused: Whether the newest event says so: nothing follows by itself.
        failure: Why nothing will follow although the log is not closed: it is gone, or was rebuilt.
        shared: For whoever makes messages from chunks: followers at the same place can use the same one. By form and
            place, with the cursor after it.
    """

    __slots__ = (
        "_bytes",
        "_events",
        "_first",
        "base",
        "check_at",
        "end",
        "failure",
        "followers",
        "heard",
        "hinted",
        "known",
        "last",
        "log_id",
        "paused",
        "reading",
        "ref",
        "shared",
    )  # fmt: skip

    def __init__(self, base: str, ref: str, now: float) -> None:
        self.base = base
        self.ref = ref
        self.last = -1
        self.end: int | None = None
        self.paused = False
        self.failure: RunLogError | None = None
        self.shared: dict[tuple[str, int, int], tuple[bytes, bytes]] = {}
        self.followers: set[Follower] = set()
        self.log_id = ""
        self.known = -1
        self.hinted = -1
        self.heard = now
        self.check_at = now + CHECK_HOT_S
        self.reading = False
        self._first = 0
        self._events: list[bytes] = []
        self._bytes = 0

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.ref.partition("/")[2]

    def learn(self, run: Run) -> None:
        """Take note of what a follower has read of the run's record."""
        self.log_id = self.log_id or run.log.log_id
        if run.log.log_id != self.log_id:
            self.fail(LogRebuilt(run.log.log_id))
        if self.last < 0:
            self._restart(run.log.last_offset)
            self.hinted = self.last
        self.known = max(self.known, run.log.last_offset)
        if run.log.closed:
            self.end = run.log.last_offset

    def is_past(self, after: int) -> bool:
        """Say whether what follows an offset has left the ring: whoever wants it reads it from the log."""
        return after + 1 < self._first

    def chunk(self, after: int) -> Chunk | None:
        """Return the events after an offset, as many as one batch holds; None where the ring does not have them."""
        at = after + 1 - self._first
        if at < 0 or after >= self.last:
            return None
        events = self._events[at:]
        chunk = Chunk(after, events)
        return chunk if len(events) == 1 else cut(chunk)

    def extend(self, events: Sequence[bytes]) -> None:
        """Add the next events, framed, and tell the followers."""
        self._events += events
        self._bytes += sum(map(len, events))
        self.last += len(events)
        self.known = max(self.known, self.last)
        self.paused = False
        if _STATE_CHANGE_TAG in events[-1]:
            change = Event.FromString(unframed(events[-1])).run_state_changed
            self.paused = change.state == RunState.RUN_STATE_PAUSED
            if change.state in TERMINAL:
                self.end = self.last
        if len(self._events) > 2 * RING_EVENTS_MAX or self._bytes > RING_BYTES_MAX:
            self._trim()
        self.shared.clear()
        self.tell()

    def skip_to(self, offset: int) -> None:
        """Forget the ring: the next event to come is the one after `offset`."""
        self._restart(offset)
        self.tell()

    @property
    def size(self) -> int:
        """Bytes in the ring."""
        return self._bytes

    def forget(self) -> None:
        """Empty the ring; nothing is lost, since the log has it."""
        self._restart(self.last)

    def fail(self, failure: RunLogError) -> None:
        """Tell the followers that nothing more can come."""
        self.failure = failure
        self.tell()

    def tell(self) -> None:
        """Wake all followers."""
        for follower in self.followers:
            follower.wake()

    def _restart(self, last: int) -> None:
        self.last = last
        self._first = last + 1
        self._events = []
        self._bytes = 0
        self.shared.clear()

    def _trim(self) -> None:
        """Keep the newest events: all of them where there are few and small, else half of what is allowed."""
        keep, size = 0, 0
        for event in reversed(self._events):
            if keep == RING_EVENTS_MAX or (size + len(event) > RING_BYTES_MAX // 2 and keep):
                break
            size += len(event)
            keep += 1
        dropped = len(self._events) - keep
        del self._events[:dropped]
        self._first += dropped
        self._bytes = size


class Feed:
    """Follows runs for everybody in a process."""

    def __init__(self, store: Store, reader: Reader) -> None:
        self._store = store
        self._reader = reader
        self._runs: dict[str, FollowedRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._renew = asyncio.Event()
        self._renewed_at = float("-inf")

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[Feed]:
        """Listen and read until the block ends."""
        tasks = [
            asyncio.create_task(self._listen_for_ever(), name="feed: hints"),
            asyncio.create_task(self._check_for_ever(), name="feed: checks"),
        ]
        try:
            yield self
        finally:
            tasks += self._tasks
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def __len__(self) -> int:
        """How many runs are followed."""
        return len(self._runs)

    @contextlib.contextmanager
    def follow(self, namespace: str, run_id: str, follower: Follower) -> Iterator[FollowedRun]:
        """Follow a run until the block ends, whether or not it exists. Read its record inside the block, and let the
        followed run `learn` it: what comes after that is never missed.
        """
        base, ref = self._store.place(namespace, run_id)
        run = self._runs.get(ref)
        if run is None or run.failure is not None:
            run = self._runs[ref] = FollowedRun(base, ref, asyncio.get_running_loop().time())
        run.followers.add(follower)
        try:
            yield run
        finally:
            run.followers.discard(follower)
            if not run.followers and self._runs.get(ref) is run:
                del self._runs[ref]

    # Hints.

    async def _listen_for_ever(self) -> None:
        while True:
            listening = asyncio.create_task(self._listen(), name="feed: subscription")
            renewed = asyncio.create_task(self._renew.wait())
            try:
                await asyncio.wait({listening, renewed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (listening, renewed):
                    task.cancel()
                outcome, _ = await asyncio.gather(listening, renewed, return_exceptions=True)
            if isinstance(outcome, Exception):
                logger.error("the subscription failed and is made anew", exc_info=outcome)
                await asyncio.sleep(TICK_S)
            self._renew.clear()

    async def _listen(self) -> None:
        channels = [keys.wake_channel(base) for base in self._store.bases()]
        hints = messages(self._store.url, channels)
        runs = self._runs
        async with contextlib.aclosing(hints):
            async for message in hints:
                if message is None:
                    self._check_all_now()
                    continue
                for appended in Wake.FromString(message.data).appended:
                    run = runs.get(appended.ref)
                    if run is not None:
                        self._take(run, appended)

    def _take(self, run: FollowedRun, appended: Appended) -> None:
        run.heard = self._loop.time()
        run.check_at = run.heard + CHECK_HOT_S
        run.hinted = max(run.hinted, appended.through_offset)
        events = appended.events
        if run.last < 0:
            run.skip_to(appended.after_offset)
        if events and appended.after_offset <= run.last < appended.through_offset:
            # A duplicate, an overlap with what was read meanwhile, or simply the next ones.
            run.extend([framed(event) for event in events[run.last - appended.after_offset :]])
        elif appended.through_offset > run.last:
            run.known = max(run.known, appended.through_offset)
            self._read(run)

    # The truth.

    def _check_all_now(self) -> None:
        for run in self._runs.values():
            run.check_at = float("-inf")
        self._spawn(self._check(hinted=True))

    async def _check_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            if self._lost_hints() and loop.time() > self._renewed_at + RENEW_MIN_S:
                logger.warning("hints get lost: subscribing again")
                self._renewed_at = loop.time()
                self._renew.set()
            try:
                await self._check()
            except RedisError as error:
                logger.error("the store refuses to tell how far runs are: %s", error)
            self._forget()

    def _forget(self) -> None:
        """Give back the memory of rings that nobody is likely to need."""
        quiet = asyncio.get_running_loop().time() - HOT_S
        rings = [run for run in self._runs.values() if run.size]
        total = 0
        for run in sorted(rings, key=lambda run: run.heard, reverse=True):
            total += run.size
            if run.heard < quiet or total > RINGS_BYTES_MAX:
                run.forget()

    def _lost_hints(self) -> bool:
        """Say whether a run is ahead of its hints for longer than any hint takes."""
        now = asyncio.get_running_loop().time()
        return any(run.hinted < run.last and run.heard < now - CHECK_HOT_S for run in self._runs.values())

    async def _check(self, *, hinted: bool = False) -> None:
        """Read the records of all runs that are due, in one pipeline.

        Args:
            hinted: No hint is missed for what is found: it is from before the subscription.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = [run for run in self._runs.values() if run.check_at <= now and run.last >= 0]
        records: list[tuple[FollowedRun, int, asyncio.Future[Any]]] = []
        for run in due:
            run.check_at = now + (CHECK_HOT_S if now < run.heard + HOT_S else CHECK_IDLE_S)
            key = keys.run(run.base, run.ref)
            call = self._store.command("HMGET", key, "last", "state", "log_id", patience_s=TICK_S)
            records.append((run, run.last, call))
        for run, before, call in records:
            try:
                last, state, log_id = await call
            except StoreUnavailable:
                continue  # silence until it is back: then the subscription begins anew, and all are read again
            self._compare(run, before, last, state, log_id)
            if hinted:
                run.hinted = max(run.hinted, int(last or 0))

    def _compare(
        self, run: FollowedRun, before: int, last: bytes | None, state: bytes | None, log_id: bytes | None
    ) -> None:
        if last is None:
            run.fail(RunNotFound(run.run_id))
        elif int(last) < before or (run.log_id and (log_id or b"").decode() != run.log_id):
            run.fail(LogRebuilt((log_id or b"").decode()))
        else:
            if RunState.ValueType(int(state or 0)) in TERMINAL and run.end is None:
                run.end = int(last)
                run.tell()
            if int(last) > run.last:
                run.known = max(run.known, int(last))
                self._read(run)

    def _read(self, run: FollowedRun) -> None:
        if not run.reading:
            run.reading = True
            self._spawn(self._read_on(run))

    async def _read_on(self, run: FollowedRun) -> None:
        """Bring the ring to what is known to exist. Who needs what is too old for the ring reads it itself."""
        sizing = Sizing(1)
        try:
            while run.followers and run.last < run.known:
                if run.known - run.last > RING_EVENTS_MAX:
                    run.skip_to(run.known - RING_EVENTS_MAX)
                after = run.last
                chunk = chunk_from(await self._reader.events(run.base, run.ref, after, sizing.count), after)
                if run.last != after:
                    continue  # a hint was faster
                if not chunk.events:
                    return  # trimmed, or lost: the next check tells
                sizing.saw(chunk)
                if chunk.after != after:
                    run.skip_to(chunk.after)
                run.extend(chunk.events)
        except StoreUnavailable:
            return
        finally:
            run.reading = False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a read for followers failed", exc_info=error)
