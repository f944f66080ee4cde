"""The transitions of a run that are not its executor's: each is one call of one function, with its events."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onward.log import ASKED, RESERVED
from onward.v1.event_pb2 import AttemptCause, Event, RunStateChanged, SignalReceived
from onward.v1.gateway_service_pb2 import SignalRunRequest, Workflow
from onward.v1.run_pb2 import Run, RunError, RunState
from onward_runlog import keys
from onward_runlog.errors import (
    LogAtLimit,
    QueueFull,
    RequestReused,
    RunNotFound,
    StoreUnavailable,
    WrongState,
)
from onward_runlog.forking import stage
from onward_runlog.record import LISTED, pairs, run_from
from onward_runlog.staging import Staged, Staging, signal_digest
from onward_runlog.store import Store
from onward_runlog.writer import BATCH_BYTES_MAX, BATCH_EVENTS_MAX, LOG_BYTES_MAX, LOG_EVENTS_MAX, RETENTION_S

logger = logging.getLogger(__name__)

QUEUE_MAX = 100_000
"""Runs that may wait for one deployment in one partition."""

DEATHS_MAX = 3
"""A run whose executors died this often is PAUSED, and one that is being cancelled ends. After two deaths it is given
only to an executor that holds nothing else, so the last one is its own doing."""

CANCEL_GRACE_S = 10.0
"""How long user code may clean up after a cancellation, unless told otherwise."""

SWEEP_MAX = 500
"""What one sweep of a partition takes on of each kind."""

CHILDREN_AT_ONCE = 100
"""How many children are read at a time."""

READ_EVENTS = 500

OUTBOX, HOOKS = "outbox", "hooks"
"""The outboxes of a partition: what runs ask of each other, and whom to tell of ends and pauses."""

ENTRIES_MAX = 20
"""What is taken from one outbox at a time."""

# The fields that functions reply with, as the two lists of the same names in functions.lua.
_SHOWN = tuple(name.encode() for name in LISTED)
_DISPATCH = tuple(b"run input attempt cause trace deployment log_id last state deadline alone".split())

LAST_US = 253_402_300_799_000_000
"""The last second of the year 9999, behind which no time can be told."""

OWN_ID_CHARACTERS = 26
"""Length of a run_id that the server makes."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A run given to an executor, with what the executor has to know.

    Attributes:
        run: With its input.
        attempt: The fencing token.
        log_key: Where the log is.
        cause: Why there is an attempt.
        trace_parent: As submitted.
        alone: Whether the executor may hold nothing else.
    """

    run: Run
    attempt: int
    log_key: str
    cause: AttemptCause.ValueType
    trace_parent: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """An executor's right to append for a run."""

    namespace: str
    run_id: str
    attempt: int
    holder: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in an outbox, to be done at least once.

    Attributes:
        base: The partition.
        id: Names it in its partition.
        what: What came with it; empty where the run's record tells all.
        tries: How often it was taken, this time included.
    """

    base: str
    id: str
    what: bytes
    tries: int

    @property
    def kind(self) -> str:
        """What happened: "ended" (a run that others want to know of), "end" or "pause" (a hook), or "errand"."""
        return kind_of(self.id)

    @property
    def parts(self) -> list[str]:
        """What follows the kind: of "end.2" the number of the hook, of "pause.7.1" the offset, too."""
        return self.id.partition(":")[0].split(".")[1:]

    @property
    def run(self) -> tuple[str, str]:
        """Namespace and run_id of the run that it happened to."""
        return _split(self.id.partition(":")[2].encode())


@dataclass(frozen=True, slots=True)
class Swept:
    """What a partition needs from a Scheduler.

    Attributes:
        expired: Leases that have run out.
        passed: Namespace and run_id of runs that are past their deadline.
        queued: How many runs wait, by the name of the queue.
        next_timer_s: Seconds until the partition's next timer; None without one.
    """

    expired: list[Lease]
    passed: list[tuple[str, str]]
    queued: dict[str, int]
    next_timer_s: float | None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a run: `executor_id` is empty when nobody does."""

    executor_id: str
    attempt: int


def kind_of(entry_id: str) -> str:
    """Return what the id of an entry says has happened; see Entry.kind."""
    return entry_id.partition(":")[0].partition(".")[0]


def new_run_id(namespace: str, request_id: str) -> str:
    """Return the id of a run whose caller chose none; from its request_id, so that a repeat meets the same run."""
    if not request_id:
        return secrets.token_hex(OWN_ID_CHARACTERS // 2)
    digest = hashlib.blake2b(f"{namespace}/{request_id}".encode(), digest_size=OWN_ID_CHARACTERS // 2)
    return digest.hexdigest()


class Runs:
    """All transitions on one store.

    Args:
        store: The store.
        retention_s: How long a finished run is kept, in seconds.
        cancel_grace_s: How long nobody may have come to clean up after a cancelled run, in seconds: from then on it is
            ended by the next call of `cancel`.
        on_end: Called with a run that a transition of ours has ended, and the traceparent it was submitted with.
        on_lost: Called with why `lose` has taken a run from its executor.
    """

    def __init__(
        self,
        store: Store,
        *,
        retention_s: float = RETENTION_S,
        cancel_grace_s: float = CANCEL_GRACE_S,
        on_end: Callable[[Run, str], None] = lambda _run, _trace_parent: None,
        on_lost: Callable[[str], None] = lambda _why: None,
    ) -> None:
        self._store = store
        self._on_end = on_end
        self._on_lost = on_lost
        self._retention_ms = int(retention_s * 1000)
        self._cancel_grace_ms = int(cancel_grace_s * 1000)

    async def known(self, run: Run, made_of: bytes) -> Run | None:
        """Return the run that an earlier call accepted under this id; None where there is none.

        Args:
            run: Its namespace and run_id are asked for.
            made_of: As in `submit`.

        Raises:
            RequestReused: The id stands for something else.
        """
        base, ref = self._store.place(run.namespace, run.run_id)
        digest, *shown = await self._store.command("HMGET", keys.run(base, ref), "digest", *LISTED)
        if digest is None:
            return None
        if digest != hashlib.blake2b(made_of, digest_size=16).digest():
            raise RequestReused(run.run_id)
        return run_from(dict(zip(_SHOWN, shown, strict=True)))

    async def submit(
        self,
        run: Run,
        *,
        trace_parent: str = "",
        holder: str = "",
        ttl_s: float = 0.0,
        made_of: bytes = b"",
        staged: Staged | None = None,
        hooks: Workflow | None = None,
        timeout_s: float = 0.0,
    ) -> tuple[Run, bool, Taken | None]:
        """Record and queue a run. Idempotent by run_id: a repeat of the same workflow and input returns the first one.

        Args:
            run: What was asked for, input included, with its deployment.
            trace_parent: The caller's W3C traceparent.
            holder: Executor that takes the run at once if nobody waits before it; empty queues it.
            ttl_s: The lease that `holder` then gets, in seconds.
            made_of: What a repeat has to have in common with the first call; by default workflow and input.
            staged: What its log begins with, its first event included.
            hooks: Whom to tell of its end and its pauses, in the two fields of a Workflow.
            timeout_s: Seconds from its start to its deadline; 0 sets none. A deadline that would be later than any time
                can be told is the last one.

        Returns:
            The run without its input, whether it was known already, and what to hand to `holder` if it took the run.

        Raises:
            RequestReused: The run_id stands for another workflow or input.
            QueueFull: Too many wait for the deployment.
            StoreUnavailable: The outcome is unknown; or what was staged has gone, and nothing was accepted.
        """
        base, ref = self._store.place(run.namespace, run.run_id)
        data = run.input.SerializeToString()
        static = Run()
        static.CopyFrom(run)
        static.ClearField("input")
        # By this clock, for functions of an older build: those of this one tell the time by the store's.
        timeout_ms, created_us = math.ceil(timeout_s * 1000), time.time_ns() // 1000
        _date(static, created_us, timeout_ms)
        log_id = secrets.token_hex(8)
        names = [keys.ALL, keys.by_workflow(run.workflow)]
        names += [keys.by_label(key, value) for key, value in run.labels.items()]
        if run.parent_run_id:
            names.append(keys.by_parent(run.parent_run_id))
        digest = hashlib.blake2b(made_of or run.workflow.encode() + b"\0" + data, digest_size=16).digest()
        status, *rest = await self._store.call(
            "submit",
            base,
            ref,
            digest,
            static.SerializeToString(),
            data,
            run.deployment,
            run.priority,
            run.fairness_key,
            run.schedule_time.ToMilliseconds() if run.HasField("schedule_time") else 0,
            static.deadline.ToMilliseconds() if static.HasField("deadline") else 0,
            created_us,
            log_id,
            trace_parent,
            _state_event(RunState.RUN_STATE_QUEUED),
            QUEUE_MAX,
            holder,
            int(ttl_s * 1000),
            staged.attempt if staged else 0,
            staged.token if staged else "",
            int(run.parent_run_id != ""),
            hooks.SerializeToString() if hooks is not None else b"",
            len(hooks.on_run_end) if hooks is not None else 0,
            len(hooks.on_run_paused) if hooks is not None else 0,
            len(names),
            *names,
            len(staged.errands) if staged else 0,
            *(staged.errands if staged else ()),
            timeout_ms,
        )
        if status == b"unstaged":
            raise StoreUnavailable("what the fork begins with was copied too long ago")
        if status == b"reused":
            raise RequestReused(run.run_id)
        if status == b"full":
            raise QueueFull(f"{QUEUE_MAX} runs wait for deployment {run.deployment} already")
        if status == b"replayed":
            return run_from(dict(zip(_SHOWN, rest[0], strict=True))), True, None
        static.state = RunState.RUN_STATE_QUEUED
        static.log.log_id, static.log.first_offset, static.log.last_offset = log_id, 1, 1
        if staged is not None:
            static.log.last_offset, static.attempt = staged.last_offset, staged.attempt
        attempt, *times = rest
        if times:
            _date(static, int(times[0]), timeout_ms)
        if attempt == 0:
            return static, False, None
        given = Run()
        given.CopyFrom(static)
        given.input.CopyFrom(run.input)
        given.attempt, given.executor_id = attempt, holder
        cause = AttemptCause.ATTEMPT_CAUSE_STARTED
        return static, False, Taken(given, given.attempt, keys.log(base, ref), cause, trace_parent)

    async def stage(self, source: Run, run_id: str, component_id: str | None, *, from_failure: bool = False) -> Staged:
        """Copy what a fork of `source` begins with; see `onward_runlog.forking.stage`."""
        return await stage(
            self._store,
            source,
            run_id,
            component_id=component_id,
            from_failure=from_failure,
            first=_state_event(RunState.RUN_STATE_QUEUED, reason=f"forked from run {source.run_id}"),
            events_max=LOG_EVENTS_MAX - BATCH_EVENTS_MAX,
            bytes_max=LOG_BYTES_MAX - BATCH_BYTES_MAX,
        )

    async def claim(self, base: str, queue: str, *, holder: str, ttl_s: float, limit: int) -> list[Taken]:
        """Give up to `limit` queued runs of a partition to an executor; each lease of `ttl_s` seconds begins here.

        Args:
            base: The partition.
            queue: A deployment, or `keys.alone` of it.
            holder: The executor.
        """
        replies = await self._store.call("claim", base, queue, holder, int(ttl_s * 1000), limit)
        taken = []
        for ref, values in replies:
            record = dict(zip(_DISPATCH, values, strict=True))
            record[b"holder"] = holder.encode()
            taken.append(self._taken(base, ref.decode(), record))
        return taken

    async def cancel(self, namespace: str, run_id: str, reason: str) -> tuple[Run, Holder]:
        """Ask for a run's end. What has run before cleans up first, wherever it is; on a terminal run nothing happens.

        A run that has not begun, or is PAUSED, ends at once. So does one that waits for an executor to clean up in, if
        the grace has passed since this was asked first.

        Raises:
            RunNotFound: There is no such run.
        """
        base, ref = self._store.place(namespace, run_id)
        status, *rest = await self._store.call(
            "cancel",
            base,
            ref,
            self._retention_ms,
            _state_event(RunState.RUN_STATE_CANCELLING, reason=reason),
            _state_event(RunState.RUN_STATE_CANCELLED, reason=reason),
            self._cancel_grace_ms,
        )
        if status == b"missing":
            raise RunNotFound(run_id)
        holder, attempt, flat, ended = rest
        if ended:
            self._tell_end(flat)
        return run_from(pairs(flat)), Holder(holder.decode(), attempt)

    async def lose(self, namespace: str, run_id: str, attempt: int, why: str, *, reason: str = "") -> bool:
        """Take a run from its executor and queue it again, at the front.

        Args:
            attempt: The attempt that is meant; another one is left alone.
            why: "lost" (its executor is dead), "expired" (only if the lease has run out), "handed_over" (it drains) or
                "refused" (it did not take the run, or did not say so).
            reason: Goes into the log, for a person.

        Returns:
            Whether the attempt was still in force.
        """
        base, ref = self._store.place(namespace, run_id)
        error = RunError(
            reason="EXECUTOR_LOST",
            message=f"{DEATHS_MAX} times it lost its executor, which had died or was deaf (its event loop blocked): "
            "the executor's log says what it was doing. Mend that, then resume it",
        )
        status, *rest = await self._store.call(
            "lose",
            base,
            ref,
            attempt,
            why,
            self._retention_ms,
            DEATHS_MAX,
            _state_event(RunState.RUN_STATE_QUEUED, reason=reason),
            _state_event(RunState.RUN_STATE_CANCELLED, reason=reason),
            _state_event(RunState.RUN_STATE_PAUSED, error=error, reason=reason),
            error.SerializeToString(),
            _state_event(RunState.RUN_STATE_CANCELLING, reason=reason),
        )
        if len(rest) > 1:
            self._tell_end(rest[1])
        if status == b"ok":
            self._on_lost(why)
        return bool(status == b"ok")

    async def resume(self, namespace: str, run_id: str, *, deployment: str = "") -> Run:
        """Queue a paused run, and count its deaths from the start. A repeat finds it queued or running, and returns it.

        A parked run is queued, too: its code looks whether it still has to wait.

        Args:
            deployment: The build that runs it from now on; empty keeps it.

        Raises:
            RunNotFound: There is no such run.
            WrongState: It is neither paused nor parked.
            LogAtLimit: Its log has no room to go on.
        """
        base, ref = self._store.place(namespace, run_id)
        status, *rest = await self._store.call(
            "resume",
            base,
            ref,
            deployment,
            _state_event(RunState.RUN_STATE_QUEUED, reason="resumed"),
            LOG_EVENTS_MAX - BATCH_EVENTS_MAX,
            LOG_BYTES_MAX - BATCH_BYTES_MAX,
        )
        match status:
            case b"missing":
                raise RunNotFound(run_id)
            case b"state":
                raise WrongState(run_id, state_name(rest[0]))
            case b"full":
                raise LogAtLimit(run_id)
        return run_from(pairs(rest[0]))

    async def adopt(self, namespace: str, run_id: str, deployment: str, to: str, *, reason: str = "") -> bool:
        """Move a run that stands in line from one deployment to another. A repeat finds nothing to do.

        Args:
            deployment: The build that it waits for; a run that waits for another one, or does not wait, is left alone.
            to: The build that runs it from now on.
            reason: Goes into the log, for a person.

        Returns:
            Whether this call moved it.
        """
        base, ref = self._store.place(namespace, run_id)
        [status] = await self._store.call(
            "adopt",
            base,
            ref,
            deployment,
            to,
            _state_event(RunState.RUN_STATE_QUEUED, reason=reason),
            _state_event(RunState.RUN_STATE_CANCELLING, reason=reason),
        )
        return bool(status == b"ok")

    async def in_line(self, base: str, queue: str, *, start: int, limit: int) -> list[Run]:
        """Return runs that stand in a queue of a partition, without input and output, in their order.

        Args:
            base: The partition.
            queue: A deployment, or `keys.alone` of it.
            start: How many to pass over.
            limit: How many to return, at most.
        """
        refs = await self._store.command("ZRANGE", keys.queue(base, queue), start, start + limit - 1)
        reads = [self._store.command("HMGET", keys.run(base, ref.decode()), *LISTED) for ref in refs]
        records = [dict(zip(_SHOWN, values, strict=True)) for values in await asyncio.gather(*reads)]
        return [run_from(record) for record in records if record[b"run"] is not None]

    async def expel(self, namespace: str, run_id: str) -> Holder | None:
        """Fail a run whose deadline has passed, and return who held it; None if it was not so."""
        base, ref = self._store.place(namespace, run_id)
        error = RunError(reason="RUN_TIMEOUT", message="the run's timeout has passed", retryable=True)
        status, *rest = await self._store.call(
            "expel",
            base,
            ref,
            self._retention_ms,
            _state_event(RunState.RUN_STATE_FAILED, error=error),
            error.SerializeToString(),
        )
        if status != b"ok":
            return None
        self._tell_end(rest[2])
        return Holder(rest[0].decode(), rest[1])

    async def signal(self, namespace: str, signal: SignalRunRequest) -> tuple[int, bool, Holder]:
        """Append a signal, and queue the run where it is parked and waits for it. Idempotent by request_id.

        Returns:
            Its offset, whether it was there already, and who holds the run.

        Raises:
            RunNotFound: There is no such run.
            WrongState: The run has ended.
            RequestReused: The request_id stands for another signal.
            QueueFull: The log is at its limit.
        """
        base, ref = self._store.place(namespace, signal.run_id)
        received = SignalReceived(name=signal.name, value=signal.value, request_id=signal.request_id)
        event = Event(signal_received=received)
        event.create_time.GetCurrentTime()
        status, *rest = await self._store.call(
            "signal",
            base,
            ref,
            signal.request_id,
            signal_digest(signal.name, signal.value),
            event.SerializeToString(),
            LOG_EVENTS_MAX,
            LOG_BYTES_MAX,
            signal.name,
            _state_event(RunState.RUN_STATE_QUEUED, reason=f"signal {signal.name}"),
        )
        match status:
            case b"missing":
                raise RunNotFound(signal.run_id)
            case b"ended":
                raise WrongState(signal.run_id, state_name(rest[1]))
            case b"reused":
                raise RequestReused(signal.run_id)
            case b"full":
                raise QueueFull("the run's log is at its limit")
        offset, _, holder, attempt = rest
        return offset, status == b"replayed", Holder(holder.decode(), attempt)

    async def asked(self, namespace: str, signal: SignalRunRequest) -> bytes:
        """Return the JSON Schema that a signal has to satisfy, since the run asks for it; empty where it does not.

        A signal that was taken in before, by its request_id, has nothing to satisfy.
        """
        base, ref = self._store.place(namespace, signal.run_id)
        schema, known = await asyncio.gather(
            self._store.command("HGET", keys.memo(base, ref), ASKED + signal.name),
            self._store.command("HGET", keys.signals(base, ref), signal.request_id),
        )
        return schema or b"" if known is None else b""

    async def hooks(self, namespace: str, run_id: str) -> Workflow:
        """Return whom to tell of a run's end and pauses."""
        base, ref = self._store.place(namespace, run_id)
        return Workflow.FromString(await self._store.command("HGET", keys.run(base, ref), "hooks") or b"")

    async def state(self, namespace: str, run_id: str) -> RunState.ValueType | None:
        """Return where a run is in its life; None where there is no such run."""
        base, ref = self._store.place(namespace, run_id)
        state = await self._store.command("HGET", keys.run(base, ref), "state")
        return None if state is None else RunState.ValueType(int(state))

    async def was_cancelled(self, namespace: str, run_id: str) -> bool:
        """Tell whether a run was asked to end, and to clean up before; it may have ended otherwise meanwhile."""
        base, ref = self._store.place(namespace, run_id)
        return bool(await self._store.command("HEXISTS", keys.run(base, ref), "cancelled"))

    async def was_told(self, namespace: str, run_id: str, request_id: str) -> bool:
        """Tell whether a signal with this request_id is in a run's log."""
        base, ref = self._store.place(namespace, run_id)
        return bool(await self._store.command("HEXISTS", keys.signals(base, ref), request_id))

    async def stage_signals(
        self, namespace: str, source: str, run_id: str, offsets: Sequence[int], *, after: int
    ) -> Staged | None:
        """Bring a run's signals to where the run will be that it goes on as: they come before all that is sent to that.

        Args:
            namespace: Of both.
            source: The run.
            run_id: What it goes on as.
            offsets: Where the signals are that nobody had taken up to `after`.
            after: All that came later go along, too.

        Returns:
            What its log begins with; None where there are no signals.
        """
        staging: Staging | None = None
        async for event in self._signals(namespace, source, offsets, after=after):
            if staging is None:
                staging = Staging(self._store, namespace, run_id)
                await staging.add_event(_state_event(RunState.RUN_STATE_QUEUED))
            signal = event.signal_received
            signal.request_id = signal.request_id or f"{source}.{event.offset}"
            await staging.add_signal(event)
        if staging is None:
            return None
        last, size = await staging.done()
        return Staged(staging.token, 0, last, size)

    async def _signals(
        self, namespace: str, run_id: str, offsets: Sequence[int], *, after: int
    ) -> AsyncIterator[Event]:
        """Yield the signals of people and programs that stand at `offsets`, and all after an offset, in order."""
        base, ref = self._store.place(namespace, run_id)
        log = keys.log(base, ref)
        pieces = [(f"{offset}-0", f"{offset}-0") for offset in offsets] + [(f"{after + 1}-0", "+")]
        for start, end in pieces:
            while entries := await self._store.command("XRANGE", log, start, end, "COUNT", READ_EVENTS):
                for entry_id, fields in entries:
                    event = Event.FromString(fields[1])
                    start = f"({entry_id.decode()}"
                    if event.HasField("signal_received") and not event.signal_received.name.startswith(RESERVED):
                        yield event

    async def children(self, namespace: str, run_id: str) -> list[Run]:
        """Return the runs that a run has started, without input and output, wherever they are."""
        bases = self._store.bases()
        name = keys.by_parent(run_id)
        listed = await asyncio.gather(
            *(self._store.command("ZRANGE", keys.index(base, namespace, name), 0, -1) for base in bases)
        )
        found: list[Run] = []
        for base, ids in zip(bases, listed, strict=True):
            for index in range(0, len(ids), CHILDREN_AT_ONCE):
                refs = [keys.ref(namespace, child.decode()) for child in ids[index : index + CHILDREN_AT_ONCE]]
                records = await asyncio.gather(
                    *(self._store.command("HMGET", keys.run(base, ref), *LISTED) for ref in refs)
                )
                found += [run_from(dict(zip(_SHOWN, record, strict=True))) for record in records if record[0]]
        return found

    async def take(self, base: str, outbox: str = OUTBOX, *, busy_s: float) -> list[Entry]:
        """Take what is due in an outbox of a partition. What is not settled in time is due again.

        Args:
            base: The partition.
            outbox: OUTBOX or HOOKS.
            busy_s: How long it is left to the caller, in seconds.
        """
        reply = iter(await self._store.call("take", base, outbox, ENTRIES_MAX, int(busy_s * 1000)))
        return [Entry(base, name.decode(), what, tries) for name, what, tries in zip(reply, reply, reply, strict=True)]

    async def settle(self, entry: Entry, again_s: float | None = None) -> None:
        """An entry is done with, or to be taken again in so many seconds."""
        await self._store.call("settle", entry.base, entry.id, "" if again_s is None else int(again_s * 1000))

    async def get(self, namespace: str, run_id: str) -> Run:
        """Return a run.

        Raises:
            RunNotFound: There is no such run.
        """
        base, ref = self._store.place(namespace, run_id)
        record = pairs(await self._store.command("HGETALL", keys.run(base, ref)))
        if not record:
            raise RunNotFound(run_id)
        return run_from(record)

    async def held_by(self, executor_id: str) -> list[Lease]:
        """Return every run that an executor holds, over all partitions."""
        bases = self._store.bases()
        replies = await asyncio.gather(*(self._store.call("held", base, executor_id) for base in bases))
        found = []
        for reply in replies:
            found += [Lease(*_split(ref), attempt, executor_id) for ref, attempt in _by_two(reply)]
        return found

    async def sweep(self) -> dict[str, Swept]:
        """Do what is due in every partition and return what is left to decide, by base name."""
        bases = self._store.bases()
        woken = _state_event(RunState.RUN_STATE_QUEUED, reason="its time has come")
        calls = [self._store.call("sweep", base, SWEEP_MAX, woken, patience_s=0.0) for base in bases]
        return {base: _swept(reply) for base, reply in zip(bases, await asyncio.gather(*calls), strict=True)}

    def _tell_end(self, flat: list[bytes]) -> None:
        record = pairs(flat)
        self._on_end(run_from(record), record[b"trace"].decode())

    def _taken(self, base: str, ref: str, record: Mapping[bytes, bytes | None]) -> Taken:
        run = run_from(record)
        return Taken(
            run=run,
            attempt=run.attempt,
            log_key=keys.log(base, ref),
            cause=AttemptCause.ValueType(int(record[b"cause"] or 0)),
            trace_parent=(record[b"trace"] or b"").decode(),
            alone=record[b"alone"] == b"1",
        )


def state_name(state: int) -> str:
    """Return a RunState without its prefix, e.g. "RUNNING"."""
    return RunState.Name(RunState.ValueType(state)).removeprefix("RUN_STATE_")


def _date(run: Run, created_us: int, timeout_ms: int) -> None:
    """Set when a run was accepted and, with a time limit, its deadline, as submit of functions.lua does."""
    run.create_time.FromMicroseconds(created_us)
    if timeout_ms:
        start_us = max(created_us, run.schedule_time.ToMilliseconds() * 1000)
        run.deadline.FromMicroseconds(min(start_us + timeout_ms * 1000, LAST_US))


def _state_event(state: RunState.ValueType, *, error: RunError | None = None, reason: str = "") -> bytes:
    event = Event(run_state_changed=RunStateChanged(state=state, error=error, reason=reason))
    event.create_time.FromNanoseconds(time.time_ns())
    return event.SerializeToString()


def _swept(reply: list[Any]) -> Swept:
    now, expired, passed, queued, next_timer = reply
    entries = iter(expired)
    leases = []
    for ref, attempt, holder in zip(entries, entries, entries, strict=True):
        leases.append(Lease(*_split(ref), attempt, holder.decode()))
    timer = float(next_timer)
    return Swept(
        expired=leases,
        passed=[_split(ref) for ref in passed],
        queued={name.decode(): int(count) for name, count in _by_two(queued)},
        next_timer_s=max(0.0, (timer - float(now)) / 1000) if timer else None,
    )


def _split(ref: bytes) -> tuple[str, str]:
    namespace, _, run_id = ref.decode().partition("/")
    return namespace, run_id


def _by_two(flat: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    entries = iter(flat)
    return zip(entries, entries, strict=True)
