"""What a run waits for: a time, a signal, a person's answer. Waiting so is free: the run parks and holds no executor.

When it wakes, its code runs again from the first line, and what components gave is remembered. So what touches the
world before a wait belongs in a component of its own. Code that is parked is stopped by CancelledError: its `finally`
blocks run, and components that they call do not. Where the run is cancelled meanwhile they run once more, and do.

Whatever else is to be waited for in this way (a child run's end, a budget, a provider) goes through `wait`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar, overload

from pydantic import TypeAdapter
from pydantic_core import to_json

from onward.durations import Duration, seconds, text
from onward.failure import WAIT_TIMEOUT, component_error
from onward.instance import CURRENT, Instance
from onward.journal import NOTHING, inline, seen
from onward.log import RESERVED
from onward.past import Record
from onward.replay import Diverged
from onward.secrets import masked
from onward.signature import adapter_of, schema_of, value_of
from onward.turns import NEVER
from onward.v1.event_pb2 import WAIT_KIND_SIGNAL, WAIT_KIND_TIMER, InputRequested, WaitKind
from onward.v1.run_pb2 import Payload, RunError
from onward.waits import LAST_S

T = TypeVar("T")

SIGNAL_NAME_BYTES_MAX = 128

PROMPT_CHARS_MAX = 8 * 1024


async def sleep(duration: Duration = 0, *, until: datetime | None = None) -> None:
    """Wait: seconds or months. In a run the time is kept in the log, and the run holds no executor meanwhile.

    Outside a run it only sleeps.

    Args:
        duration: How long, e.g. "3d" or 1.5 (seconds).
        until: When to go on, instead; with a time zone. A time that has passed is not waited for.

    Raises:
        ValueError: It is not a duration, `until` has no time zone, or both are given.
    """
    for_s, until_s = seconds(duration), None
    if until is not None:
        if for_s:
            raise ValueError("sleep takes a duration or until=, not both")
        if until.tzinfo is None:
            raise ValueError(f"until={until.isoformat()} has no time zone: write e.g. until=datetime(…, tzinfo=UTC)")
        until_s = until.timestamp()
    if running() is None:
        await asyncio.sleep(for_s if until_s is None else max(0.0, until_s - datetime.now(UTC).timestamp()))
        return
    told = {"for": text(for_s)} if until is None else {"until": until.isoformat()}
    await wait(What(name="onward.sleep", kind=WAIT_KIND_TIMER, told=told, for_s=for_s, until_s=until_s))


@overload
async def signal(name: str, type: type[T], *, timeout: Duration | None = None) -> T: ...
@overload
async def signal(name: str, type: Any = Any, *, timeout: Duration | None = None) -> Any: ...
async def signal(name: str, type: Any = Any, *, timeout: Duration | None = None) -> Any:
    """Wait for a signal, and return its value. One that was sent before is kept and taken at once.

    Each signal is taken once: the oldest that fits, by the wait of its name that began first.

    Args:
        name: The signal's name, up to 128 printable characters.
        type: What the value has to be, in pydantic's eyes. One that is not is passed over, and the wait goes on.
        timeout: How long to wait at most; without limit by default. A limit from elsewhere (asyncio.timeout) is kept,
            too, but keeps the run in its executor.

    Raises:
        WaitTimeout: None came in time. It is a TimeoutError and a ComponentError.
        RuntimeError: Called outside a run.
        ValueError: The name or the timeout makes no sense.
    """
    return await _signal("onward.signal", name, type, timeout, None)


@overload
async def request_input(name: str, type: type[T], *, prompt: str = "", timeout: Duration | None = None) -> T: ...
@overload
async def request_input(name: str, type: Any = Any, *, prompt: str = "", timeout: Duration | None = None) -> Any: ...
async def request_input(name: str, type: Any = Any, *, prompt: str = "", timeout: Duration | None = None) -> Any:
    """Ask somebody for input, and return the answer, which comes as a signal of this name.

    Whoever follows the run sees what is asked for, with the prompt and a JSON Schema of the type. An answer of another
    shape is refused to its sender.

    Args:
        name: The signal's name.
        type: What the answer has to be.
        prompt: What the person who answers is asked, up to 8,192 characters.
        timeout: How long to wait at most; without limit by default.

    Raises:
        WaitTimeout: No answer came in time. It is a TimeoutError and a ComponentError.
        RuntimeError: Called outside a run.
        TypeError: The type has no JSON Schema.
        ValueError: The name, the prompt or the timeout makes no sense.
    """
    if len(prompt) > PROMPT_CHARS_MAX:
        raise ValueError(f"a prompt has at most {PROMPT_CHARS_MAX} characters, not {len(prompt)}")
    schema = b"" if type is Any else to_json(schema_of(type))
    request = InputRequested(name=name, prompt=masked(prompt), schema=inline(schema) if schema else None)
    return await _signal("onward.request_input", name, type, timeout, request)


async def _signal(name: str, signal: str, type: Any, timeout: Duration | None, request: InputRequested | None) -> Any:
    if not signal or not signal.isprintable() or len(signal.encode()) > SIGNAL_NAME_BYTES_MAX:
        raise ValueError(f"a signal's name is 1 to {SIGNAL_NAME_BYTES_MAX} printable characters, not {signal!r}")
    if signal.startswith(RESERVED):
        raise ValueError(f"signals that begin with {RESERVED!r} are Onward's own: {signal!r}")
    for_s = None if timeout is None else seconds(timeout)
    if running() is None:
        raise RuntimeError(f"{name}({signal!r}) waits in a run: in a test call the workflow by onward.testing.run")
    return await wait(
        What(
            name=name,
            kind=WAIT_KIND_SIGNAL,
            signal=signal,
            fits=partial(_fitting, adapter_of(type)),
            request=request,
            told={"name": signal},
            for_s=for_s,
            late="" if for_s is None else f"no signal {signal!r} within {text(for_s)}",
        )
    )


def _fitting(adapter: TypeAdapter[Any], value: Payload) -> Any:
    # As strict as the JSON Schema that a sender is held to.
    return value_of(adapter, value.data or b"null", strict=True)


def _nothing(value: Payload) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class What:
    """What `wait` waits for.

    Attributes:
        name: What the wait is called as an instance, e.g. "onward.sleep".
        called: What its errors call it, where that is something else.
        kind: What it is to a reader of RunWaiting.
        words: The same for a person; by default "signal NAME", or the time at which it ends.
        signal: The name of the signal that ends it; empty where only time does.
        fits: Returns what the wait makes of a signal's value; raises ValueError for one that is to be passed over.
            Called again in every later attempt, and must give the same.
        request: Written to the log when the wait begins, and its schema is what senders of the signal are held to.
        for_s: Seconds until its time is up, from the moment it begins first; None is never.
        until_s: When its time is up, in seconds since the epoch, instead.
        late: What is raised, as the message of a WaitTimeout, when its time is up. Empty: that is how it ends well.
        key: Names the instance among others of the same name and signal that its caller began.
        told: What readers of the log see as its input.
        input: What identifies it, beside its place.
        acts: It does more than wait: it does not begin any more when the run's cancellation has come.
    """

    name: str
    called: str = ""
    kind: WaitKind.ValueType
    words: str = ""
    signal: str = ""
    fits: Callable[[Payload], Any] = _nothing
    request: InputRequested | None = None
    for_s: float | None = None
    until_s: float | None = None
    late: str = ""
    key: str = ""
    told: dict[str, Any] = field(default_factory=dict)
    input: bytes | None = None
    acts: bool = False

    def refusal(self, instance: Instance) -> RunError | None:
        """Return why it does not even begin; asked before it first does."""
        return None

    def began(self, instance: Instance) -> None:
        """Write more than that the wait began, where an earlier attempt has not come to it."""

    async def end(self, instance: Instance, offset: int, value: Any, beside: Mapping[str, bytes]) -> Any:
        """Commit what came of the signal at `offset`, of which `fits` made `value`, and return what the caller gets."""
        await instance.journal.finished(instance, None, signal_offset=offset, beside=beside)
        return value

    async def again(self, instance: Instance, record: Record) -> Any:
        """Return what a signal had ended with in an earlier attempt."""
        if not record.signal_offset:
            return None
        replay = instance.journal.replay
        assert replay is not None
        received = replay.past.signals[record.signal_offset]
        try:
            return self.fits(received.value)
        except ValueError as error:
            await instance.journal.unreadable(instance, error)


def running() -> Instance | None:
    """Return the instance whose code runs; None outside a run."""
    caller = CURRENT.get()
    return None if caller is None or caller.ended else caller


async def wait(what: What) -> Any:
    """Wait in a run for something durable: the one way to do so, for every kind.

    The wait is an instance below its caller, told by its name, its signal and its key. Its ComponentStarted carries the
    time at which it ends by itself; its ComponentFinished the signal that it took. While nothing of the run can go on
    but what waits here, the run parks: it leaves its executor and is queued again when the first of all those times has
    come, or a signal of one of the names. It is then replayed to this place. What was waited for may not have come:
    then it parks again.

    A wait that ends by a signal which the suite itself sends (a child's end) has a name that begins with RESERVED. One
    that ends when it is likely worth another look (a budget, a provider) has a time alone, and is called again by its
    caller as often as need be: each is an instance of its own.

    Returns:
        What `what.fits` made of the signal; None where it ended by time.

    Raises:
        WaitTimeout: Its time is up, and `what.late` is set.
        CancelledError: It was cancelled, and took nothing; or the attempt is over.
        RuntimeError: Called outside a run, or on another event loop than the run's.
    """
    caller = running()
    if caller is None:
        raise RuntimeError(f"{what.name} waits in a run")
    journal = caller.journal
    if asyncio.get_running_loop() is not journal.loop:
        raise RuntimeError(f"{what.name} was called on another event loop than its run's: call it from an `async def`")
    key = f"{what.signal}\0{what.key}" if what.key else what.signal
    return await wait_as(what, caller.child(what.name, streams=False, key=key))


async def wait_as(what: What, instance: Instance) -> Any:
    """`wait`, as an instance that there is already."""
    journal = instance.journal
    waits, replay = journal.waits, journal.replay
    journal.came_by()
    instance.check()
    await journal.room()
    told = seen(to_json(what.told)) if what.told else None
    digest = journal.digest(what.input)
    record: Record | None = None
    if replay is not None:
        try:
            record = replay.meet(instance, digest)
        except Diverged as error:
            await journal.diverged(instance, error.record, None, private=True)
        if record is None:
            if not replay.over:
                await journal.turns.turn(NEVER)
        elif record.outcome:
            # A cancelled one has its turn too: likely it is cancelled again before that.
            await journal.turns.turn(record.finished_offset, yields=True)
            if record.remembered:
                if record.error is not None:
                    raise component_error(what.called or what.name, record.error)
                return await what.again(instance, record)
    begun = record is not None and not record.outcome
    if what.acts and journal.before_live is not None and not begun:
        await journal.cancelled_first()
    if record is None and (refusal := what.refusal(instance)) is not None:
        journal.wait_started(instance, told, None, None, NOTHING, digest)
        await journal.failed(instance, refusal)
        raise component_error(what.called or what.name, refusal)
    due_s = record.due_s if begun and record is not None else _due_s(what, waits.pace.clock())
    schema = what.request.schema.data if what.request is not None else b""
    wait = waits.begin(
        instance,
        what.kind,
        what.words or (f"signal {what.signal}" if what.signal else _timer(due_s)),
        signal=what.signal,
        due_s=due_s,
        fits=what.fits,
        schema=schema,
    )
    try:
        if not begun:
            journal.wait_started(instance, told, due_s, what.request, waits.asks(what.signal), digest)
        what.began(instance)
        if journal.before_live is not None:
            await journal.cancelled_first()
        elif replay is not None and not replay.over:
            # What is new is given when all that is old has been called again.
            await journal.turns.turn(NEVER)
        waits.offer(what.signal)
        waits.arm(wait)
        taken = await wait.end
    except asyncio.CancelledError:
        journal.cancelled(instance, beside=waits.end(wait, unused=True))
        raise
    beside = waits.end(wait)
    if taken is not None:
        offset, value = taken
        return await what.end(instance, offset, value, beside)
    if not what.late:
        await journal.finished(instance, inline(b"null"), beside=beside)
        return None
    late = RunError(reason=WAIT_TIMEOUT, type="TimeoutError", message=what.late, component_id=instance.id)
    await journal.failed(instance, late, beside=beside)
    raise component_error(what.called or what.name, late)


def _due_s(what: What, now_s: float) -> float | None:
    due_s = what.until_s if what.for_s is None or what.until_s is not None else now_s + what.for_s
    return None if due_s is None else min(max(due_s, 0.0), LAST_S)


def _timer(due_s: float | None) -> str:
    return "" if due_s is None else f"timer {datetime.fromtimestamp(due_s, UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}"
