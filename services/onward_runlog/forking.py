"""Forks: the part of a run's log that another run begins with.

A fork goes on where its source stood just before one of its components began: what had begun before it keeps what it
gave, also where that came later, and everything else is as if it had not happened. What is kept is copied, so the fork
lives on when its source is past its retention. Offsets are dense again; events keep their time and their attempt, and
the fork's attempts go on counting from there, so that names made from an attempt (of blobs) are never used twice.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field

from onward.log import ACCEPTED, ASKED, CHILD, ENDED, PLACES
from onward.v1.errand_pb2 import Errand, TellEnd
from onward.v1.event_pb2 import OUTCOME_ERROR, OUTCOME_OK, Event, SignalReceived
from onward.v1.run_pb2 import Run
from onward_runlog import keys
from onward_runlog.errors import ComponentNotFound, LogAtLimit, RunNotFound
from onward_runlog.record import pairs
from onward_runlog.staging import Staged, Staging
from onward_runlog.store import Store
from onward_runlog.writer import BATCH_EVENTS_MAX

NAMES_MAX = 20
"""Components that are named to who asked for one that is not there."""

_OF_ATTEMPTS = frozenset({"run_state_changed", "attempt_started", "run_waiting"})
"""Events about the source's own life: the fork has one of its own."""

_BLOB = re.compile(rb"blob:([0-9]+-[0-9]+)")


@dataclass(slots=True)
class _Instance:
    """What one component instance did in the source."""

    started: int
    name: str
    parent: str
    finished: list[tuple[int, bool]] = field(default_factory=list)
    """Each end: its offset, and whether a later attempt gets it again."""
    retried: list[int] = field(default_factory=list)
    kept_through: int = 0
    """The end that is kept although it came after the component from which the fork runs; 0 where there is none."""
    end_taken: int = 0
    """The last end that was kept, also where it is below another that is: a fork of the fork may need its value."""


class Plan:
    """Which events of a log a fork begins with.

    Args:
        component_id: The first instance that runs again; None keeps everything that has finished.
        memo: The names of the values that the source has for later attempts.
        from_failure: The instance is the one in which the source failed. Where that is the end of a child, its start
            runs again.
    """

    def __init__(self, component_id: str | None, memo: Iterable[str] = (), *, from_failure: bool = False) -> None:
        self._component_id = component_id
        self._from_failure = from_failure
        self._starts: dict[str, str] = {}
        """By the child: the instance that started it."""
        self._waited_for: dict[str, str] = {}
        """By the instance: the child whose end it waits for."""
        self._memo = frozenset(memo)
        self._instances: dict[str, _Instance] = {}
        self._before = 0
        self._takers: dict[int, list[tuple[str, int]]] = {}
        """Which waits took a signal, by its offset, each with that of its end."""
        self._kept: list[int] = []
        """Offsets in the source of the events that are kept, in order."""
        self._accepted: dict[str, None] = {}
        self._told: set[str] = set()

    def see(self, event: Event) -> None:
        """Take in the next event of the source."""
        kind = event.WhichOneof("kind")
        if kind == "component_started":
            started = event.component_started
            if event.component_id not in self._instances:
                self._instances[event.component_id] = _Instance(event.offset, started.name, started.parent_id)
                if started.name == CHILD and started.input.data:
                    self._waited_for[event.component_id] = json.loads(started.input.data).get("run_id", "")
        elif (instance := self._instances.get(event.component_id)) is None:
            return
        elif kind == "component_finished":
            finished = event.component_finished
            instance.finished.append((event.offset, finished.outcome in (OUTCOME_OK, OUTCOME_ERROR)))
            if finished.signal_offset:
                self._takers.setdefault(finished.signal_offset, []).append((event.component_id, event.offset))
        elif kind == "component_retrying":
            instance.retried.append(event.offset)
        elif kind == "child_started":
            self._starts[event.child_started.run_id] = event.component_id

    def decide(self, last: int) -> None:
        """Find what is kept, after the last event was seen.

        Raises:
            ComponentNotFound: No such instance began.
        """
        self._before = last + 1
        above: set[str] = set()
        if self._component_id is not None:
            if self._component_id not in self._instances:
                names = [f"{key} ({each.name})" for key, each in self._instances.items()]
                raise ComponentNotFound(self._component_id, names[:NAMES_MAX], len(names))
            if self._from_failure:
                child = self._waited_for.get(self._component_id, "")
                self._component_id = self._starts.get(child, self._component_id)
            self._before = self._instances[self._component_id].started
            above = {self._component_id, *self._above(self._component_id)}
        for component_id, instance in self._instances.items():
            if instance.started < self._before and component_id not in above:
                instance.kept_through = self._end_of(component_id, instance)

    def _end_of(self, component_id: str, instance: _Instance) -> int:
        """Return the offset of the result that an instance gave later; 0 where it had one before, or has none."""
        retried = [at for one in self._above(component_id) for at in self._instances[one].retried]
        before = [again for at, again in instance.finished if at < self._before]
        if before and before[-1]:
            return 0
        for at, again in instance.finished:
            if at >= self._before and again:
                tried_again = any(self._before <= one < at for one in retried)
                return 0 if tried_again or self._is_replaced(component_id, at) else at
        return 0

    def _is_replaced(self, component_id: str, offset: int) -> bool:
        """Tell whether a result can no longer be had: the value of a later end has taken its place in the memo."""
        return component_id in self._memo and offset != self._instances[component_id].finished[-1][0]

    def _above(self, component_id: str) -> Iterator[str]:
        parent = self._instances[component_id].parent
        while parent in self._instances:
            yield parent
            parent = self._instances[parent].parent

    def take(self, event: Event) -> bool:
        """Return whether the next event of the source is kept; its offsets are then those of the fork."""
        offset, kind = event.offset, event.WhichOneof("kind")
        if kind is None or kind in _OF_ATTEMPTS or (offset >= self._before and not self._is_kept_later(event, kind)):
            return False
        if kind == "rollback":
            event.rollback.after_offset = self._moved(event.rollback.after_offset)
        elif kind == "component_finished":
            if self._is_replaced(event.component_id, offset):
                return False  # It runs again.
            if event.component_finished.signal_offset:
                event.component_finished.signal_offset = self._moved(event.component_finished.signal_offset)
            self._instances[event.component_id].end_taken = offset
        elif kind == "signal_received":
            self._see_child(event.signal_received)
        self._kept.append(offset)
        return True

    def _see_child(self, signal: SignalReceived) -> None:
        if signal.name.startswith(ACCEPTED):
            answer = Run.FromString(signal.value.data)
            if not answer.HasField("error"):
                self._accepted[answer.run_id] = None
        elif signal.name.startswith(ENDED):
            self._told.add(signal.name.removeprefix(ENDED))

    @property
    def children(self) -> list[str]:
        """The children that are kept and whose end nothing of what is kept tells, after the last event was taken."""
        return [child for child in self._accepted if child not in self._told]

    def _is_kept_later(self, event: Event, kind: str) -> bool:
        if kind == "signal_received":
            return any(self._stays(taker, end) for taker, end in self._takers.get(event.offset, ()))
        if kind == "rollback":
            left = [one for one in event.rollback.component_ids if self._stays(one, event.offset)]
            event.rollback.component_ids[:] = left
            return bool(left)
        return self._stays(event.component_id, event.offset)

    def _stays(self, component_id: str, offset: int) -> bool:
        """Tell whether an event belongs to an instance whose later result is kept, or lies below one."""
        while component_id in self._instances:
            if offset <= self._instances[component_id].kept_through:
                return True
            component_id = self._instances[component_id].parent
        return False

    def _moved(self, offset: int) -> int:
        """Return where an offset of the source is in the fork, after whose first event the kept ones come."""
        found = bisect_right(self._kept, offset)
        return found + 1 if found else 0

    def remembered(self, name: str, value: bytes) -> bytes | None:
        """Return what the fork has for later attempts of a value of the source, after the last event was taken.

        That is the value of a result that is kept, and what belongs to one; None where it does not.
        """
        if name.startswith(ASKED):
            return None  # Who still waits asks again.
        of_items = name.endswith(PLACES)
        instance = self._instances.get(name.removesuffix(PLACES) if of_items else name)
        if instance is not None and not (instance.finished and instance.finished[-1][0] == instance.end_taken):
            return None
        if not of_items:
            return value
        return json.dumps([[self._moved(offset), times] for offset, times in json.loads(value)]).encode()


async def stage(
    store: Store,
    source: Run,
    run_id: str,
    *,
    component_id: str | None,
    from_failure: bool,
    first: bytes,
    events_max: int,
    bytes_max: int,
) -> Staged:
    """Copy what a fork begins with to where the fork will be.

    Args:
        source: The run that is forked, terminal or PAUSED, as it was read: what came later is not looked at.
        run_id: The fork.
        component_id: The first instance that runs again; None keeps everything that has finished.
        from_failure: See Plan.
        first: The fork's own first event.
        events_max: How many events a log may have that goes on.
        bytes_max: How long such a log may be.

    Raises:
        ComponentNotFound: No such instance began.
        LogAtLimit: The fork would have no room to go on.
        RunNotFound: The source is gone.
        StoreUnavailable: Nothing has come of it: what was copied goes by itself.
    """
    base, ref = store.place(source.namespace, source.run_id)
    memo = pairs(await store.command("HGETALL", keys.memo(base, ref)))
    plan = Plan(component_id, [name.decode() for name in memo], from_failure=from_failure)
    namespace, last = source.namespace, source.log.last_offset
    seen = 0
    async for event in _events(store, namespace, source.run_id, last):
        plan.see(event)
        seen = event.offset
    if seen < last:
        raise RunNotFound(source.run_id)
    plan.decide(last)
    staging = Staging(store, namespace, run_id)
    await staging.add_event(first)
    blobs: set[bytes] = set()
    async for event in _events(store, namespace, source.run_id, last):
        if plan.take(event):
            data = event.SerializeToString()
            blobs.update(_BLOB.findall(data))
            await staging.add_event(data)
    for name, value in memo.items():
        if (kept := plan.remembered(name.decode(), value)) is not None:
            blobs.update(_BLOB.findall(kept))
            await staging.add_memo(name, kept)
    for blob in sorted(blobs):
        data = await store.command("GET", keys.blob(base, ref, blob.decode()))
        if data is not None:
            await staging.add_blob(blob, data)
    events, size = await staging.done()
    if events > events_max or size > bytes_max:
        raise LogAtLimit(source.run_id)
    errands = [Errand(tell_end=TellEnd(run_id=child)).SerializeToString() for child in plan.children]
    return Staged(staging.token, source.attempt, events, size, tuple(errands))


async def _events(store: Store, namespace: str, run_id: str, last: int) -> AsyncIterator[Event]:
    base, ref = store.place(namespace, run_id)
    after = 0
    while after < last:
        entries = await store.command(
            "XRANGE", keys.log(base, ref), f"{after + 1}-0", f"{last}-0", "COUNT", BATCH_EVENTS_MAX
        )
        if not entries:
            return
        for _, fields in entries:
            event = Event.FromString(fields[1])
            after = event.offset
            yield event
