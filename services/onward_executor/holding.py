"""The runs that this executor holds: taken, cancelled, handed over, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from onward.engine import Attempt
from onward.permits import Permits
from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.executor_service_pb2 import ExecuteRequest, Executor, HeldRun, HeldRuns, WatchResponse
from onward.v1.run_pb2 import RunState
from onward.workflows import Workflow
from onward_runlog.breakers import RedisBreakers
from onward_runlog.budgets import RedisBudgets
from onward_runlog.cache import RedisCache
from onward_runlog.errors import StoreUnavailable
from onward_runlog.leases import Heartbeat, Renewal
from onward_runlog.record import TERMINAL
from onward_runlog.runs import CANCEL_GRACE_S, Runs
from onward_runlog.store import Store
from onward_runlog.writer import LogWriter, RedisAttemptLog
from onward_serving.errors import Refused, draining

logger = logging.getLogger(__name__)

HELD_EVERY_S = 5.0
"""How often watchers are told every run that is held."""

LET_GO = TERMINAL | {RunState.RUN_STATE_PAUSED, RunState.RUN_STATE_WAITING}
"""What an attempt brings a run into by itself."""

STOP_S = 30.0
"""How long an attempt that is handed over may take to end; one that waits for a store that is away never would."""

QUIET_S = 0.1
"""Changes of load within this time are told once, except the one that makes a full executor free."""


@dataclass(eq=False, slots=True)
class _Held:
    attempt: Attempt
    log: RedisAttemptLog
    number: int
    namespace: str
    run_id: str
    alone: bool
    cancel_grace_s: float
    task: asyncio.Task[None] | None = None
    let_go: bool = False
    """A renewal has told that nobody holds the run, since it has ended, is paused or is parked."""


class Holding:
    """Everything that this executor holds, and what its watchers are told.

    Args:
        store: The store.
        writer: Appends for all of them.
        permits: Limit their components.
        budgets: What model calls may use.
        breakers: Whether providers answer.
        workflows: What is served, by name.
        executor: Who this is.
        lease_ttl_s: Time of a lease until a Scheduler names another, in seconds.

    Attributes:
        draining: Whether nothing more is taken.
        heartbeat: Renews their leases.
    """

    def __init__(
        self,
        store: Store,
        writer: LogWriter,
        permits: Permits,
        budgets: RedisBudgets,
        breakers: RedisBreakers,
        workflows: Mapping[str, Workflow[..., Any, Any]],
        executor: Executor,
        *,
        lease_ttl_s: float,
    ) -> None:
        self._store = store
        self._writer = writer
        self._workflows = workflows
        self._executor = executor
        self._runs = Runs(store)
        self._cache = RedisCache(store)
        self._permits = permits
        self._budgets = budgets
        self._breakers = breakers
        self._held: dict[str, _Held] = {}
        self._changed = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._closed = False
        self.draining = False
        self.heartbeat = Heartbeat(store, executor.executor_id, ttl_s=lease_ttl_s, on_renewal=self._on_renewal)

    def take(self, request: ExecuteRequest) -> int:
        """Take a run and begin its attempt. A repeat of a taken attempt starts nothing.

        Returns:
            How many runs are held now.

        Raises:
            Refused: Full, draining, or the workflow is not served.
        """
        run = request.run
        base, ref = self._store.place(run.namespace, run.run_id)
        known = self._held.get(ref)
        if known is not None and known.number >= request.attempt:
            return len(self._held)
        if self.draining:
            raise draining()
        if run.workflow not in self._workflows:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND,
                f"this executor does not serve workflow {run.workflow!r}",
                {"workflow": run.workflow},
            )
        if known is None and len(self._held) >= self._executor.slots:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                ErrorReason.ERROR_REASON_EXECUTOR_FULL,
                f"all {self._executor.slots} slots are taken",
            )
        others = [held for name, held in self._held.items() if name != ref]
        if any(held.alone for held in others) or (request.alone and others):
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                ErrorReason.ERROR_REASON_EXECUTOR_FULL,
                "this run has to be alone, or one that is held has to",
            )
        if known is not None:  # an attempt that was given up elsewhere comes back here
            known.attempt.abandon()
        if request.HasField("lease_ttl"):
            self.heartbeat.set_ttl(request.lease_ttl.ToMilliseconds() / 1000)
        told_grace = request.HasField("cancel_grace")
        cancel_grace_s = request.cancel_grace.ToMilliseconds() / 1000 if told_grace else CANCEL_GRACE_S
        log = self._writer.log(
            run.namespace,
            run.run_id,
            request.attempt,
            last_offset=run.log.last_offset,
            on_cancelling=lambda: self.cancel(ref, request.attempt, cancel_grace_s),
        )
        attempt = Attempt(
            self._workflows[run.workflow],
            run=run,
            log=log,
            attempt=request.attempt,
            cause=request.cause,
            executor_id=self._executor.executor_id,
            deployment=self._executor.deployment,
            digest_key=self._store.digest_key,
            trace_parent=request.trace_parent,
            cache=self._cache,
            permits=self._permits,
            budgets=self._budgets,
            breakers=self._breakers,
        )
        held = _Held(
            attempt, log, request.attempt, run.namespace, run.run_id, request.alone, cancel_grace_s=cancel_grace_s
        )
        self._held[ref] = held
        self._empty.clear()
        self.heartbeat.add(base, ref, request.attempt)
        held.task = asyncio.create_task(self._run(ref, held), name=f"run {run.run_id}")
        self._changed.set()
        if run.state == RunState.RUN_STATE_CANCELLING:
            attempt.cancel("", cancel_grace_s)
        return len(self._held)

    def cancel(self, ref: str, number: int, grace_s: float) -> None:
        """Ask the attempt of a run to end as cancelled; its user code has `grace_s` seconds to clean up."""
        held = self._held.get(ref)
        if held is not None and held.number == number:
            held.attempt.cancel("", grace_s)

    def notify(self, ref: str, number: int, last_offset: int) -> None:
        """Learn that somebody else wrote to the log of a run, which now ends at `last_offset`."""
        held = self._held.get(ref)
        if held is not None and held.number == number:
            held.log.told(last_offset)

    def stop_taking(self) -> None:
        """Take nothing more, and tell watchers."""
        self.draining = True
        self._executor.draining = True
        self._changed.set()

    async def emptied(self, grace_s: float) -> None:
        """Wait until no run is held, at most `grace_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()

    async def hand_over(self) -> None:
        """Stop whatever is still held, have it queued again for another executor, and end what watchers are told."""
        left = list(self._held.values())
        if left:
            logger.info("handing over %d runs", len(left))
        await asyncio.gather(*(self._hand_over(held) for held in left))
        self._closed = True
        self._changed.set()

    async def watch(self) -> AsyncIterator[WatchResponse]:
        """Yield the load as it changes until all is handed over; what is held at first and every HELD_EVERY_S."""
        loop = asyncio.get_running_loop()
        told_at = float("-inf")
        was_full = False
        while not self._closed:
            response = WatchResponse(executor=self._snapshot(whole=told_at == float("-inf")))
            if loop.time() - told_at >= HELD_EVERY_S:
                told_at = loop.time()
                response.held.CopyFrom(self._held_runs())
            was_full = len(self._held) >= self._executor.slots or self._alone
            changed = self._changed
            yield response
            if not was_full:
                await asyncio.sleep(QUIET_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(told_at + HELD_EVERY_S):
                    await changed.wait()
            if changed is self._changed and changed.is_set():
                self._changed = asyncio.Event()
        yield WatchResponse(executor=self._snapshot(whole=False))

    @property
    def running(self) -> int:
        """How many runs are held."""
        return len(self._held)

    @property
    def _alone(self) -> bool:
        return len(self._held) == 1 and next(iter(self._held.values())).alone

    async def _run(self, ref: str, held: _Held) -> None:
        try:
            await held.attempt.run()
        except Exception:
            logger.exception("a bug in the engine ended an attempt of run %s; its lease will run out", held.run_id)
        finally:
            if self._held.get(ref) is held:
                del self._held[ref]
            self.heartbeat.remove(ref, held.number)
            if not self._held:
                self._empty.set()
            self._changed.set()

    async def _hand_over(self, held: _Held) -> None:
        held.attempt.abandon()
        if held.task is not None:
            await asyncio.wait((held.task,), timeout=STOP_S)
            held.task.cancel()
            await asyncio.gather(held.task, return_exceptions=True)
        reason = f"executor {self._executor.executor_id} drained"
        try:
            await self._runs.lose(held.namespace, held.run_id, held.number, "handed_over", reason=reason)
        except StoreUnavailable:
            logger.warning("run %s could not be handed over and is left to its lease", held.run_id)

    def _on_renewal(self, renewal: Renewal) -> None:
        held = self._held.get(renewal.lease.ref)
        if held is None or held.number != renewal.lease.attempt:
            return
        if renewal.held and renewal.state == RunState.RUN_STATE_CANCELLING:
            held.attempt.cancel("", held.cancel_grace_s)
        elif renewal.held:
            held.log.told(renewal.last_offset)
        elif held.attempt.state == RunState.RUN_STATE_WAITING:
            pass  # Parked by this attempt, whose code cleans up; somebody else may have the run by now.
        elif renewal.state in LET_GO and not held.let_go:
            # Most likely by its own last event, whose reply is on its way. If not, the next renewal tells.
            held.let_go = True
        else:
            logger.warning("run %s was taken back: its code is stopped", held.run_id)
            held.attempt.abandon()

    def _snapshot(self, *, whole: bool) -> Executor:
        executor = Executor()
        executor.CopyFrom(self._executor)
        executor.running = len(self._held)
        executor.alone = self._alone
        if not whole:
            executor.ClearField("workflows")
        return executor

    def _held_runs(self) -> HeldRuns:
        return HeldRuns(
            runs=[
                HeldRun(namespace=held.namespace, run_id=held.run_id, attempt=held.number)
                for held in self._held.values()
            ]
        )
