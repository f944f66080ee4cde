"""One SubscribeRun stream: a run's log from a position to its end, in messages that prove that nothing is missing."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.duration_pb2 import Duration

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.gateway_service_pb2 import (
    Bookmark,
    Completed,
    Gap,
    GapPolicy,
    Handoff,
    HandoffReason,
    Opened,
    SubscribeRunRequest,
    SubscribeRunResponse,
    View,
)
from onward.v1.run_pb2 import Run
from onward_runlog.cursor import Cursors
from onward_runlog.errors import EventsTrimmed, LogRebuilt, StoreUnavailable
from onward_runlog.feed import Feed, FollowedRun
from onward_runlog.reader import Chunk, Reader, chunk_from, cut, varint
from onward_runlog.settled import Settling, Voids
from onward_serving.errors import Refused

logger = logging.getLogger(__name__)

RETRY_DRAINING_S = 0.1
RETRY_SLOW_S = 1.0
"""How long a reader that was handed off waits before it reconnects."""

SHARED_MAX = 16
SHARED_BYTES_MAX = 64 * 1024
"""Messages, and their size, that are kept for other readers of the same run at the same place."""

AGE_JITTER = 0.1
"""Streams that began together do not end together."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one stream, in seconds.

    Attributes:
        heartbeat_s: The longest silence before a Bookmark.
        age_s: When it is handed off.
        slow_s: How long a message may wait for its reader.
        grace_s: How much longer until the stream is cut.
    """

    heartbeat_s: float
    age_s: float
    slow_s: float
    grace_s: float


class Form(Protocol):
    """What the messages of a stream look like on the wire.

    Attributes:
        name: Readers of a run with forms of the same name can be sent the same bytes; empty where none can.
    """

    name: str

    def message(self, response: SubscribeRunResponse) -> bytes:
        """Return a message that is no batch."""

    def batch(self, cursors: Cursors, cursor: bytes, chunk: Chunk, voids: Voids) -> bytes:
        """Return a batch of events, without those that are void.

        Args:
            cursors: Makes the cursor after any event.
            cursor: The one after the last.
        """


class _AsProtobuf:
    """SubscribeRunResponse as it is serialized, with its batches made from the stored bytes as they are.

    Parsing the events and serializing them again would cost more than all the rest (tests/bench).
    """

    name = "protobuf"

    def message(self, response: SubscribeRunResponse) -> bytes:
        """See Form.message."""
        return response.SerializeToString()

    def batch(self, cursors: Cursors, cursor: bytes, chunk: Chunk, voids: Voids) -> bytes:
        """See Form.batch."""
        events = b"".join(voids.settle(chunk))
        bounds = b"\x10" + varint(chunk.after) + b"\x18" + varint(chunk.through)
        size = varint(len(events) + len(bounds))
        return b"".join((b"\n", varint(len(cursor)), cursor, b"\x1a", size, events, bounds))


AS_PROTOBUF = _AsProtobuf()


class Stream:
    """One reader of a run.

    One message is under way at a time, and one batch is read ahead: a reader that never reads costs no more.
    """

    def __init__(
        self,
        reader: Reader,
        feed: Feed,
        settling: Settling,
        namespace: str,
        request: SubscribeRunRequest,
        limits: Limits,
        form: Form,
        write: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Args:
        form: What messages look like.
        write: Sends one, and returns when the transport has taken it.
        """
        self._reader = reader
        self._feed = feed
        self._settling = settling
        self._namespace = namespace
        self._request = request
        self._limits = limits
        self._form = form
        self._transport = write
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ends_at = self._loop.time() + limits.age_s * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)
        self._sent_at = self._loop.time()
        self._write_began: float | None = None
        self._handoff: tuple[HandoffReason.ValueType, float] | None = None
        self._cut = False
        self._cursor = b""
        self._reading: asyncio.Task[Chunk] | None = None
        self._waiting: Chunk | None = None
        self._ending: asyncio.Task[Run] | None = None
        self._after = 0
        self._voids = Voids(())

    def wake(self) -> None:
        """See Follower.wake."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def drain(self) -> None:
        """Hand the reader over to another Gateway."""
        self._handoff = (HandoffReason.HANDOFF_REASON_REBALANCE, RETRY_DRAINING_S)
        self.wake()

    async def serve(self) -> None:
        """Send everything, to the end of the log or of the stream.

        Raises:
            RunLogError: The position cannot be read, or no longer.
            Refused: The reader has stopped reading.
        """
        self._task = asyncio.current_task()
        try:
            with self._feed.follow(self._namespace, self._request.run_id, self) as followed:
                await self._open(followed)
                await self._follow(followed)
        except asyncio.CancelledError:
            if self._cut and self._task is not None and self._task.uncancel() == 0:
                logger.info("a reader of run %s has stopped reading: its stream is cut", self._request.run_id)
                raise _cut_off() from None
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for pending in (self._reading, self._ending):
                if pending is not None:
                    pending.cancel()

    # What is sent.

    async def _open(self, followed: FollowedRun) -> None:
        request = self._request
        start = await self._reader.start(self._namespace, request.run_id, request.start)
        followed.learn(start.run)
        self._cursors = start.cursors
        if request.view == View.VIEW_SETTLED:
            log = start.run.log
            self._voids = await self._settling.voids(followed.base, followed.ref, log.log_id, log.last_offset)
        self._sizing = start.sizing
        self._sizing.saw(start.chunk)
        self._after = start.after
        self._cursor = start.cursors.at(start.after, start.after_hash)
        self._timer = self._loop.call_at(min(self._loop.time() + self._limits.heartbeat_s, self._ends_at), self._tick)
        await self._send(SubscribeRunResponse(opened=Opened(run=start.run, after_offset=start.after)))
        if start.resumed != start.after:
            await self._send_gap(start.resumed)
        if start.chunk.events:
            self._waiting = start.chunk

    async def _follow(self, followed: FollowedRun) -> None:
        while True:
            if self._handoff is not None:
                await self._send_handoff(*self._handoff)
                return
            chunk = self._next(followed)
            if chunk is not None:
                await self._send_batch(followed, chunk)
            elif self._after == followed.end:
                await self._send_completed()
                return
            elif followed.failure is not None:
                raise followed.failure
            elif self._must_read(followed):
                await self._read(followed)
            elif self._is_silent():
                await self._send(SubscribeRunResponse(bookmark=Bookmark(offset=self._after)))
            else:
                await self._wait()

    def _next(self, followed: FollowedRun) -> Chunk | None:
        """Return the next events that are at hand, as many as one batch holds."""
        if self._waiting is None:
            return followed.chunk(self._after)
        chunk, self._waiting = self._waiting, None
        return chunk

    def _must_read(self, followed: FollowedRun) -> bool:
        return self._after < followed.known and followed.is_past(self._after)

    async def _read(self, followed: FollowedRun) -> None:
        """Read what the ring does not have (any more), at this reader's pace."""
        if self._reading is None:
            self._ask(followed, self._after)
        reading = self._reading
        assert reading is not None
        if not reading.done():
            if self._is_silent():
                await self._send(SubscribeRunResponse(bookmark=Bookmark(offset=self._after)))
            else:
                await self._wait()
            return
        self._reading = None
        try:
            chunk = reading.result()
        except StoreUnavailable:
            return  # asked again, for as long as the reader stays
        if not chunk.events:
            await self._find_out_why(followed)
        elif chunk.after != self._after:
            await self._skip(chunk.after)
        else:
            if chunk.through < followed.known and followed.is_past(chunk.through):
                self._ask(followed, chunk.through)  # under way while this one is sent
            self._waiting = chunk

    def _ask(self, followed: FollowedRun, after: int) -> None:
        self._reading = asyncio.create_task(self._chunk(followed, after))
        self._reading.add_done_callback(self._on_read)

    async def _chunk(self, followed: FollowedRun, after: int) -> Chunk:
        """Return the next events of the log after an offset, no more than a batch."""
        reply = await self._reader.events(followed.base, followed.ref, after, self._sizing.count)
        chunk = chunk_from(reply, after)
        self._sizing.saw(chunk)
        return cut(chunk)

    def _on_read(self, reading: asyncio.Task[Chunk]) -> None:
        _note(reading)
        self.wake()

    async def _find_out_why(self, followed: FollowedRun) -> None:
        """Tell why events that were there cannot be read."""
        try:
            log = (await self._reader.run(self._namespace, followed.run_id)).log
        except StoreUnavailable:
            return
        if log.log_id != followed.log_id or log.first_offset <= self._after + 1:
            raise LogRebuilt(log.log_id)
        await self._skip(log.first_offset - 1)

    async def _skip(self, resumed: int) -> None:
        if self._request.start.on_gap != GapPolicy.GAP_POLICY_SKIP:
            raise EventsTrimmed(resumed + 1)
        await self._send_gap(resumed)

    async def _send_gap(self, resumed: int) -> None:
        gap = Gap(first_missing=self._after + 1, last_missing=resumed)
        self._after = resumed
        self._cursor = self._cursors.at(resumed, 0)
        await self._send(SubscribeRunResponse(gap=gap))

    async def _send_batch(self, followed: FollowedRun, chunk: Chunk) -> None:
        alike = len(followed.followers) > 1 and bool(self._form.name) and chunk.after + 1 >= self._voids.before
        message, self._cursor = self._shared(followed, chunk) if alike else self._made(chunk)
        self._after = chunk.through
        if 0 < self._voids.before <= self._after:
            self._voids = Voids(())  # passed: an idle stream need not keep it
        if self._after == followed.end:
            self._ending = self._read_ending()  # under way while the last events are sent
        await self._write(message)

    def _made(self, chunk: Chunk) -> tuple[bytes, bytes]:
        """Return the message of a batch, and the cursor after it."""
        cursor = self._cursors.at(chunk.through, chunk.hash)
        return self._form.batch(self._cursors, cursor, chunk, self._voids), cursor

    def _shared(self, followed: FollowedRun, chunk: Chunk) -> tuple[bytes, bytes]:
        """`_made`, once for all readers at this place."""
        place = (self._form.name, chunk.after, chunk.through)
        made = followed.shared.get(place)
        if made is None:
            made = self._made(chunk)
            if len(made[0]) <= SHARED_BYTES_MAX:
                if len(followed.shared) >= SHARED_MAX:
                    followed.shared.clear()
                followed.shared[place] = made
        return made

    async def _send_completed(self) -> None:
        while True:
            ending, self._ending = self._ending or self._read_ending(), None
            try:
                run = await ending
                break
            except StoreUnavailable:
                if self._is_silent():
                    await self._send(SubscribeRunResponse(bookmark=Bookmark(offset=self._after)))
            finally:
                ending.cancel()
        await self._send(SubscribeRunResponse(completed=Completed(run=run)))

    def _read_ending(self) -> asyncio.Task[Run]:
        ending = asyncio.create_task(self._reader.run(self._namespace, self._request.run_id, output=True))
        ending.add_done_callback(_note)
        return ending

    async def _send_handoff(self, reason: HandoffReason.ValueType, retry_s: float) -> None:
        delay = Duration()
        delay.FromMilliseconds(int(retry_s * 1000))
        await self._send(SubscribeRunResponse(handoff=Handoff(reason=reason, retry_delay=delay)))

    async def _send(self, response: SubscribeRunResponse) -> None:
        response.cursor = self._cursor.decode()
        await self._write(self._form.message(response))

    async def _write(self, message: bytes) -> None:
        self._write_began = self._loop.time()
        await self._transport(message)
        self._write_began = None
        self._sent_at = self._loop.time()

    # Time.

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _is_silent(self) -> bool:
        return self._loop.time() >= self._sent_at + self._limits.heartbeat_s

    def _tick(self) -> None:
        """The stream's only timer: silence, age, and a message that its reader does not take."""
        now = self._loop.time()
        limits = self._limits
        due = self._sent_at + limits.heartbeat_s
        if self._write_began is not None:
            late = self._write_began + limits.slow_s
            cut = late + limits.grace_s
            if now >= cut and self._task is not None:
                self._cut = True
                self._task.cancel()
                return
            if now >= late:
                self._handoff = self._handoff or (HandoffReason.HANDOFF_REASON_SLOW_READER, RETRY_SLOW_S)
            due = cut if now >= late else late
        if now >= self._ends_at:
            self._handoff = self._handoff or (HandoffReason.HANDOFF_REASON_REBALANCE, 0.0)
            self.wake()
        else:
            due = min(due, self._ends_at)
        if due <= now:
            self.wake()
            due = now + limits.heartbeat_s
        self._timer = self._loop.call_at(due, self._tick)


def _note(reading: asyncio.Future[Any]) -> None:
    """Look at a failure, so that asyncio does not report it where the stream has ended meanwhile."""
    if not reading.cancelled():
        reading.exception()


def _cut_off() -> Refused:
    return Refused(
        grpc.StatusCode.UNAVAILABLE,
        ErrorReason.ERROR_REASON_READER_STALLED,
        "the reader has stopped reading: reconnect from the last cursor",
        retry_s=RETRY_SLOW_S,
    )
