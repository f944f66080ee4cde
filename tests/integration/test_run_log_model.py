"""The run log against a model of it: whatever happens in whatever order, with zombies that keep on writing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import redis
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.runlog import (
    CANCELLED,
    CANCELLING,
    FAILED,
    PAUSED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    a_run,
    append,
    ended,
    log_of,
    park,
    places,
    record_of,
    status,
    told,
)

from onward.v1.event_pb2 import AttemptCause, Event
from onward.v1.gateway_service_pb2 import SignalRunRequest
from onward.v1.run_pb2 import Payload, Run, RunState
from onward_runlog import keys
from onward_runlog.errors import WrongState
from onward_runlog.record import TERMINAL
from onward_runlog.runs import Holder, Runs
from onward_runlog.store import Store, open_store

BASE = keys.base(0)
RUNS_MAX = 3
WHY = ("lost", "expired", "handed_over", "refused")
NAMES = ("go", "on")

CAUSE_LOST = AttemptCause.ATTEMPT_CAUSE_EXECUTOR_LOST
CAUSE_HANDED_OVER = AttemptCause.ATTEMPT_CAUSE_HANDED_OVER
CAUSE_RESUMED = AttemptCause.ATTEMPT_CAUSE_RESUMED
CAUSE_WOKEN = AttemptCause.ATTEMPT_CAUSE_WOKEN
CAUSE_CANCELLED = AttemptCause.ATTEMPT_CAUSE_CANCELLED

T = TypeVar("T")


@dataclass
class Model:
    """What should be true of one run."""

    run: Run
    log: list[tuple[int, str]] = field(default_factory=lambda: [(0, "QUEUED")])
    state: int = QUEUED
    attempt: int = 0
    holder: str = ""
    sequence: int = 0
    began: bool = False
    deaths: int = 0
    alone: bool = False
    """Whether the attempt in force was given out alone."""
    started: bool = False
    resumed: bool = False
    in_queue: bool = False
    in_front: bool = False
    place: int = 0
    """Its turn among equals, by when it was queued."""
    delayed: bool = False
    deadline: bool = False
    signals: dict[str, int] = field(default_factory=dict)
    awaited: tuple[str, ...] = ()
    wakes: bool = False
    cause: int = 1

    def tell(self, what: str, attempt: int = 0) -> None:
        self.log.append((attempt, what))

    def end(self, state: int) -> None:
        self.state, self.holder = state, ""
        self.in_queue = self.delayed = self.deadline = self.wakes = False

    @property
    def places(self) -> set[str]:
        """Where the store should know it from."""
        found = {
            "queue": self.in_queue and self.deaths < 2,
            "alone": self.in_queue and self.deaths >= 2,
            "lease": self.holder != "",
            "start": self.delayed,
            "deadline": self.deadline,
            "expiry": self.state in TERMINAL,
            "wake": self.wakes,
        }
        return {name for name, there in found.items() if there}


class RunLogMachine(RuleBasedStateMachine):
    """Every example has a namespace and two deployments of its own in one store."""

    numbers = itertools.count()

    def __init__(self, runner: asyncio.Runner, store: Store) -> None:
        super().__init__()
        self._runner = runner
        self._store = store
        self._runs = Runs(store)
        self._name = f"example-{next(self.numbers)}"
        self._newer = f"{self._name}-newer"
        self._models: dict[str, Model] = {}
        self._turn = itertools.count(1)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def _pick(self, number: int) -> Model:
        models = list(self._models.values())
        return models[number % len(models)]

    def _waiting(self, deployment: str, *, alone: bool) -> list[Model]:
        """Who stands in a queue, in order; those in front are in any order among themselves."""
        name = "alone" if alone else "queue"
        waiting = [each for each in self._models.values() if name in each.places and each.run.deployment == deployment]
        return sorted(waiting, key=lambda model: (-model.run.priority, not model.in_front, model.place))

    def _enqueue(self, model: Model, *, front: bool) -> None:
        model.in_queue, model.in_front, model.place = True, front, next(self._turn)

    # What may happen

    @precondition(lambda self: len(self._models) < RUNS_MAX)
    @rule(
        priority=st.sampled_from([-1, 0, 1]),
        delayed=st.booleans(),
        deadline=st.booleans(),
        at_once=st.booleans(),
    )
    def submit(self, priority: int, *, delayed: bool, deadline: bool, at_once: bool) -> None:
        run = a_run(f"run-{next(self._turn)}", namespace=self._name, deployment=self._name, priority=priority)
        far = Timestamp(seconds=4_000_000_000)
        if delayed:
            run.schedule_time.CopyFrom(far)
        if deadline:
            run.deadline.CopyFrom(far)
        model = Model(run, delayed=delayed, deadline=deadline)
        nobody_waits = not self._waiting(self._name, alone=False)
        kept, replayed, taken = self._do(self._runs.submit(run, holder="e1" if at_once else "", ttl_s=60))
        assert not replayed
        assert (taken is not None) == (at_once and nobody_waits and not delayed)
        if taken is not None:
            model.attempt, model.holder = 1, "e1"
        elif not delayed:
            self._enqueue(model, front=False)
        self._models[kept.run_id] = model

    @precondition(lambda self: self._models)
    @rule(which=st.integers(0, 9))
    def submit_again(self, which: int) -> None:
        model = self._pick(which)
        kept, replayed, taken = self._do(self._runs.submit(model.run, holder="e1", ttl_s=60))
        assert (kept.run_id, kept.state, replayed, taken) == (model.run.run_id, model.state, True, None)

    @precondition(lambda self: any(model.in_queue for model in self._models.values()))
    @rule(ttl_s=st.sampled_from([0, 60]), limit=st.integers(1, 2), alone=st.booleans(), newer=st.booleans())
    def claim(self, ttl_s: int, limit: int, *, alone: bool, newer: bool) -> None:
        deployment = self._newer if newer else self._name
        queue = keys.alone(deployment) if alone else deployment
        waiting = self._waiting(deployment, alone=alone)
        fronts = [(model.run.priority, model.in_front) for model in waiting[:limit]]
        taken = self._do(self._runs.claim(BASE, queue, holder="e2", ttl_s=ttl_s, limit=limit))
        models = [self._models[each.run.run_id] for each in taken]
        assert [(model.run.priority, model.in_front) for model in models] == fronts
        assert [model for model in models if not model.in_front] == [m for m in waiting[:limit] if not m.in_front]
        for each, model in zip(taken, models, strict=True):
            assert model.in_queue
            model.in_queue = False
            model.attempt += 1
            model.holder, model.sequence, model.began, model.alone = "e2", 0, False, alone
            assert (each.attempt, each.alone, each.run.state) == (model.attempt, alone, model.state)
            assert (each.cause, each.run.deployment) == (model.cause, deployment)
            assert each.run.log.last_offset == len(model.log)

    @precondition(lambda self: self._models)
    @rule(
        which=st.integers(0, 9),
        count=st.integers(0, 3),
        end=st.sampled_from([*[None] * 9, SUCCEEDED, FAILED, CANCELLED, PAUSED]),
    )
    def write(self, which: int, count: int, end: RunState.ValueType | None) -> None:
        """The attempt in force goes on."""
        model = self._pick(which)
        self._append(model, model.attempt, model.sequence + 1, count, end)

    @precondition(lambda self: any(model.sequence for model in self._models.values()))
    @rule(which=st.integers(0, 9))
    def write_again(self, which: int) -> None:
        """Its last reply was lost."""
        model = self._pick(which)
        self._append(model, model.attempt, model.sequence, 1, None)

    @precondition(lambda self: any(model.attempt > 1 for model in self._models.values()))
    @rule(
        which=st.integers(0, 9),
        age=st.integers(1, 2),
        sequence=st.integers(0, 3),
        end=st.sampled_from([None, None, SUCCEEDED, PAUSED]),
    )
    def write_as_a_zombie(self, which: int, age: int, sequence: int, end: RunState.ValueType | None) -> None:
        """An earlier attempt that does not know that it was replaced."""
        model = self._pick(which)
        self._append(model, model.attempt - age, sequence, 1, end)

    @precondition(lambda self: self._models)
    @rule(which=st.integers(0, 9), ahead=st.integers(0, 1), skipped=st.integers(1, 2))
    def write_out_of_turn(self, which: int, ahead: int, skipped: int) -> None:
        """The attempt in force, or one that never was, with an append missing."""
        model = self._pick(which)
        self._append(model, model.attempt + ahead, model.sequence + 1 + skipped, 1, None)

    def _append(self, model: Model, attempt: int, sequence: int, count: int, end: RunState.ValueType | None) -> None:
        events = [status("x")] * count + ([] if end is None else [ended(end)])
        before = replace(model, log=list(model.log))
        if attempt == before.attempt and sequence == before.sequence > 0:
            expected = "ok"
        elif before.state in TERMINAL:
            expected = "closed"
        elif attempt != before.attempt or not before.holder:
            expected = "fenced"
        elif sequence != before.sequence + 1:
            expected = "jump"
        elif before.state == CANCELLING and end == PAUSED:
            expected = "cancelling"
        else:
            expected = "ok"
            model.sequence = sequence
            model.began = model.started = True
            if model.state == QUEUED:
                model.state = RUNNING
            for event in events:
                model.tell(told([event])[0], attempt)
            if end is not None:
                model.holder, model.state = "", end
                if end in TERMINAL:
                    model.end(end)
        lie = Event(offset=7, attempt=7).SerializeToString()
        reply = self._do(
            append(
                self._store,
                model.run,
                attempt,
                sequence,
                *(event.SerializeToString() + lie for event in events),
                end=end,
                memo={"id": b"value"},
            )
        )
        assert (reply.status, reply.state, reply.attempt) == (expected, model.state, model.attempt)

    @precondition(lambda self: any(model.began and model.holder for model in self._models.values()))
    @rule(
        which=st.integers(0, 9),
        stale=st.sampled_from([0, 0, 0, 1]),
        age=st.sampled_from([0, 0, 0, 1]),
        names=st.sets(st.sampled_from(NAMES)),
        wakes=st.booleans(),
        again=st.booleans(),
    )
    def park(self, which: int, stale: int, age: int, names: set[str], *, wakes: bool, again: bool) -> None:
        """The attempt in force parks, or one that was replaced; it has read all of the log, or not the last event."""
        holding = [model for model in self._models.values() if model.began and model.holder]
        model = holding[which % len(holding)]
        attempt, sequence, last = model.attempt - age, model.sequence + 1, len(model.log) - stale
        expected = "fenced" if age else "ok" if not stale and model.state == RUNNING else "stale"
        for _ in range(1 + again):  # The reply may be lost.
            reply = self._do(
                park(self._store, model.run, attempt, sequence, last, *names, wake_ms=3_600_000 if wakes else "")
            )
            if expected == "ok" and model.state == RUNNING:
                model.tell("run_waiting", attempt)
                model.state, model.holder, model.sequence = WAITING, "", sequence
                model.awaited, model.wakes = tuple(names), wakes
            assert (reply.status, reply.state, reply.last_offset) == (expected, model.state, len(model.log))

    def _wake(self, model: Model) -> None:
        model.tell("QUEUED")
        model.state, model.cause, model.wakes, model.resumed = QUEUED, CAUSE_WOKEN, False, False
        self._enqueue(model, front=False)

    @precondition(lambda self: any(model.holder for model in self._models.values()))
    @rule(which=st.integers(0, 9), why=st.sampled_from(WHY))
    def crash(self, which: int, why: str) -> None:
        """An executor begins, works, and is gone."""
        held = [number for number, model in enumerate(self._models.values()) if model.holder]
        number = held[which % len(held)]
        self.write(number, 1, None)
        self.lose(number, 0, why)

    @precondition(lambda self: self._models)
    @rule(which=st.integers(0, 9), attempt_off=st.sampled_from([0, 0, 0, -1]), why=st.sampled_from(WHY))
    def lose(self, which: int, attempt_off: int, why: str) -> None:
        model = self._pick(which)
        attempt = model.attempt + attempt_off
        if why == "expired" and model.holder == "e1":
            why = "lost"  # its lease is a long one, so that it does not depend on the clock
        elif why == "expired" and model.holder:
            self._do(self._run_out(model))
        stood = self._do(self._runs.lose(self._name, model.run.run_id, attempt, why))
        assert stood == (attempt == model.attempt and model.holder != "")
        if not stood:
            return
        model.holder, model.resumed = "", model.resumed and not model.began
        if model.began and why in ("lost", "expired"):
            model.deaths = 3 if model.alone else min(2, model.deaths + 1)
        if model.state == CANCELLING and (model.deaths == 3 or not model.started):
            model.tell("CANCELLED")
            model.end(CANCELLED)
        elif model.deaths == 3:
            model.tell("PAUSED")
            model.state = PAUSED
        else:
            if model.began and model.state != CANCELLING:
                model.state = QUEUED
            if model.began:
                model.tell(RunState.Name(RunState.ValueType(model.state)).removeprefix("RUN_STATE_"))
            if model.state == CANCELLING:
                model.cause = CAUSE_CANCELLED
            elif model.began:
                model.cause = CAUSE_HANDED_OVER if why == "handed_over" else CAUSE_LOST
            self._enqueue(model, front=True)

    async def _run_out(self, model: Model) -> None:
        _, ref = self._store.place(self._name, model.run.run_id)
        await self._store.command("ZADD", f"{BASE}:leases", "XX", 0, ref)

    @precondition(lambda self: self._models)
    @rule(which=st.integers(0, 9), patient=st.booleans())
    def cancel(self, which: int, *, patient: bool) -> None:
        model = self._pick(which)
        runs = self._runs if patient else Runs(self._store, cancel_grace_s=0)
        run, holder = self._do(runs.cancel(self._name, model.run.run_id, "enough"))
        if model.state not in TERMINAL:
            asked = model.state == CANCELLING
            if not model.holder and (not patient if asked else model.state == PAUSED or not model.started):
                model.tell("CANCELLED")
                model.end(CANCELLED)
            elif not asked:
                model.tell("CANCELLING")
                if model.state == WAITING:
                    model.wakes = False
                    self._enqueue(model, front=True)
                if not model.holder:
                    model.cause = CAUSE_CANCELLED
                model.state = CANCELLING
        assert (run.state, holder) == (model.state, Holder(model.holder, model.attempt))

    @precondition(lambda self: self._models)
    @rule(which=st.integers(0, 9))
    def resume(self, which: int) -> None:
        model = self._pick(which)
        try:
            run = self._do(self._runs.resume(self._name, model.run.run_id))
        except WrongState:
            assert model.state not in (PAUSED, WAITING)
            assert not (model.resumed and model.state in (QUEUED, RUNNING))
            return
        if model.state == PAUSED:
            model.tell("QUEUED")
            model.state, model.deaths, model.resumed, model.cause = QUEUED, 0, True, CAUSE_RESUMED
            self._enqueue(model, front=False)
        elif model.state == WAITING:
            self._wake(model)
        assert model.resumed or model.cause == CAUSE_WOKEN
        assert run.state == model.state

    @precondition(lambda self: self._models)
    @rule(which=st.integers(0, 9), back=st.sampled_from([False, False, False, True]), again=st.booleans())
    def adopt(self, which: int, *, back: bool, again: bool) -> None:
        """The newer deployment takes over from the other, or the other way round; maybe the reply is lost."""
        model = self._pick(which)
        old, new = (self._newer, self._name) if back else (self._name, self._newer)
        for _ in range(1 + again):
            moves = model.in_queue and model.run.deployment == old
            assert self._do(self._runs.adopt(self._name, model.run.run_id, old, new)) == moves
            if moves:
                model.tell(RunState.Name(RunState.ValueType(model.state)).removeprefix("RUN_STATE_"))
                model.run.deployment = new
                self._enqueue(model, front=model.in_front)

    @precondition(lambda self: self._models)
    @rule(which=st.integers(0, 9), passed=st.booleans())
    def expel(self, which: int, *, passed: bool) -> None:
        model = self._pick(which)
        _, ref = self._store.place(self._name, model.run.run_id)
        due = passed and model.deadline
        if due:
            self._do(self._hset(ref, "deadline", 1))
        holder = self._do(self._runs.expel(self._name, model.run.run_id))
        assert holder == (Holder(model.holder, model.attempt) if due else None)
        if due:
            model.tell("FAILED")
            model.end(FAILED)

    async def _hset(self, ref: str, name: str, value: int) -> None:
        await self._store.command("HSET", keys.run(BASE, ref), name, value)

    @precondition(lambda self: self._models)
    @rule(which=st.integers(0, 9), request_id=st.sampled_from(["", "a", "b"]), name=st.sampled_from(NAMES))
    def signal(self, which: int, request_id: str, name: str) -> None:
        model = self._pick(which)
        request_id = request_id and f"{request_id}-{name}"
        request = SignalRunRequest(run_id=model.run.run_id, name=name, request_id=request_id, value=Payload(data=b"1"))
        known = model.signals.get(request_id)
        try:
            offset, replayed, holder = self._do(self._runs.signal(self._name, request))
        except WrongState:
            assert model.state in TERMINAL
            assert known is None
            return
        assert (replayed, holder) == (known is not None, Holder(model.holder, model.attempt))
        wakes = model.state == WAITING and name in model.awaited
        if known is None:
            model.tell("signal_received")
            known = len(model.log)
            if request_id:
                model.signals[request_id] = known
            if wakes:
                self._wake(model)
        assert offset == known

    @precondition(lambda self: self._models)
    @rule(which=st.integers(0, 9), attempt_off=st.sampled_from([0, -1]))
    def renew(self, which: int, attempt_off: int) -> None:
        model = self._pick(which)
        _, ref = self._store.place(self._name, model.run.run_id)
        attempt, holder = model.attempt + attempt_off, model.holder or "e2"
        [reply] = self._do(self._renew(ref, attempt, holder))
        held = attempt == model.attempt and model.holder != ""
        assert reply == [int(held), model.state, len(model.log)]

    async def _renew(self, ref: str, attempt: int, holder: str) -> Any:
        return await self._store.call("renew", BASE, 60_000, ref, attempt, holder)

    @precondition(lambda self: self._models)
    @rule(which=st.integers(0, 9))
    def time_passes(self, which: int) -> None:
        """A delayed run's start comes, or the end of a finished run's retention; for others nothing happens."""
        model = self._pick(which)
        _, ref = self._store.place(self._name, model.run.run_id)
        self._do(self._due(ref))
        if model.delayed:
            model.delayed = False
            self._enqueue(model, front=False)
        elif model.wakes:
            self._wake(model)
        elif model.state in TERMINAL:
            del self._models[model.run.run_id]
            assert self._do(self._traces(ref)) == []

    async def _due(self, ref: str) -> None:
        for kind in "swx":
            await self._store.command("ZADD", f"{BASE}:timers", "XX", 1, f"{kind}:{ref}")
        await self._runs.sweep()

    async def _traces(self, ref: str) -> list[bytes]:
        run_id = ref.partition("/")[2]
        found = await self._store.command("KEYS", f"{BASE}:{ref}:*")
        for key in await self._store.command("KEYS", f"{BASE}:runs:{self._name}:*"):
            found += [key] * (await self._store.command("ZSCORE", key, run_id) is not None)
        return list(found)

    # What must hold

    @invariant()
    def store_and_model_agree(self) -> None:
        self._do(self._check_all())

    async def _check_all(self) -> None:
        await asyncio.gather(*map(self._check, self._models.values()))

    async def _listed_in(self, model: Model) -> set[str]:
        names = [keys.ALL, keys.by_workflow("blog"), *map(keys.by_state, range(9))]
        indexes = [keys.index(BASE, self._name, name) for name in names]
        scores = await asyncio.gather(*(self._store.command("ZSCORE", key, model.run.run_id) for key in indexes))
        return {name for name, score in zip(names, scores, strict=True) if score is not None}

    async def _check(self, model: Model) -> None:
        events, record, found, listed = await asyncio.gather(
            log_of(self._store, model.run),  # offsets are 1..N, and the entries' ids are these
            record_of(self._store, model.run),
            places(self._store, model.run),
            self._listed_in(model),
        )
        assert [(event.attempt, *told([event])) for event in events] == model.log
        attempts = [event.attempt for event in events if event.attempt]
        assert attempts == sorted(attempts)
        changes = [event.run_state_changed.state for event in events if event.HasField("run_state_changed")]
        endings = [state for state in changes if state in TERMINAL]
        assert len(endings) == (model.state in TERMINAL)
        if endings:
            assert events[-1].run_state_changed.state == endings[0]
        assert int(record["state"]) == model.state
        assert model.state in (RUNNING, WAITING) or changes[-1] == model.state
        assert model.state != WAITING or events[-1].HasField("run_waiting") or events[-1].HasField("signal_received")
        assert ("waiting" in record) == (model.state == WAITING)
        assert int(record["attempt"]) == model.attempt
        assert record["holder"].decode() == model.holder
        assert record["deployment"].decode() == model.run.deployment
        assert int(record["last"]) == len(events)
        assert found == model.places
        assert listed == {"all", "w=blog", keys.by_state(model.state)}


def test_the_run_log_does_what_the_model_says(redis_url: str) -> None:
    """Offsets dense, zombies silent, one end and nothing after it, and every run exactly where its state says."""
    with redis.Redis.from_url(redis_url) as client:
        client.hset(keys.STORE, "partitions", "1")
    with asyncio.Runner() as runner:
        opened = open_store(redis_url)
        store = runner.run(opened.__aenter__())
        try:
            run_state_machine_as_test(
                lambda: RunLogMachine(runner, store),  # type: ignore[arg-type] # it only calls it
                settings=settings(
                    max_examples=40,
                    stateful_step_count=50,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],  # with Phase.shrink a failure is told in fewer steps, minutes later
                    report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(opened.__aexit__(None, None, None))
