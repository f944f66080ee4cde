"""What an attempt writes: one method for each kind of event that comes from user code.

It decides what readers may see of a value, holds texts and values to their limits, and is the one place that learns of
a refusal by the log: from then on the attempt is over, nothing is written, and user code is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from hashlib import blake2b
from threading import get_ident
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.trace import Tracer

from onward import tracing
from onward.instance import Instance
from onward.log import INLINE_BYTES_MAX, AttemptLog, LogError
from onward.text import well_formed
from onward.v1.event_pb2 import (
    CHANNEL_ITEM,
    CHANNEL_TEXT,
    OUTCOME_CANCELLED,
    OUTCOME_ERROR,
    OUTCOME_OK,
    ComponentFinished,
    ComponentRetrying,
    ComponentStarted,
    Event,
    OutputDelta,
    Published,
    Rollback,
    RollbackCause,
    StatusUpdated,
)
from onward.v1.run_pb2 import Payload, RunError

logger = logging.getLogger(__name__)

SEEN_BYTES_MAX = 4 * 1024
"""What readers see of a component's input or result; of a longer one they see its size."""

DELTA_CHARS_MAX = 64 * 1024
"""A longer piece of text becomes several deltas. At four bytes each this is `INLINE_BYTES_MAX`."""

ROLLBACK_IDS_MAX = 1_000

THREAD_EVENTS_MAX = 256
"""After so many events a thread waits until there is room in the log."""

THREAD_WAIT_S = 60.0

M = TypeVar("M")


def now() -> Timestamp:
    """Return the time as events carry it."""
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def inline(data: bytes) -> Payload:
    """Return JSON as a Payload that holds it."""
    return Payload(data=data, size=len(data))


def seen(data: bytes) -> Payload:
    """Return what readers see of a value: all of it, or where it is long its size alone."""
    return inline(data) if len(data) <= SEEN_BYTES_MAX else Payload(size=len(data))


class Journal:
    """The writing side of one attempt. Belongs to one event loop."""

    def __init__(self, log: AttemptLog, *, digest_key: bytes = b"", tracer: Tracer | None = None) -> None:
        self.log = log
        self.loop = asyncio.get_running_loop()
        self.tracer = tracer
        self.refusal: Exception | None = None
        """Why nothing can be written any more: what the log said, or what broke."""
        self.on_refusal: Callable[[], None] = lambda: None
        self.closed = False
        """The attempt writes its last event, or was told to write none: what user code still does is not written."""
        self.tasks: set[asyncio.Task[Any]] = set()
        """The tasks of user code that came by, beside the body's own."""
        self.body: asyncio.Task[Any] | None = None
        self._digest_key = digest_key[:64]
        self._thread = get_ident()
        self._from_threads = 0

    # Writing

    def post(self, event: Event) -> None:
        """Hand over an event without waiting."""
        if self.closed:
            return
        try:
            self.log.post(event)
        except LogError as error:
            self.refuse(error)

    async def append(self, *events: Event) -> None:
        """Commit events and wait until they are durable.

        Raises:
            CancelledError: The attempt is over.
        """
        await self._still_open()
        try:
            await self.log.append(*events)
        except Exception as error:  # Whatever the log raises ends the attempt; Attempt.run tells
            self.refuse(error)
            raise asyncio.CancelledError("the attempt is over") from error

    async def room(self) -> None:
        """Wait while too much is unsent.

        Raises:
            CancelledError: The attempt is over.
        """
        await self._still_open()
        try:
            await self.log.room()
        except Exception as error:  # Whatever the log raises ends the attempt; Attempt.run tells
            self.refuse(error)
            raise asyncio.CancelledError("the attempt is over") from error

    async def _still_open(self) -> None:
        if self.closed:
            # User code that will not be cancelled comes back here for ever: the others on the loop get their turn.
            await asyncio.sleep(0)
            raise asyncio.CancelledError("the attempt is over")

    def refuse(self, error: Exception) -> None:
        """The log takes nothing more."""
        if self.refusal is None and not self.closed:
            self.refusal = error
            self.closed = True
            self.on_refusal()

    def came_by(self) -> None:
        """Note the running task, so that the attempt leaves nothing running behind. Called on the loop."""
        task = asyncio.current_task()
        if task is not None and task is not self.body and task not in self.tasks:
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def call(self, write: Callable[[Instance, M], None], instance: Instance, message: M) -> None:
        """Call one of the methods that show something, from the loop or from a thread of user code, in order."""
        if get_ident() == self._thread:
            self.came_by()
            write(instance, message)
            return
        try:
            self.loop.call_soon_threadsafe(write, instance, message)
        except RuntimeError:
            return  # The loop is gone, and the attempt with it.
        self._from_threads += 1
        if self._from_threads % THREAD_EVENTS_MAX == 0:
            # A thread has nothing else that holds it back.
            room = asyncio.run_coroutine_threadsafe(self.room(), self.loop)
            try:
                room.result(THREAD_WAIT_S)
            except (CancelledError, TimeoutError):
                room.cancel()

    # The journal proper

    def started(self, instance: Instance, data: bytes | None, *, private: bool) -> None:
        started = ComponentStarted(name=instance.name, input=None if private or data is None else seen(data))
        if instance.parent is not None and instance.parent.id:
            started.parent_id = instance.parent.id
        if self.tracer is not None:
            above = None if instance.parent is None else instance.parent.span
            instance.span = tracing.start_component_span(self.tracer, instance.name, instance.id, above)
        if data is not None:
            started.input_digest = blake2b(data, digest_size=16, key=self._digest_key).digest()
        self.post(Event(create_time=now(), component_id=instance.id, component_started=started))

    async def finished(self, instance: Instance, output: Payload | None) -> None:
        """Commit a result. The caller may have it afterwards.

        Raises:
            CancelledError: The attempt is over.
        """
        if instance.span is not None:
            tracing.end(instance.span)
        await self.append(self._finished(instance, ComponentFinished(outcome=OUTCOME_OK, output=output)))

    async def failed(self, instance: Instance, error: RunError) -> None:
        """Commit an error. The caller may have it afterwards.

        Raises:
            CancelledError: The attempt is over.
        """
        if instance.span is not None:
            tracing.end(instance.span, error)
        await self.append(self._finished(instance, ComponentFinished(outcome=OUTCOME_ERROR, error=error)))

    def cancelled(self, instance: Instance) -> None:
        if instance.span is not None:
            tracing.end(instance.span, cancelled=True)
        self.post(self._finished(instance, ComponentFinished(outcome=OUTCOME_CANCELLED)))

    def _finished(self, instance: Instance, finished: ComponentFinished) -> Event:
        return Event(create_time=now(), component_id=instance.id, component_finished=finished)

    def retrying(self, instance: Instance, try_number: int, error: RunError, delay_s: float) -> None:
        if instance.span is not None:
            tracing.retrying(instance.span, try_number, error)
        delay = Duration()
        delay.FromNanoseconds(round(delay_s * 1e9))
        retrying = ComponentRetrying(try_number=try_number, error=error, delay=delay)
        self.post(Event(create_time=now(), component_id=instance.id, component_retrying=retrying))

    def rollback(self, ids: Iterable[str], cause: RollbackCause.ValueType) -> None:
        names = list(ids)
        for index in range(0, len(names), ROLLBACK_IDS_MAX):
            rollback = Rollback(component_ids=names[index : index + ROLLBACK_IDS_MAX], cause=cause)
            self.post(Event(create_time=now(), rollback=rollback))

    # What is shown

    def text(self, instance: Instance, text: str) -> Iterator[Event]:
        """Return the deltas of a piece of text."""
        if instance.shows():
            text = well_formed(text)
            for index in range(0, len(text) or 1, DELTA_CHARS_MAX):
                delta = OutputDelta(channel=CHANNEL_TEXT, text=text[index : index + DELTA_CHARS_MAX])
                yield Event(create_time=now(), component_id=instance.id, output_delta=delta)

    async def item(self, instance: Instance, data: bytes) -> Iterator[Event]:
        """Return the delta of an item that is not text.

        Raises:
            CancelledError: The attempt is over.
        """
        value = await self.stored(data)
        if not instance.shows():
            return iter(())
        delta = OutputDelta(channel=CHANNEL_ITEM, value=value)
        return iter((Event(create_time=now(), component_id=instance.id, output_delta=delta),))

    async def stored(self, data: bytes) -> Payload:
        """Return a Payload of any size: inline, or beside the log.

        Raises:
            CancelledError: The attempt is over.
        """
        if len(data) <= INLINE_BYTES_MAX:
            return inline(data)
        try:
            return Payload(blob_uri=await self.log.put_blob(data), size=len(data))
        except Exception as error:  # Whatever the log raises ends the attempt; Attempt.run tells
            self.refuse(error)
            raise asyncio.CancelledError("the attempt is over") from error

    def status(self, instance: Instance, status: StatusUpdated) -> None:
        if instance.shows():
            self.post(Event(create_time=now(), component_id=instance.id, status_updated=status))

    def published(self, instance: Instance, published: Published) -> None:
        if instance.shows():
            self.post(Event(create_time=now(), component_id=instance.id, published=published))
