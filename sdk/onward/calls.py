"""How one call of a component runs: its tries, its time limit, its thread, and what of it goes into the log.

A call outside a run takes the same way with no instance: the policy holds, nothing is written, errors stay as they are.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from onward.durations import text
from onward.failure import component_error, run_error
from onward.instance import Instance, Scope, leave
from onward.journal import SEEN_BYTES_MAX, inline, seen
from onward.retry import ONCE, NotRetryable, RetryPolicy, TryTimeout, sleep
from onward.signature import NO_HINT, Kind, Signature, Unserializable
from onward.v1.event_pb2 import ROLLBACK_CAUSE_RETRY, Event
from onward.v1.run_pb2 import Payload

logger = logging.getLogger(__name__)

Failure = (Exception, SystemExit)
"""What a component can fail with. One that exits must not take the executor with it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How a component is called.

    Attributes:
        retry: How often.
        timeout_s: How long one try may take, in seconds; None is without limit.
        private: Whether readers of the log see neither its input nor its result.
        key: Names the instance instead of how often its caller called the component before.
    """

    retry: RetryPolicy = ONCE
    timeout_s: float | None = None
    private: bool = False
    key: str = ""


DEFAULT = Policy()


class Call:
    """One call of a component.

    Attributes:
        instance: Its place in the run; None outside a run.
    """

    __slots__ = ("args", "arguments", "instance", "kwargs", "name", "policy", "signature")

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

    def error_reason(self, error: BaseException, otherwise: str = "COMPONENT_FAILED") -> str:
        """Return the reason that an error which no further try follows is told with."""
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
    await begin(call, instance)
    try:
        value = await tries(call, instance)
    except asyncio.CancelledError:
        instance.journal.cancelled(instance)
        raise
    except Failure as error:
        await fail(call, instance, error)
    await succeed(call, instance, value)
    return value


async def begin(call: Call, instance: Instance) -> None:
    """Open the instance in the log."""
    journal = instance.journal
    if asyncio.get_running_loop() is not journal.loop:
        raise RuntimeError(f"{call.name} was called on another event loop than its run's: call it from an `async def`")
    journal.came_by()
    await journal.room()
    journal.started(instance, call.signature.dump_input(call.arguments), private=call.policy.private)


async def succeed(call: Call, instance: Instance, value: Any) -> None:
    """Commit the result, before the caller gets it."""
    output = None
    if not call.policy.private:
        try:
            output = seen(call.signature.dump_output(value))
        except Unserializable:
            pass  # Readers see that it ended well, and no value.
    await instance.journal.finished(instance, output)


async def fail(call: Call, instance: Instance, error: BaseException) -> NoReturn:
    """Commit the error, and raise it as the caller sees it."""
    told = run_error(error, call.error_reason(error), instance.id)
    await instance.journal.failed(instance, told)
    raise component_error(call.name, told) from error


async def tries(call: Call, instance: Instance | None) -> Any:
    """Try as often as the policy says, and return the first result or raise the last error."""
    policy = call.policy.retry
    if policy.attempts == 1:
        return await one_try(call, instance)
    began = time.monotonic()
    number = 1
    while True:
        this, scope = (None, {}) if instance is None else instance.new_try()
        try:
            return await one_try(call, this)
        except Failure as error:
            delay_s = policy.delay_s(number, error, time.monotonic() - began)
            if delay_s is None:
                raise
            if instance is not None:
                record_retry(instance, scope, number, error, delay_s)
        await sleep.get()(delay_s)
        number += 1


def record_retry(instance: Instance, scope: Scope, number: int, error: BaseException, delay_s: float) -> None:
    """Write that a try failed and that what it had shown is void."""
    reason = "TIMEOUT" if isinstance(error, TryTimeout) else "COMPONENT_FAILED"
    instance.journal.retrying(instance, number, run_error(error, reason, instance.id), delay_s)
    instance.journal.rollback(scope, ROLLBACK_CAUSE_RETRY)


async def one_try(call: Call, instance: Instance | None) -> Any:
    """Run the function once, within the time that a try has."""
    if instance is None:
        return await _in_time(call, None)
    token = instance.enter()
    try:
        return await _in_time(call, instance)
    finally:
        try:
            if instance.flows:
                await close_flows(instance)
        finally:
            instance.ended = True
            leave(token)


async def _in_time(call: Call, instance: Instance | None) -> Any:
    timeout_s = call.policy.timeout_s
    if timeout_s is None:
        return await _invoke(call, instance)
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await _invoke(call, instance)
    except TimeoutError:
        if limit.expired():
            raise try_timeout(timeout_s) from None
        raise


def try_timeout(timeout_s: float) -> TryTimeout:
    """Return the error of a try that took too long."""
    return TryTimeout(f"no result within {text(timeout_s)}")


async def _invoke(call: Call, instance: Instance | None) -> Any:
    kind = call.signature.kind
    if kind is Kind.COROUTINE:
        return await call.signature.fn(*call.args, **call.kwargs)
    if kind is Kind.STREAM:
        return await collect(call, instance)
    value = await in_thread(call.signature.fn, call.args, call.kwargs)
    # A plain function may hand on what an asynchronous one gave it.
    return await value if inspect.isawaitable(value) else value


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


async def collect(call: Call, instance: Instance | None) -> Any:
    """Run a stream to its end, showing what it yields as it comes, and return the whole."""
    generator = call.signature.fn(*call.args, **call.kwargs)
    items = Items(call.signature)
    gathered: list[Any] = []
    voice = instance if instance is not None and instance.voice else None
    try:
        async for item in generator:
            items.check(item)
            gathered.append(item)
            if voice is not None:
                for event in await deltas(call, voice, items, item):
                    voice.journal.post(event)
                await voice.journal.room()
    finally:
        await close_generator(generator)
    return items.whole(gathered)


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

    def add(self, data: bytes, *, is_text: bool) -> None:
        """Take the JSON of the next item."""
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
        return inline(b'"%b"' % b"".join(self._parts) if is_text else b"[%b]" % b",".join(self._parts))
