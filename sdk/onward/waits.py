"""The waits of one attempt: what is waited for, which signals are there, who takes which, and when the run may park.

A signal that arrives is kept until a wait takes it. The signals of one name go, in the order of the log, to the waits
of that name in the order in which they began; one that does not fit a wait is passed over by it. What a wait took is in
its ComponentFinished, so a later attempt gives each the same signal again. The suite's own signals are facts: no wait
takes them from another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import insort
from collections.abc import Callable, Mapping
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onward.instance import CURRENT, Instance
from onward.log import ASKED, RESERVED
from onward.past import Past
from onward.rest import at_rest
from onward.v1.event_pb2 import WAIT_KIND_RETRY, Event, RunWaiting, WaitKind
from onward.v1.run_pb2 import Payload

if TYPE_CHECKING:
    from onward.journal import Journal

logger = logging.getLogger(__name__)

QUIET_S = 0.1
"""How long nothing has begun or ended when a run is parked: what comes that soon is cheaper waited for in place."""

NEAR_S = 2.0
"""A run that wakes so soon is not parked: queue, hand-over and replay would take about as long."""

LOOK_S = 5.0
"""Longest time between two looks whether a run rests. Its work may end untold: user code awaits what it likes."""

LAST_S = 253_402_300_799.0
"""The last second of the year 9999, behind which no time can be told: what would end later ends then."""

TIMER_S = 3_600.0
"""Longest timer in place, after which the clock is looked at: it may have been set."""

MISFITS_BYTES = 512 * 1024
"""Of signals that do not fit, looked at before the event loop has a turn: it belongs to other runs too."""

WORDS_MAX = 3
"""How many waits are named to a person; of the others there is the number."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What time is like for waits. Tests put another one here.

    Attributes:
        clock: Tells seconds since the epoch.
        quiet_s: See QUIET_S.
        near_s: See NEAR_S.
        in_place: Told of a run (by its run_id, with what it waits for) that goes on only when a wait ends, and does not
            park for that: it reads a stream.
    """

    clock: Callable[[], float] = time.time
    quiet_s: float = QUIET_S
    near_s: float = NEAR_S
    in_place: Callable[[str, RunWaiting], None] | None = None


PACE: ContextVar[Pace] = ContextVar("onward_pace", default=Pace())  # noqa: B039 - it is immutable

Taken = tuple[int, Any]
"""The offset of a signal and what the wait made of its value."""


@dataclass(slots=True, eq=False)
class Wait:
    """One open wait.

    Attributes:
        order: Where it stands among those of its signal.
        kind: What it waits for.
        words: The same for a person, e.g. "signal approval".
        signal: The name of the signal that ends it; empty where none does.
        due_s: When its time is up, in seconds since the epoch; None is never.
        fits: Returns what the wait makes of a signal's value. Raises ValueError for one that is to be passed over.
        schema: What the signal was asked to look like; empty where nobody was asked.
        path: The ids of the instance and of those above it.
        end: Resolves to the signal that it took, or to None when its time is up.
        passed: The newest signal that did not fit.
    """

    order: tuple[int, int]
    kind: WaitKind.ValueType
    words: str
    signal: str
    due_s: float | None
    fits: Callable[[Payload], Any]
    schema: bytes
    path: tuple[str, ...]
    end: asyncio.Future[Taken | None]
    passed: int = 0
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class Waits:
    """All of one attempt. Belongs to its journal."""

    def __init__(self, journal: Journal) -> None:
        self.pace = PACE.get()
        self.on_rest: Callable[[], None] | None = None
        """Called when nothing of the run can go on before a wait ends. None: it is not to be parked."""
        self._journal = journal
        self._loop = journal.loop
        # Timers and tasks of ours are begun from user code; in its context they would count as its tasks.
        self._context = copy_context()
        self._context.run(CURRENT.set, None)
        self._open: set[Wait] = set()
        self._by_signal: dict[str, list[Wait]] = {}
        self._begun = 0
        self._signals: dict[str, list[tuple[int, Payload]]] = {}
        """What nobody has taken, by name and in order."""
        self._through = 0
        """The newest signal that is known."""
        self._taken: dict[int, tuple[str, ...]] = {}
        self._freed: list[int] = []
        """Signals that failed tries had taken."""
        self._misfits_bytes = 0
        self._later: dict[str, asyncio.Handle] = {}
        """Names whose signals go on to be offered in the loop's next turn."""
        self._asked: dict[str, bytes] = {}
        self._learning: asyncio.Task[None] | None = None
        self._frozen = False
        self._looking: asyncio.TimerHandle | None = None
        self._pause_s = 0.0

    # What has come

    def follow(self, past: Past) -> None:
        """Take over what earlier attempts left."""
        self._taken = {offset: path for offset, path in past.taken.items() if not _is_fact(past.signals[offset].name)}
        self._asked = past.asked
        for offset, signal in past.signals.items():
            if offset not in self._taken:
                self._keep(offset, signal.name, signal.value)
            self._through = offset

    def see(self, event: Event) -> None:
        """Take in an event of the log that is not this attempt's."""
        if event.HasField("signal_received") and event.offset > self._through:
            self._through = event.offset
            self._keep(event.offset, event.signal_received.name, event.signal_received.value)
            self.offer(event.signal_received.name)

    def _keep(self, offset: int, name: str, value: Payload) -> None:
        insort(self._signals.setdefault(name, []), (offset, value), key=_offset)

    def learn(self) -> None:
        """Others have written to the log: read what."""
        if self._learning is None and not self._journal.closed:
            self._learning = self._loop.create_task(self._learn(), name="read signals", context=self._context)

    async def _learn(self) -> None:
        log = self._journal.log
        try:
            while True:
                freed, self._freed = self._freed, []
                for offset in freed:
                    async for event in log.read(after=offset - 1):
                        self._keep(offset, event.signal_received.name, event.signal_received.value)
                        self.offer(event.signal_received.name)
                        break
                others = await log.others()
                for event in others:
                    self.see(event)
                if not others and not self._freed:
                    return
        except Exception as error:  # noqa: BLE001 - whatever the log raises ends the attempt, and Attempt.run tells
            self._journal.refuse(error)
        finally:
            self._learning = None
            self.stir()

    def free(self, instance_id: str) -> None:
        """A try of this instance failed: what waits below it had taken is there again."""
        freed = [offset for offset, path in self._taken.items() if instance_id in path]
        for offset in freed:
            del self._taken[offset]
        if freed:
            self._freed += freed
            for wait in self._open:
                wait.passed = 0
            self.learn()

    def untaken(self) -> tuple[list[int], int]:
        """Return the offsets of the signals that nobody has taken, and how far the log was read for them."""
        offsets = [
            offset
            for name, signals in self._signals.items()
            if not _is_fact(name)
            for offset, _ in signals
            if offset <= self._through
        ]
        return sorted({*offsets, *self._freed}), self._through

    # Who waits

    def begin(
        self,
        instance: Instance,
        kind: WaitKind.ValueType,
        words: str,
        *,
        signal: str,
        due_s: float | None,
        fits: Callable[[Payload], Any],
        schema: bytes,
    ) -> Wait:
        """Open a wait. What is there already is given to it by `offer`."""
        self._begun += 1
        record = instance.record
        first = record.started_offset if record is not None and not record.outcome else 2**63
        path = tuple(above.id for above in instance.path())
        wait = Wait((first, self._begun), kind, words, signal, due_s, fits, schema, path, self._loop.create_future())
        self._open.add(wait)
        if signal:
            insort(self._by_signal.setdefault(signal, []), wait, key=_order)
            if self._journal.log.on_others is None:
                self._journal.log.on_others = self.learn
        self.stir()
        return wait

    async def back_off(self, instance: Instance, wait_s: float) -> None:
        """Wait before the next try of an instance.

        The wait is no instance of its own: that a try failed, and when the next one begins, is in the log already.

        Raises:
            CancelledError: It was cancelled, or the attempt is over.
        """
        due_s = min(self.pace.clock() + wait_s, LAST_S)
        words = f"retry of {instance.name}"
        wait = self.begin(instance, WAIT_KIND_RETRY, words, signal="", due_s=due_s, fits=_nothing, schema=b"")
        try:
            self.arm(wait)
            await wait.end
        finally:
            self.end(wait)

    def end(self, wait: Wait, *, unused: bool = False) -> Mapping[str, bytes]:
        """Close a wait.

        Args:
            wait: One that is open.
            unused: It was cancelled: it takes nothing.

        Returns:
            What goes into the memo beside its end.
        """
        self._open.discard(wait)
        if wait.timer is not None:
            wait.timer.cancel()
        if not wait.signal:
            return {}
        waits = self._by_signal[wait.signal]
        waits.remove(wait)
        if not waits:
            del self._by_signal[wait.signal]
        taken = wait.end.result() if unused and wait.end.done() and not wait.end.cancelled() else None
        if taken is not None and self._taken.pop(taken[0], None) is not None:
            self._freed.append(taken[0])
            self.learn()
        return self.asks(wait.signal)

    def asks(self, name: str) -> Mapping[str, bytes]:
        """Return what tells, in the memo, what the next signal of a name is to look like; nothing where that stands."""
        waits = self._by_signal.get(name)
        schema = waits[0].schema if waits else b""
        if schema == self._asked.get(name, b""):
            return {}
        self._asked[name] = schema
        return {ASKED + name: schema}

    def offer(self, name: str) -> None:
        """Give the signals of a name that nobody has taken to the waits of that name.

        While a replay goes on nothing new is given: a wait that began earlier may not have been called again yet.
        """
        replay = self._journal.replay
        if self._frozen or not (replay is None or replay.over) or name in self._later:
            return
        signals = self._signals.get(name)
        for wait in self._by_signal.get(name, ()):
            if not signals:
                return
            if wait.end.done():
                continue
            for place, (offset, payload) in enumerate(signals):
                if offset <= wait.passed:
                    continue
                try:
                    value = wait.fits(payload)
                except ValueError as error:
                    logger.warning("signal %s at offset %d is passed over: %s", name, offset, error)
                    wait.passed = offset
                    self._misfits_bytes += len(payload.data)
                    if self._misfits_bytes < MISFITS_BYTES:
                        continue
                    self._misfits_bytes = 0
                    self._later[name] = self._loop.call_soon(self._offer_on, name, context=self._context)
                    return
                if not _is_fact(name):
                    del signals[place]
                    self._taken[offset] = wait.path
                wait.end.set_result((offset, value))
                break

    def _offer_on(self, name: str) -> None:
        del self._later[name]
        self.offer(name)

    def arm(self, wait: Wait) -> None:
        """Let a wait end when its time is up."""
        if wait.due_s is None or wait.end.done() or self._frozen:
            return
        left_s = wait.due_s - self.pace.clock()
        if wait.timer is not None:
            wait.timer.cancel()
        if left_s <= 0 and wait.signal not in self._later:  # else one that is there already may be for it
            wait.end.set_result(None)
        else:
            left_s = min(max(left_s, 0.0), TIMER_S)
            wait.timer = self._loop.call_later(left_s, self.arm, wait, context=self._context)

    # Parking

    def stir(self) -> None:
        """Something began or ended: look soon whether the run is at rest."""
        if self.on_rest is None or not self._open or self._frozen:
            return
        if self._looking is not None:
            if self._pause_s == self.pace.quiet_s:
                return
            self._looking.cancel()
        self._look_in(self.pace.quiet_s)

    def _look_in(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._looking = self._loop.call_later(pause_s, self._look, context=self._context)

    def _look(self) -> None:
        self._looking = None
        if self.on_rest is None or not self._open or self._frozen or self._journal.closed:
            return
        if self.is_at_rest():
            self.on_rest()
            return
        self._look_in(min(max(self._pause_s, 0.01) * 2, LOOK_S))
        if self.pace.in_place is not None and not self._is_looking() and self._rests(in_streams=True):
            self.pace.in_place(self._journal.run_id, self._waiting())
            for wait in self._open:
                self.arm(wait)

    def is_at_rest(self) -> bool:
        """Tell whether nothing of the run can go on before one of its waits ends, and none does soon."""
        wake_s = self._wake_s()
        if wake_s is not None and wake_s < self.pace.clock() + self.pace.near_s:
            return False
        return not self._is_looking() and self._rests()

    def _is_looking(self) -> bool:
        """Tell whether a signal that is there may be on its way to a wait."""
        return self._learning is not None or bool(self._later)

    def _rests(self, *, in_streams: bool = False) -> bool:
        return at_rest(self._journal, {wait.end for wait in self._open}, in_streams=in_streams)

    def _wake_s(self) -> float | None:
        times = [wait.due_s for wait in self._open if wait.due_s is not None]
        if (deadline_s := self._journal.first_deadline_s) is not None:
            times.append(min(deadline_s, LAST_S))
        return min(times, default=None)

    def freeze(self) -> tuple[RunWaiting, float | None]:
        """Let no wait end until `thaw`, and return what is waited for and how many seconds at most."""
        self._frozen = True
        wake_s = self._wake_s()
        return self._waiting(), None if wake_s is None else max(0.0, wake_s - self.pace.clock())

    def _waiting(self) -> RunWaiting:
        waits = sorted(self._open, key=_order)
        words = list(dict.fromkeys(wait.words for wait in waits))
        more = f" and {len(words) - WORDS_MAX} more" if len(words) > WORDS_MAX else ""
        waiting = RunWaiting(
            reason=", ".join(words[:WORDS_MAX]) + more,
            kinds=sorted({wait.kind for wait in waits}),
            signals=dict.fromkeys(wait.signal for wait in waits if wait.signal),
        )
        if (wake_s := self._wake_s()) is not None:
            waiting.wake_time.FromNanoseconds(round(wake_s * 1e9))
        return waiting

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._frozen = False
        for name in list(self._by_signal):
            self.offer(name)
        for wait in self._open:
            self.arm(wait)
        self.learn()
        self.stir()

    def close(self) -> None:
        """The attempt is over."""
        self.on_rest = None
        self._journal.log.on_others = None
        for timer in (self._looking, *self._later.values(), *(wait.timer for wait in self._open)):
            if timer is not None:
                timer.cancel()
        if self._learning is not None:
            self._learning.cancel()


def _nothing(value: Payload) -> None:
    return None


def _is_fact(name: str) -> bool:
    return name.startswith(RESERVED)


def _offset(signal: tuple[int, Payload]) -> int:
    return signal[0]


def _order(wait: Wait) -> tuple[int, int]:
    return wait.order
