"""How one call of a component runs: its tries, its time limit, its thread, and what of it goes into the log.

A call outside a run takes the same way with no instance: the policy holds, nothing is written, errors stay as they are.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import get_ident
from typing import Any, NoReturn

from opentelemetry.trace import SpanKind
from pydantic_core import from_json, to_json

from onward.concurrency import ConcurrencyLimit, permit
from onward.failure import PASSING, component_error, contained, run_error
from onward.fallback import Fallback
from onward.flights import CachePolicy, Flight, Kept, take
from onward.instance import Entered, Instance, Scope, leave
from onward.journal import NOTHING, SEEN_BYTES_MAX, seen
from onward.limits import UNLIMITED, Limits, total_timeout, try_timeout, within
from onward.past import DELTAS, ITEMS, Places
from onward.replay import Diverged, Replay, runs_below
from onward.retry import ONCE, NotRetryable, RetryPolicy, TryTimeout, sleep
from onward.signature import NO_HINT, Kind, OutputInvalid, Signature
from onward.turns import NEVER
from onward.v1.event_pb2 import ROLLBACK_CAUSE_FALLBACK, ROLLBACK_CAUSE_RETRY, Event, RollbackCause
from onward.v1.run_pb2 import Payload
from onward.waits import PACE

logger = logging.getLogger(__name__)

STOP_GRACE_S = 5.0
"""How long user code that nobody waits for any more may clean up before it is left alone."""

Failure = (Exception, SystemExit)
"""What a component can fail with. One that exits must not take the executor with it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How a component is called.

    Attributes:
        retry: How often.
        limits: How long it may take.
        fallback: What answers when all tries failed; None where the error goes up.
        cache: What is kept of it across runs; None keeps nothing.
        concurrency: How many run at once over all executors; None is without limit.
        private: Whether readers of the log see neither its input nor its result.
        key: Names the instance instead of how often its caller called the component before.
    """

    retry: RetryPolicy = ONCE
    limits: Limits = UNLIMITED
    fallback: Fallback | None = None
    cache: CachePolicy | None = None
    concurrency: ConcurrencyLimit | None = None
    private: bool = False
    key: str = ""


DEFAULT = Policy()


class Call:
    """One call of a component.

    Attributes:
        instance: Its place in the run; None outside a run.
        cached: Its result comes from the cache.
        flight: It makes a result for the cache.
    """

    __slots__ = ("args", "arguments", "cached", "flight", "instance", "kwargs", "name", "policy", "signature")

    span_kind = SpanKind.INTERNAL

    def __init__(
        self,
        name: str,
        signature: Signature,
        policy: Policy,
        instance: Instance | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        arguments: dict[str, Any],
    ) -> None:
        self.name = name
        self.signature = signature
        self.policy = policy
        self.instance = instance
        self.args = args
        self.kwargs = kwargs
        self.arguments = arguments
        self.cached = False
        self.flight: Flight | None = None

    def dump_input(self) -> bytes | None:
        """Return what it is called with as JSON, None where that has no such form."""
        return self.signature.dump_input(self.arguments)

    def canonical(self, data: bytes | None) -> bytes | None:
        """Return what identifies it, given what `dump_input` made."""
        return self.signature.canonical(self.arguments, data)

    def error_reason(self, error: BaseException, otherwise: str = "COMPONENT_FAILED") -> str:
        """Return the reason that an error which no further try follows is told with."""
        if isinstance(error, OutputInvalid):
            return "OUTPUT_INVALID"
        if self.policy.retry.covers(error):
            return "ATTEMPTS_EXHAUSTED"
        return "TIMEOUT" if isinstance(error, TryTimeout) else otherwise


async def run(call: Call) -> Any:
    """Run the call to its end and return the result: what a stream yields, as a whole.

    Raises:
        ComponentError: It failed, inside a run. Outside one its own error is raised.
        CancelledError: It was cancelled, or the attempt is over.
    """
    instance = call.instance
    if instance is None:
        return await tries(call, None)
    if await begin(call, instance):
        return await remembered(call, instance)
    try:
        if instance.journal.replay is None:
            value = await tries(call, instance)
        else:
            with working(instance):
                value = await tries(call, instance)
    except asyncio.CancelledError:
        instance.journal.cancelled(instance)
        raise
    except Failure as error:
        await fail(call, instance, error)
    await succeed(call, instance, value)
    return value


async def begin(call: Call, instance: Instance, *, gives_again: bool = False) -> bool:
    """Open the instance in the log, or where an earlier attempt has finished it wait for its turn.

    Args:
        call: The call.
        instance: Its place in the run.
        gives_again: Do not wait where there are items to be given before.

    Returns:
        Whether it is finished.

    Raises:
        CancelledError: It was cancelled; the attempt is over; or the code is not the one that wrote the log.
    """
    journal = instance.journal
    if get_ident() != journal.thread:
        raise RuntimeError(f"{call.name} was called on another event loop than its run's: call it from an `async def`")
    journal.came_by()
    instance.check()
    if journal.crowded:
        await journal.room()
    data = call.dump_input()
    digest = journal.digest(call.canonical(data))
    if journal.replay is not None:
        try:
            record = journal.replay.meet(instance, digest)
        except Diverged as error:
            await journal.diverged(instance, error.record, data, private=call.policy.private)
        if record is None:
            if not journal.replay.over:
                await journal.turns.turn(NEVER)
        elif record.outcome and gives_again and (record.memo is not None or record.trail.deltas):
            if record.remembered:
                return True
        elif record.outcome:
            # A cancelled one has its turn too: likely it is cancelled again before that, and does not run at all.
            await journal.turns.turn(record.finished_offset, yields=True)
            if record.remembered:
                return True
    if journal.before_live is not None and (instance.record is None or not instance.record.called_offset):
        await journal.cancelled_first()
    journal.started(instance, data, digest, private=call.policy.private, kind=call.span_kind)
    return False


async def remembered(call: Call, instance: Instance) -> Any:
    """Return what the finished instance gave.

    Raises:
        ComponentError: It had failed.
        CancelledError: The attempt is over, or the code cannot read the result any more.
    """
    record = instance.record
    assert record is not None
    if record.error is not None:
        raise component_error(call.name, record.error)
    value = record.memo or record.output
    assert value is not None
    if value.media_type in (ITEMS, DELTAS):
        items = Items(call.signature)
        given = [item for _, item in await recorded_items(call, instance)]
        if given:
            items.check(given[0])
        return items.whole(given)
    data = await instance.journal.kept(value)
    record.memo = record.output = None  # Nobody asks a second time.
    try:
        return call.signature.load_output(data)
    except ValueError as error:
        await instance.journal.unreadable(instance, error)


async def recorded_items(call: Call, instance: Instance) -> list[tuple[int, Any]]:
    """Return the items of a stream that the log has, each with its offset, or that of what was given before it.

    Raises:
        CancelledError: The attempt is over, or the code cannot read them any more.
    """
    record, journal, signature = instance.record, instance.journal, call.signature
    assert record is not None
    value = record.memo or record.output
    try:
        if record.remembered and value is not None and value.media_type != DELTAS:
            data = await journal.kept(value)
            if value.media_type == ITEMS:
                places = Places.load(record.places, record.started_offset)
                return list(zip(places, load_items(signature, data), strict=False))
            whole = signature.load_output(data)
            return [(record.finished_offset, one) for one in ([whole] if isinstance(whole, str) else whole)]
        found: list[tuple[int, Any]] = []
        for offset, delta in record.trail.deltas:
            is_text = not delta.HasField("value")
            found.append((offset, delta.text if is_text else signature.load_item(await journal.kept(delta.value))))
        return found
    except ValueError as error:
        await journal.unreadable(instance, error)


def working(instance: Instance) -> AbstractContextManager[None]:
    """Note while the block runs that something goes on which is not replay."""
    replay = instance.journal.replay
    if replay is None or (instance.record is not None and instance.record.called_offset):
        return _UNNOTED
    return _living(replay)


_UNNOTED = nullcontext()


@contextmanager
def _living(replay: Replay) -> Iterator[None]:
    replay.live += 1
    try:
        yield
    finally:
        replay.live -= 1


async def succeed(call: Call, instance: Instance, value: Any) -> None:
    """Commit the result, before the caller gets it.

    Raises:
        ComponentError: A later attempt could not have it.
    """
    try:
        data = call.signature.dump_output(value)
        call.signature.check_output(value, data)
    except OutputInvalid as error:
        if call.flight is not None:
            call.flight.release()
        await fail(call, instance, error)
    if call.flight is not None:
        is_text = call.signature.kind is Kind.STREAM and isinstance(value, str)
        call.flight.keep(b"[%b]" % (data if value else b"") if is_text else data)
    output = None if call.policy.private else seen(data)
    memo = None
    if output is None or output.data != data:
        memo = await instance.journal.stored(data)
    await instance.journal.finished(instance, output, memo, cached=call.cached)


async def fail(
    call: Call,
    instance: Instance,
    error: BaseException,
    memo: Payload | None = None,
    beside: Mapping[str, bytes] = NOTHING,
) -> NoReturn:
    """Commit the error, and raise it as the caller sees it."""
    told = run_error(error, call.error_reason(error), instance.id)
    await instance.journal.failed(instance, told, memo, beside=beside)
    raise component_error(call.name, told) from error


async def tries(call: Call, instance: Instance | None) -> Any:
    """Try as often as the policy says, and return the first result or the fallback's, or raise the last error."""
    policy = call.policy
    if (
        policy.retry.attempts == 1
        and policy.limits is UNLIMITED
        and policy.fallback is None
        and policy.cache is None
        and policy.concurrency is None
    ):
        return await one_try(call, instance)
    standing = Standing(call)
    if not standing.fell_back:
        try:
            async with in_total(call, standing):
                if policy.cache is None:
                    return await _retried(call, standing)
                return await _kept_or_made(call, standing)
        except Failure as error:
            await standing.stop()
            if policy.fallback is None or not policy.fallback.covers(error):
                raise
            standing.failed(error, fallback=True)
    return await _answered(call, standing, None if call.signature.kind is not Kind.STREAM else answers(call))


class Standing:
    """How far the tries of one call have come. Nothing of it begins again with an attempt of the run.

    Attributes:
        number: The try that runs or is next, from 1. A fallback counts as one.
        counted: The tries that have failed and count among those of the policy.
        began: When the first began, as time.monotonic() tells it.
        try_began: When the present one did, as far as its time counts: what passed while a lost attempt had not been
            replaced does not.
        wait_s: What is left of the wait before it.
        fell_back: No further try follows, the fallback answers.
        scope: What it has shown.
    """

    __slots__ = (
        "_call",
        "_committed",
        "_this",
        "began",
        "counted",
        "fell_back",
        "number",
        "scope",
        "try_began",
        "wait_s",
    )

    def __init__(self, call: Call) -> None:
        self._call = call
        self._this: Instance | None = None
        """The try that runs, or ran last."""
        instance = call.instance
        self.number = 1
        self.counted = 0
        self.began = self.try_began = time.monotonic()
        self.wait_s = 0.0
        self.fell_back = False
        self.scope: Scope = {}
        self._committed = True
        record = None if instance is None else instance.record
        if instance is None or record is None or instance.journal.replay is None:
            return
        now_s = PACE.get().clock()
        self.number = record.tries + 1
        self.counted = record.tries - record.uncounted
        self.fell_back = record.fell_back
        self.began -= max(0.0, now_s - record.started_s)
        self.try_began -= max(0.0, now_s - max(record.try_s, instance.journal.replay.past.resumed_s))
        if not record.called_offset:
            # Clocks of two machines differ: never longer than the wait as it was decided.
            self.wait_s = min(max(0.0, record.try_s - now_s), record.delay_s)

    async def begin(self) -> Instance | None:
        """Wait until the next try may begin, and return its instance.

        Raises:
            CancelledError: The attempt is over.
        """
        if self.wait_s:
            await self._wait()
            self.wait_s = 0.0
            self.try_began = time.monotonic()
        if self._call.instance is None:
            return None
        if not self._committed:
            # That the last one failed is in the log before this one does anything: a crash gives no try back.
            await self._call.instance.journal.append()
            self._committed = True
            self.try_began = time.monotonic()
        this, self.scope = self._call.instance.new_try(self.number)
        self._this = this
        if self._call.flight is not None:
            this.flights = (*this.flights, self._call.flight.key)
        return this

    async def _wait(self) -> None:
        """Wait before the next try. In a run that is a wait like others: where it takes long, the run parks."""
        instance, instead = self._call.instance, sleep.get()
        if instead is not None:
            await instead(self.wait_s)
        elif instance is None:
            await asyncio.sleep(self.wait_s)
        else:
            await instance.journal.waits.back_off(instance, self.wait_s)

    async def stop(self) -> None:
        """Stop what the try that failed has left running; the time of all tries may have ended it in the middle."""
        if self._this is not None:
            await stop_below(self._this)

    def delay_s(self, error: BaseException) -> float | None:
        """Return how long to wait after the try that failed, or None where no further one follows."""
        return self._call.policy.retry.delay_s(self.number, error, time.monotonic() - self.began)

    def failed(
        self, error: BaseException, delay_s: float = 0.0, *, fallback: bool = False, uncounted: bool = False
    ) -> None:
        """Write that the try failed, and that what it had shown is void."""
        call, instance = self._call, self._call.instance
        if instance is not None:
            if fallback:
                reason = call.error_reason(error)
            else:
                reason = "TIMEOUT" if isinstance(error, TryTimeout) else "COMPONENT_FAILED"
            told = run_error(error, reason, instance.id)
            instance.journal.retrying(instance, self.number, told, delay_s, fallback=fallback, uncounted=uncounted)
            self._committed = False
            instance.journal.rollback(self.scope, ROLLBACK_CAUSE_FALLBACK if fallback else _rollback_cause(error))
            if instance.record is not None and instance.journal.replay is not None:
                instance.journal.replay.failed_try(instance.record)
        self.number += 1
        self.counted += not uncounted
        if self._this is not None:
            self._this.failed = True
        self.wait_s = delay_s
        self.try_began = time.monotonic()
        self.fell_back = fallback
        self.scope = {}


def _rollback_cause(error: BaseException | None) -> RollbackCause.ValueType:
    """Return why what a failed try had shown is void: what the error, or the one it began with, says of itself."""
    while error is not None:
        cause: RollbackCause.ValueType | None = getattr(error, "rollback_cause", None)
        if cause is not None:
            return cause
        error = error.__cause__
    return ROLLBACK_CAUSE_RETRY


@asynccontextmanager
async def in_total(call: Call, standing: Standing) -> AsyncIterator[None]:
    """End the block with an error when the time of all tries together is up."""
    total_s = call.policy.limits.total_s
    if total_s is None or standing.fell_back:
        yield
        return
    async with _limited(call.instance, standing.began + total_s - time.monotonic(), total_timeout(total_s)):
        yield


@asynccontextmanager
async def in_each(call: Call, instance: Instance | None, left_s: float) -> AsyncIterator[None]:
    """End the block with an error when what is left of a try's time is up."""
    each_s = call.policy.limits.each_s
    if each_s is None:
        yield
        return
    async with _limited(instance, left_s, try_timeout(each_s)):
        yield


@asynccontextmanager
async def _limited(instance: Instance | None, left_s: float, error: TryTimeout) -> AsyncIterator[None]:
    if instance is None:
        async with within(left_s, error):
            yield
        return
    # A run that parks meanwhile has to be woken when the time is up.
    deadlines, mark = instance.journal.deadlines, object()
    deadlines[mark] = PACE.get().clock() + left_s
    try:
        async with within(left_s, error):
            yield
    finally:
        del deadlines[mark]


async def _retried(call: Call, standing: Standing) -> Any:
    while True:
        this = await standing.begin()
        release = await permitted(call, this, standing)
        try:
            return await one_try(call, this, standing.try_began)
        except Failure as error:
            delay_s = standing.delay_s(error)
            if delay_s is None:
                raise
            standing.failed(error, delay_s)
        finally:
            if release is not None:
                release()


async def permitted(call: Call, this: Instance | None, standing: Standing) -> Callable[[], None] | None:
    """Wait until a try may run, and return what is to be called when it has ended. The wait is no part of its time."""
    limit = call.policy.concurrency
    if limit is None or this is None:
        return None
    began = time.monotonic()
    release = await permit(limit, this, call.args, call.kwargs)
    standing.try_began += time.monotonic() - began
    return release


async def _kept_or_made(call: Call, standing: Standing) -> Any:
    """Return what the cache has, or what the tries give: for the cache too."""
    kept = await look_up(call)
    if kept is not None:
        return kept.value if call.signature.kind is not Kind.STREAM else await _answered(call, standing, each_of(kept))
    try:
        return await _retried(call, standing)
    except BaseException:
        if call.flight is not None:
            call.flight.release()
        raise


async def look_up(call: Call) -> Kept | None:
    """Return what the cache has of a call, of a stream its items. None where the call runs, with or without a flight.

    Raises:
        Exception: What the component's `key` raises.
    """
    cache, instance, signature = call.policy.cache, call.instance, call.signature
    # A run is always run: it is its calls that may be known.
    if cache is None or instance is None or instance.parent is None:
        return None
    identity = cache.identity(call.name, call.canonical(call.dump_input()), call.args, call.kwargs)
    load = load_items if signature.kind is Kind.STREAM else Signature.load_output
    found = await take(cache, instance, identity, lambda data: load(signature, data))
    if isinstance(found, Kept):
        call.cached = True
        return found
    call.flight = found
    return None


def load_items(signature: Signature, data: bytes) -> list[Any]:
    """Return the items that a JSON array holds.

    Raises:
        ValueError: They are not of this signature.
    """
    return [signature.load_item(to_json(one)) for one in from_json(data)]


async def each_of(kept: Kept) -> AsyncIterator[Any]:
    """Yield the items of a stream that the cache had."""
    for item in kept.value:
        yield item


async def _answered(call: Call, standing: Standing, items: AsyncIterator[Any] | None) -> Any:
    """Return what answers for the tries: items of a stream, or the fallback.

    The component's limits do not hold for a fallback: a component has limits of its own.
    """
    this = await standing.begin()
    if this is None:
        return await _answer(call, None, items)
    token = this.enter()
    try:
        return await _answer(call, this, items)
    finally:
        await _end_try(this, token)


async def _answer(call: Call, instance: Instance | None, items: AsyncIterator[Any] | None) -> Any:
    if items is not None:
        return await collect(call, instance, items)
    fallback = call.policy.fallback
    assert fallback is not None
    return fallback.given() if fallback.fn is None else await _called(fallback.fn, fallback.kind, call)


async def answers(call: Call) -> AsyncIterator[Any]:
    """Yield what the fallback of a stream gives, item by item."""
    fallback = call.policy.fallback
    assert fallback is not None
    if fallback.fn is not None and fallback.kind is Kind.STREAM:
        items = fallback.fn(*call.args, **call.kwargs)
        try:
            async for item in items:
                yield item
        finally:
            await close_generator(items)
        return
    whole = fallback.given() if fallback.fn is None else await _called(fallback.fn, fallback.kind, call)
    if isinstance(whole, str):
        yield whole
    elif isinstance(whole, list | tuple):
        for item in whole:
            yield item
    else:
        raise NotRetryable(f"{call.name} streams: its fallback gives text or a list of items, not a {type(whole)}")


async def one_try(call: Call, instance: Instance | None, began: float | None = None) -> Any:
    """Run the function once, within the time that a try has.

    Args:
        call: The call.
        instance: The try's; None outside a run.
        began: Since when its time runs, as time.monotonic() tells it; None is now.
    """
    if instance is None:
        return await _in_time(call, None, began)
    token = instance.enter()
    try:
        return await _in_time(call, instance, began)
    except Failure:
        await stop_below(instance)
        raise
    finally:
        await _end_try(instance, token)


async def stop_below(instance: Instance) -> None:
    """Cancel what a try that failed has left running, such as the other calls of an asyncio.gather."""
    current = asyncio.current_task()
    left = [task for task in instance.journal.tasks if task is not current and runs_below(task, instance)]
    if left:
        for task in left:
            task.cancel()
        # What does not end by then is void, whatever it does: see Instance.void.
        await asyncio.wait(left, timeout=STOP_GRACE_S)


async def _end_try(instance: Instance, token: Entered) -> None:
    try:
        if instance.flows:
            await close_flows(instance)
    finally:
        instance.ended = True
        leave(token)


async def _in_time(call: Call, instance: Instance | None, began: float | None) -> Any:
    each_s = call.policy.limits.each_s
    if each_s is None:
        return await _invoke(call, instance)
    left_s = each_s if began is None else began + each_s - time.monotonic()
    async with in_each(call, instance, left_s):
        return await _invoke(call, instance)


async def _invoke(call: Call, instance: Instance | None) -> Any:
    if call.signature.kind is Kind.STREAM:
        return await collect(call, instance, call.signature.fn(*call.args, **call.kwargs), call.policy.limits)
    return await _called(call.signature.fn, call.signature.kind, call)


async def _called(fn: Callable[..., Any], kind: Kind, call: Call) -> Any:
    try:
        if kind is Kind.COROUTINE:
            return await fn(*call.args, **call.kwargs)
        value = await in_thread(fn, call.args, call.kwargs)
        # A plain function may hand on what an asynchronous one gave it.
        return await value if inspect.isawaitable(value) else value
    except PASSING:
        raise
    except BaseException as error:
        raise contained(error, call.name) from error


async def in_thread(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a synchronous function in a thread of the loop's pool, with the context of the caller.

    A thread cannot be stopped: when the call is cancelled or out of time, it goes on and what it gives is dropped.
    """
    context = contextvars.copy_context()

    def work() -> Any:
        try:
            return context.run(fn, *args, **kwargs)
        except StopIteration as error:
            # A future refuses this one, and whoever waits for it would wait for ever.
            raise RuntimeError("the function raised StopIteration") from error

    return await asyncio.get_running_loop().run_in_executor(None, work)


# Streams


class Items:
    """What a stream has given so far: pieces of one text, or values."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        # Without an annotation the first item tells.
        self.is_text = None if signature.item is NO_HINT else signature.item is str

    def check(self, item: Any) -> None:
        """Refuse what is no text in a stream of text.

        Raises:
            NotRetryable: It is of another type.
        """
        if self.is_text is None:
            self.is_text = isinstance(item, str)
        if self.is_text and not isinstance(item, str):
            raise NotRetryable(f"{self._signature.name} streams text, but yielded a {type(item).__name__}")

    def whole(self, items: list[Any]) -> Any:
        """Return all of them as one."""
        return items if self.is_text is False else "".join(items)


async def deltas(call: Call, instance: Instance, items: Items, item: Any) -> Iterable[Event]:
    """Return the events that show one item.

    Raises:
        Unserializable: It has no JSON form.
        CancelledError: The attempt is over.
    """
    if items.is_text:
        return instance.journal.text(instance, item)
    return await instance.journal.item(instance, call.signature.dump_item(item))


async def collect(
    call: Call, instance: Instance | None, generator: AsyncIterator[Any], limits: Limits = UNLIMITED
) -> Any:
    """Run a stream to its end, showing what it yields as it comes, and return the whole."""
    items = Items(call.signature)
    gathered: list[Any] = []
    voice = instance if instance is not None and instance.voice else None
    try:
        async for item in generator if limits.first_s is limits.between_s is None else in_step(generator, limits):
            items.check(item)
            gathered.append(item)
            if voice is not None:
                journal = voice.journal
                # Not awaited where it is text: a coroutine for each token costs as much as its event.
                for event in journal.text(voice, item) if items.is_text else await deltas(call, voice, items, item):
                    journal.post(event)
                if journal.crowded:
                    await journal.room()
    except PASSING:
        raise
    except BaseException as error:
        raise contained(error, call.name) from error
    finally:
        await close_generator(generator)
    return items.whole(gathered)


async def in_step(generator: AsyncIterator[Any], limits: Limits) -> AsyncIterator[Any]:
    """Yield the items of a generator, each within its time."""
    first = True
    while True:
        try:
            item = await next_in_time(generator, limits, first=first)
        except StopAsyncIteration:
            return
        first = False
        yield item


async def next_in_time(generator: AsyncIterator[Any], limits: Limits, *, first: bool) -> Any:
    """Return the next item of a generator.

    Raises:
        StopAsyncIteration: There is none.
        TryTimeout: It takes too long.
    """
    limit_s, late = limits.item(first=first)
    if limit_s is None:
        return await anext(generator)
    async with within(limit_s, TryTimeout(late)):
        return await anext(generator)


async def close_generator(generator: AsyncIterator[Any]) -> None:
    """Make a generator clean up now, not when it is collected."""
    aclose = getattr(generator, "aclose", None)
    if aclose is not None:
        await aclose()


async def close_flows(instance: Instance) -> None:
    """End the streams that an instance left half read."""
    for flow in list(instance.flows or ()):
        try:
            await flow.close()
        except Failure:
            logger.warning("%s failed to clean up", flow.call.name, exc_info=True)


class Seen:
    """What readers see of a stream that is read piece by piece: kept while it is short, then only counted."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 2  # The quotes, or the brackets.
        self.items: list[bytes] = []
        """Each item as JSON, where they are kept."""

    def add(self, data: bytes, *, is_text: bool, keep: bool) -> None:
        """Take the JSON of the next item."""
        if keep:
            self.items.append(data)
        part = data[1:-1] if is_text else data
        self._size += len(part) if is_text or self._size == 2 else len(part) + 1
        if self._size > SEEN_BYTES_MAX:
            self._parts.clear()
        else:
            self._parts.append(part)

    def payload(self, *, is_text: bool) -> Payload:
        """Return all of it, as one result."""
        if self._size > SEEN_BYTES_MAX:
            return Payload(size=self._size)
        return seen(b'"%b"' % b"".join(self._parts) if is_text else b"[%b]" % b",".join(self._parts))
