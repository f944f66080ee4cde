"""What an attempt writes: one method for each kind of event that comes from user code.

It decides what readers may see of a value, holds texts and values to their limits, and is the one place that learns of
a refusal by the log: from then on the attempt is over, nothing is written, and user code is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from hashlib import blake2b
from threading import get_ident
from time import time_ns
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.trace import SpanKind, Tracer

from onward import tracing
from onward.breakers import Breakers
from onward.budgets import Budgets
from onward.cache import Cache
from onward.failure import told
from onward.instance import Instance
from onward.log import INLINE_BYTES_MAX, AttemptLog, LogError
from onward.permits import Permits
from onward.replay import Replay
from onward.secrets import masked, masked_bytes
from onward.text import cut, well_formed
from onward.turns import NEVER, SETTLE_TURNS, Turns
from onward.v1.errand_pb2 import Errand
from onward.v1.event_pb2 import (
    CHANNEL_ITEM,
    CHANNEL_TEXT,
    OUTCOME_CANCELLED,
    OUTCOME_ERROR,
    OUTCOME_OK,
    ROLLBACK_CAUSE_ATTEMPT_LOST,
    ComponentRetrying,
    ComponentStarted,
    Event,
    InputRequested,
    Outcome,
    OutputDelta,
    Published,
    Rollback,
    RollbackCause,
    StatusUpdated,
)
from onward.v1.run_pb2 import Payload, Run, RunError, Usage
from onward.v1.scheduler_service_pb2 import StopRunRequest
from onward.waits import PACE, Waits

if TYPE_CHECKING:
    from onward.past import Record

logger = logging.getLogger(__name__)

SEEN_BYTES_MAX = 4 * 1024
"""What readers see of a component's input or result; of a longer one they see its size."""

DELTA_CHARS_MAX = 64 * 1024
"""A longer piece of text becomes several deltas. At four bytes each this is `INLINE_BYTES_MAX`."""

ROLLBACK_IDS_MAX = 1_000

THREAD_EVENTS_MAX = 256
"""After so many events a thread waits until there is room in the log."""

THREAD_WAIT_S = 60.0

NON_DETERMINISTIC = "NON_DETERMINISTIC"

BRIEF_CHARS_MAX = 500

NOTHING: Mapping[str, bytes] = {}

M = TypeVar("M")


def now() -> Timestamp:
    """Return the time as events carry it."""
    seconds, nanos = divmod(round(PACE.get().clock() * 1e9), 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def stamped(component_id: str) -> Event:
    """Return an event of now, its kind still to be set: in place, which takes a third of the time of giving it."""
    event = Event(component_id=component_id)
    time = event.create_time
    time.seconds, time.nanos = divmod(round(PACE.get().clock() * 1e9), 1_000_000_000)
    return event


def inline(data: bytes) -> Payload:
    """Return JSON as a Payload that holds it."""
    return Payload(data=data, size=len(data))


def _memo(instance: Instance, memo: Payload | None, beside: Mapping[str, bytes]) -> Mapping[str, bytes]:
    return beside if memo is None else {**beside, instance.id: memo.SerializeToString()}


def _brief(data: bytes) -> str:
    return cut(masked(data.decode(errors="replace")), BRIEF_CHARS_MAX)


def seen(data: bytes) -> Payload:
    """Return what readers see of a value: all of it but the secrets, or where it is long its size alone."""
    return inline(masked_bytes(data)) if len(data) <= SEEN_BYTES_MAX else Payload(size=len(data))


def pieces(text: str) -> Sequence[str]:
    """Return a piece of text as deltas carry it: in several pieces where it is long."""
    text = well_formed(text)
    if len(text) <= DELTA_CHARS_MAX:
        return (text,)
    return [text[index : index + DELTA_CHARS_MAX] for index in range(0, len(text), DELTA_CHARS_MAX)]


class NonDeterministic(Exception):
    """The code no longer does what the log says it did.

    Attributes:
        error: What the run is PAUSED with.
    """

    def __init__(self, error: RunError) -> None:
        super().__init__(error.message)
        self.error = error


class Journal:
    """The writing side of one attempt. Belongs to one event loop."""

    def __init__(
        self,
        log: AttemptLog,
        *,
        run: Run,
        attempt: int,
        cache: Cache | None = None,
        permits: Permits | None = None,
        budgets: Budgets | None = None,
        breakers: Breakers | None = None,
        digest_key: bytes = b"",
        secret: bytes = b"",
        tracer: Tracer | None = None,
        trace_parent: str = "",
    ) -> None:
        self.log = log
        self.run = run
        self.namespace, self.run_id, self.attempt = run.namespace, run.run_id, attempt
        self.tenant = f"{run.namespace}/{run.fairness_key}"
        self.cache = cache
        self.permits = permits
        self.trace_parent = trace_parent
        """As the run was submitted."""
        self.children: dict[str, tuple[str, ...]] = {}
        """The runs that it started and that do not outlive it, each with the ids of who did and of those above."""
        self.children_started: set[str] = set()
        """All that it ever started."""
        self.budgets = budgets
        self.breakers = breakers
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
        self.replay: Replay | None = None
        """How it follows the attempts before it; None in the first."""
        self.turns = Turns()
        self.deadlines: dict[object, float] = {}
        """When the time of the components that run is up, in seconds since the epoch."""
        self.before_live: Callable[[], None] | None = None
        """Set while the run's cancellation waits for replay to catch up: what is not remembered comes after it."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when an instance has ended."""
        self.waits = Waits(self)
        self._digest_key = digest_key[:64]
        self.secret = secret
        """What chance is derived from; the same in every attempt."""
        self.thread = get_ident()
        self._from_threads = 0

    @property
    def first_deadline_s(self) -> float | None:
        """When the first of the components that run is out of time, in seconds since the epoch; None is never.

        A run that parks has to be woken by then: in the attempt that follows the component fails at once.
        """
        return min(self.deadlines.values(), default=None)

    # Writing

    def post(self, event: Event, memo: Mapping[str, bytes] = NOTHING, *, outbox: Sequence[bytes] = ()) -> None:
        """Hand over an event without waiting, and with it what goes into the memo and what is asked of other runs."""
        if self.closed:
            return
        try:
            self.log.post(event, memo, outbox=outbox)
        except LogError as error:
            self.refuse(error)

    async def append(self, *events: Event, memo: Mapping[str, bytes] | None = None) -> int:
        """Commit events and wait until they are durable. Returns the newest offset.

        Raises:
            CancelledError: The attempt is over.
        """
        if self.closed:
            await self._still_open()
        try:
            return await self.log.append(*events, memo=memo)
        except Exception as error:  # Whatever the log raises ends the attempt; Attempt.run tells
            self.refuse(error)
            raise asyncio.CancelledError("the attempt is over") from error

    @property
    def crowded(self) -> bool:
        """Whether there is anything that `room` waits for or raises. Most often there is not, and this costs less."""
        return self.closed or self.log.crowded

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
        task = asyncio.current_task(self.loop)
        if task is not None and task is not self.body and task not in self.tasks:
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def call(self, write: Callable[[Instance, M], None], instance: Instance, message: M) -> None:
        """Call one of the methods that show something, from the loop or from a thread of user code, in order."""
        if get_ident() == self.thread:
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

    async def cancelled_first(self) -> None:
        """Let the run's cancellation arrive before something begins that no earlier attempt has finished.

        Raises:
            CancelledError: It has reached the caller.
        """
        await self.turns.turn(NEVER, yields=True)
        if self.before_live is not None:
            self.before_live()
            # It goes down from the workflow's body, which may take a turn of the loop for each task in between.
            for _ in range(SETTLE_TURNS):
                await asyncio.sleep(0)

    # The journal proper

    def digest(self, data: bytes | None) -> bytes:
        """Return what identifies an input. Nothing does where it has no JSON form."""
        return b"" if data is None else blake2b(data, digest_size=16, key=self._digest_key).digest()

    def started(
        self,
        instance: Instance,
        data: bytes | None,
        digest: bytes,
        *,
        private: bool,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        instance.check()
        event = stamped(instance.id)
        started = event.component_started
        started.name = instance.name
        if data is not None and not private:
            started.input.CopyFrom(seen(data))
        if instance.parent is not None and instance.parent.id:
            started.parent_id = instance.parent.id
        if self.tracer is not None:
            above = None if instance.parent is None else instance.parent.span
            instance.span = tracing.ComponentSpan(self.tracer, instance.name, instance.id, above, kind)
        if digest:
            started.input_digest = digest
        self.post(event)

    def wait_started(
        self,
        instance: Instance,
        told: Payload | None,
        due_s: float | None,
        request: InputRequested | None,
        beside: Mapping[str, bytes],
        digest: bytes = b"",
    ) -> None:
        """Open a wait.

        Args:
            instance: The wait.
            told: What readers see of what it waits for.
            due_s: When it ends by itself, in seconds since the epoch; None is never.
            request: What it asks for.
            beside: What goes into the memo with it.
            digest: Identifies its input.

        Raises:
            CancelledError: It belongs to a try that failed.
        """
        instance.check()
        started = ComponentStarted(name=instance.name, input=told)
        if instance.parent is not None and instance.parent.id:
            started.parent_id = instance.parent.id
        if due_s is not None:
            started.due_time.FromNanoseconds(round(due_s * 1e9))
        if digest:
            started.input_digest = digest
        if self.tracer is not None:
            above = None if instance.parent is None else instance.parent.span
            instance.span = tracing.ComponentSpan(self.tracer, instance.name, instance.id, above)
        self.post(Event(create_time=now(), component_id=instance.id, component_started=started), beside)
        if request is not None:
            asked = InputRequested()
            asked.CopyFrom(request)
            if due_s is not None:
                asked.expire_time.CopyFrom(started.due_time)
            self.post(Event(create_time=now(), component_id=instance.id, input_requested=asked))

    async def finished(
        self,
        instance: Instance,
        output: Payload | None,
        memo: Payload | None = None,
        usage: Usage | None = None,
        *,
        signal_offset: int = 0,
        beside: Mapping[str, bytes] = NOTHING,
        cached: bool = False,
    ) -> None:
        """Commit a result. The caller may have it afterwards.

        Args:
            instance: What ended.
            output: What readers see.
            memo: What a later attempt gets, where that differs.
            usage: What its own model calls used.
            signal_offset: The signal that it took, which is its result.
            beside: More for the memo.
            cached: It came from the cache.

        Raises:
            CancelledError: The attempt is over, or the try that it belongs to.
        """
        instance.check()
        if instance.span is not None:
            self.turns.when_at_rest(partial(instance.span.end, time_ns()))
        event = self._finished(instance, OUTCOME_OK, usage)
        finished = event.component_finished
        if output is not None:
            finished.output.CopyFrom(output)
        if signal_offset:
            finished.signal_offset = signal_offset
        if cached:
            finished.cached = True
        if instance.record is not None:
            self.close_trail(instance)
        offset = await self.append(event, memo=_memo(instance, memo, beside))
        if not self.turns.at_once(offset):
            await self.turns.turn(offset)

    async def failed(
        self,
        instance: Instance,
        error: RunError,
        memo: Payload | None = None,
        usage: Usage | None = None,
        *,
        beside: Mapping[str, bytes] = NOTHING,
    ) -> None:
        """Commit an error. The caller may have it afterwards.

        Args:
            instance: What ended.
            error: Why.
            memo: The items that a stream had given before.
            usage: What its own model calls used.
            beside: More for the memo.

        Raises:
            CancelledError: The attempt is over, or the try that it belongs to.
        """
        instance.check()
        if instance.span is not None:
            tracing.end(instance.span, error)
        if instance.record is not None:
            self.close_trail(instance)
        event = self._finished(instance, OUTCOME_ERROR, usage)
        event.component_finished.error.CopyFrom(error)
        offset = await self.append(event, memo=_memo(instance, memo, beside))
        if not self.turns.at_once(offset):
            await self.turns.turn(offset)

    def told(self, instance: Instance, output: Payload, *, outbox: Sequence[bytes] = ()) -> None:
        """Write what needs no waiting for: it began and ended."""
        self.started(instance, None, b"", private=True)
        if instance.span is not None:
            self.turns.when_at_rest(partial(instance.span.end, time_ns()))
        event = self._finished(instance, OUTCOME_OK)
        event.component_finished.output.CopyFrom(output)
        self.post(event, outbox=outbox)

    def cancelled(
        self, instance: Instance, usage: Usage | None = None, *, beside: Mapping[str, bytes] = NOTHING, ran: bool = True
    ) -> None:
        if instance.span is not None:
            tracing.end(instance.span, cancelled=True)
        if instance.void:
            return
        if self.replay is not None and instance.record is not None and not self.closed:
            self.replay.ended(instance.record, ran=ran)
        self.post(self._finished(instance, OUTCOME_CANCELLED, usage), memo=beside)

    def _finished(self, instance: Instance, outcome: Outcome.ValueType, usage: Usage | None = None) -> Event:
        self.on_end()
        event = stamped(instance.id)
        event.component_finished.outcome = outcome
        if usage is not None:
            event.component_finished.usage.CopyFrom(usage)
        return event

    def retrying(
        self,
        instance: Instance,
        try_number: int,
        error: RunError,
        delay_s: float,
        *,
        fallback: bool = False,
        uncounted: bool = False,
    ) -> None:
        instance.check()
        self.waits.free(instance.id)
        void = [run_id for run_id, path in self.children.items() if instance.id in path]
        for run_id in void:
            del self.children[run_id]
        if instance.span is not None:
            tracing.retrying(instance.span, try_number, error)
        delay = Duration()
        delay.FromNanoseconds(round(delay_s * 1e9))
        retrying = ComponentRetrying(
            try_number=try_number, error=error, delay=delay, fallback=fallback, uncounted=uncounted
        )
        event = Event(create_time=now(), component_id=instance.id, component_retrying=retrying)
        self.post(event, outbox=[self.stop_child(run_id, "the try that started it failed") for run_id in void])

    def stop_child(self, run_id: str, reason: str) -> bytes:
        """Return the errand that cancels a child."""
        stop = StopRunRequest(namespace=self.run.namespace, run_id=run_id, reason=reason)
        return Errand(stop_child=stop).SerializeToString()

    async def diverged(self, instance: Instance, record: Record, data: bytes | None, *, private: bool) -> NoReturn:
        """The code makes another call than the one that the log has: the attempt is over, and the run PAUSED.

        Args:
            instance: What is called.
            record: What the log has in its place.
            data: The input that it is called with.
            private: Whether nobody may see that.
        """
        came = f"{instance.name}({'…' if private or data is None else _brief(data)})"
        expected = f"{record.name}(…)"
        offset = record.started_offset
        async for event in self.log.read(after=offset - 1):
            started = event.component_started
            if event.component_id == record.id and not private and started.input.data:
                expected = f"{record.name}({_brief(started.input.data)})"
            break
        raise self._paused(instance, f"the log has {expected} at offset {offset}, and now {came} was called")

    def diverged_now(self, instance: Instance, record: Record) -> BaseException:
        """`diverged`, from where nothing can be awaited. Returns what to raise."""
        return self._paused(
            instance, f"the log has {record.name} at offset {record.started_offset}, and now {instance.name} was called"
        )

    async def unreadable(self, instance: Instance, error: Exception) -> NoReturn:
        """The code cannot read a remembered result: the attempt is over, and the run PAUSED."""
        raise self._paused(instance, f"{instance.name} does not read the result it has in the log: {error}")

    def _paused(self, instance: Instance, what: str) -> BaseException:
        message = told(
            f"{instance.name}: {what}. The code is not the one that wrote the log, or what it does depends on time, "
            f"chance or the world outside: ask onward.now(), onward.uuid() and onward.random(), which are remembered, "
            f"or do it in a component"
        )
        self.refuse(NonDeterministic(RunError(reason=NON_DETERMINISTIC, message=message, component_id=instance.id)))
        return asyncio.CancelledError("the attempt is over")

    def rollback(self, ids: Iterable[str], cause: RollbackCause.ValueType) -> None:
        names = list(ids)
        for index in range(0, len(names), ROLLBACK_IDS_MAX):
            rollback = Rollback(component_ids=names[index : index + ROLLBACK_IDS_MAX], cause=cause)
            self.post(Event(create_time=now(), rollback=rollback))

    # What is shown

    def text(self, instance: Instance, text: str) -> Iterator[Event]:
        """Return the deltas of a piece of text."""
        if instance.shows():
            for piece in pieces(text):
                event = stamped(instance.id)
                delta = event.output_delta
                delta.channel, delta.text = CHANNEL_TEXT, piece
                if instance.record is None or not self._stands(instance, delta):
                    yield event

    async def item(self, instance: Instance, data: bytes) -> Iterator[Event]:
        """Return the delta of an item that is not text.

        Raises:
            CancelledError: The attempt is over.
        """
        if len(data) > INLINE_BYTES_MAX and instance.record is not None:
            value = await self._stored_again(instance, data)
        else:
            value = await self.stored(data)
        if not instance.shows():
            return iter(())
        delta = OutputDelta(channel=CHANNEL_ITEM, value=value)
        if instance.record is not None and self._stands(instance, delta):
            return iter(())
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

    async def kept(self, payload: Payload) -> bytes:
        """Return what `stored` kept.

        Raises:
            CancelledError: It is gone, or the attempt is over.
        """
        if payload.WhichOneof("value") == "data":
            return payload.data
        try:
            return await self.log.get_blob(payload.blob_uri)
        except Exception as error:  # Whatever the log raises ends the attempt; Attempt.run tells
            self.refuse(error)
            raise asyncio.CancelledError("the attempt is over") from error

    async def of_another(self, run_id: str, blob_uri: str) -> bytes:
        """Return a value that another run of the namespace keeps.

        Raises:
            KeyError: It is gone.
            CancelledError: The attempt is over.
        """
        try:
            return await self.log.get_blob(blob_uri, run_id)
        except KeyError:
            raise KeyError(f"{blob_uri} of run {run_id} is gone") from None
        except Exception as error:  # Whatever the log raises ends the attempt; Attempt.run tells
            self.refuse(error)
            raise asyncio.CancelledError("the attempt is over") from error

    def status(self, instance: Instance, status: StatusUpdated) -> None:
        if instance.shows():
            self._say(instance, Event(create_time=now(), component_id=instance.id, status_updated=status))

    def published(self, instance: Instance, published: Published) -> None:
        if instance.shows():
            published.value.CopyFrom(inline(masked_bytes(published.value.data)))
            self._say(instance, Event(create_time=now(), component_id=instance.id, published=published))

    # What earlier attempts had shown

    def _say(self, instance: Instance, event: Event) -> None:
        if instance.record is None or not instance.record.trail.has_line(event):
            self.post(event)

    def _stands(self, instance: Instance, delta: OutputDelta) -> bool:
        """Tell whether the log has the delta already. The first that it has otherwise voids those that follow."""
        assert instance.record is not None
        trail = instance.record.trail
        if not trail.deltas:
            return False
        if trail.deltas[0][1] == delta:
            trail.match()
            return True
        self._void_rest(instance)
        return False

    def close_trail(self, instance: Instance) -> None:
        """The instance ends: deltas that did not come again are void, and calls that did not will not."""
        assert instance.record is not None
        if instance.record.trail.deltas:
            self._void_rest(instance)
        if self.replay is not None:
            self.replay.ended(instance.record)

    def _void_rest(self, instance: Instance) -> None:
        assert instance.record is not None
        trail = instance.record.trail
        after = trail.last
        rollback = Rollback(component_ids=[instance.id], cause=ROLLBACK_CAUSE_ATTEMPT_LOST, after_offset=after)
        self.post(Event(create_time=now(), rollback=rollback))
        for event in trail.rest():
            self.post(event)

    async def _stored_again(self, instance: Instance, data: bytes) -> Payload:
        """Return the Payload of a large item, the one in the log where that holds the same."""
        assert instance.record is not None
        deltas = instance.record.trail.deltas
        if deltas:
            value = deltas[0][1].value
            if value.size == len(data) and value.WhichOneof("value") == "blob_uri" and await self.kept(value) == data:
                return value
        return await self.stored(data)
