"""The engine: one executor's go at a run, from AttemptStarted to the event that closes the log."""

from __future__ import annotations

import asyncio
import logging
from hashlib import blake2b
from typing import Any

from onward import tracing
from onward.breakers import Breakers
from onward.budgets import Budgets
from onward.cache import Cache
from onward.calls import STOP_GRACE_S, Call, tries
from onward.continuing import continued, errand, successor
from onward.failure import WORKFLOW_FAILED, run_error, told, workflow_error
from onward.instance import Instance
from onward.journal import Journal, NonDeterministic, inline, now
from onward.log import INLINE_BYTES_MAX, AttemptLog, EventTooLarge, LogError, LogFull, RunCancelling
from onward.past import read
from onward.permits import Permits
from onward.replay import QUIET_S, Replay
from onward.signature import InputInvalid, Kind, Unserializable
from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_CANCELLED,
    ATTEMPT_CAUSE_WOKEN,
    ROLLBACK_CAUSE_ATTEMPT_LOST,
    AttemptCause,
    AttemptStarted,
    Event,
    RunStateChanged,
)
from onward.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_CANCELLING,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_SUCCEEDED,
    RUN_STATE_WAITING,
    Payload,
    Run,
    RunError,
    RunState,
)
from onward.waits import PACE
from onward.workflows import Workflow

logger = logging.getLogger(__name__)

CATCH_UP_S = 0.02
"""How often a cancelled attempt is asked whether it has caught up with those before it."""

OUTPUT_BYTES_MAX = 64 * 1024 * 1024
"""A run's output is at most this long as JSON."""

_JSON = ("", "application/json")


class Attempt:
    """One go at a run. Make it, `await run()` once, and meanwhile `cancel` or `abandon` it.

    Attributes:
        state: The state that it brought the run into, WAITING where it parked it; None while it runs, and where it was
            fenced, abandoned or late.
    """

    def __init__(
        self,
        workflow: Workflow[..., Any, Any],
        *,
        run: Run,
        log: AttemptLog,
        attempt: int,
        cause: AttemptCause.ValueType,
        executor_id: str,
        deployment: str,
        digest_key: bytes = b"",
        trace_parent: str = "",
        cache: Cache | None = None,
        permits: Permits | None = None,
        budgets: Budgets | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        """Take the fields of an ExecuteRequest.

        Args:
            workflow: What to run.
            run: The run, input included.
            log: Its log, for this attempt.
            attempt: The fencing token.
            cause: Why there is an attempt.
            executor_id: Who runs it.
            deployment: The build that runs it.
            digest_key: Secret of the store that digests of inputs are keyed with; at most 64 bytes of it are used.
            trace_parent: W3C traceparent of the run's caller; empty when there is none.
            cache: Results of other runs; None keeps and finds none.
            permits: Hold components to their limits of concurrency; None does not.
            budgets: What its model calls may use; None is without limit.
            breakers: Whether providers answer anybody; None is that each call finds out for itself.
        """
        self.state: RunState.ValueType | None = None
        self._workflow = workflow
        self._run = run
        self._log = log
        self._attempt = attempt
        self._cause = cause
        self._executor_id = executor_id
        self._deployment = deployment
        self._trace_parent = trace_parent
        self._digest_key = digest_key
        self._cache = cache
        self._permits = permits
        self._budgets = budgets
        self._breakers = breakers
        self._journal: Journal | None = None
        self._outbox: list[bytes] = []
        """What the run's end asks of others."""
        self._body: asyncio.Task[Any] | None = None
        self._settled: asyncio.Future[None] | None = None
        self._cancel_reason: str | None = None
        self._cancelling: asyncio.Task[None] | None = None
        self._grace_s = STOP_GRACE_S
        self._abandoned = False
        self._grace: asyncio.TimerHandle | None = None
        self._parking: asyncio.Task[None] | None = None
        if cause == ATTEMPT_CAUSE_CANCELLED or run.state == RUN_STATE_CANCELLING:
            self._cancel_reason = ""

    async def run(self) -> None:
        """Run the workflow and close the log, or stop because the attempt was fenced or abandoned.

        What user code raises ends up in the log. Raised is only what went wrong with the log or here, after which the
        run is left to the end of its lease, and to another attempt.
        """
        if self._abandoned:
            return
        tracer = tracing.tracer()
        journal = self._journal = Journal(
            self._log,
            run=self._run,
            attempt=self._attempt,
            cache=self._cache,
            permits=self._permits,
            budgets=self._budgets,
            breakers=self._breakers,
            digest_key=self._digest_key,
            secret=self._secret(),
            tracer=tracer,
            trace_parent=self._trace_parent,
        )
        journal.on_refusal = self._stop
        root = Instance(journal, None, "", self._workflow.name, streams=self._workflow.signature.kind is Kind.STREAM)
        if tracer is not None:
            root.span = tracing.start_attempt_span(tracer, self._run, self._attempt, self._trace_parent)
        changed: RunStateChanged | None = None
        try:
            try:
                changed = await self._execute(journal, root)
            except LogError as error:
                journal.refuse(error)
            if isinstance(journal.refusal, LogFull):
                await self._finish(journal, self._unfit(_log_limit(journal.refusal)))
            elif isinstance(journal.refusal, NonDeterministic):
                await self._finish(journal, self._unfit(journal.refusal.error))
            elif changed is not None and not journal.closed:
                await self._finish(journal, changed)
        finally:
            journal.closed = True
            journal.waits.close()
            for ending in (self._parking, self._cancelling, self._grace):
                if ending is not None:
                    ending.cancel()
            if self._body is not None:
                self._body.cancel()  # Only where something broke here: else it is done, or was cancelled long ago.
            journal.turns.rest()
            if root.span is not None:
                error_told = changed.error if changed is not None and changed.HasField("error") else None
                tracing.end(root.span, error_told, cancelled=self.state not in (RUN_STATE_SUCCEEDED, RUN_STATE_WAITING))
        if journal.refusal is not None and not isinstance(journal.refusal, LogError | NonDeterministic):
            raise journal.refusal

    def cancel(self, reason: str, grace_s: float = STOP_GRACE_S) -> None:
        """Cancel the run: user code gets CancelledError and cleans up; whatever it returns, the run ends CANCELLED.

        An attempt that follows others catches up with them first, so that the code is cancelled where they were.

        Args:
            reason: Why, for the log.
            grace_s: How long user code may clean up before it is left alone, in seconds.

        A second call changes nothing but a reason that was empty.
        """
        if self._cancel_reason is not None:
            self._cancel_reason = self._cancel_reason or reason
            return
        self._cancel_reason = reason
        self._grace_s = grace_s
        if self._body is not None and self._parking is None:
            self._begin_cancel()  # While it is being parked it depends on who came first: see `_park`.

    def abandon(self) -> None:
        """Stop without another word: the run is no longer this executor's. User code gets CancelledError."""
        self._abandoned = True
        if self._journal is not None:
            self._journal.closed = True
        self._stop()

    # Parking

    def _on_rest(self) -> None:
        if self._parking is None and self._cancel_reason is None:
            self._parking = asyncio.create_task(self._park(), name=f"park {self._run.run_id}")

    async def _park(self) -> None:
        """Let go of the run while nothing of it can go on. Its code is stopped as where the attempt is abandoned."""
        journal = self._journal
        assert journal is not None
        parked = False
        try:
            await self._log.append()
            if journal.waits.is_at_rest() and self._cancel_reason is None:
                waiting, wake_s = journal.waits.freeze()
                parked = await self._log.park(Event(create_time=now(), run_waiting=waiting), wake_s=wake_s)
        except EventTooLarge:
            journal.waits.on_rest = None  # It waits for so much that it cannot be said: it keeps its executor.
        except Exception as error:  # noqa: BLE001 - whatever the log raises ends the attempt, and `run` tells
            journal.refuse(error)
        self._parking = None
        if parked:
            self.state = RUN_STATE_WAITING
            self.abandon()
            return
        journal.waits.thaw()
        if self._cancel_reason is not None:
            self._begin_cancel()

    # From the first event to the outcome

    async def _execute(self, journal: Journal, root: Instance) -> RunStateChanged | None:
        """Run it, and return what the run becomes; None where nothing may be written."""
        started = AttemptStarted(executor_id=self._executor_id, deployment=self._deployment, cause=self._cause)
        journal.post(Event(create_time=now(), attempt_started=started))
        if self._attempt > 1:
            past = await read(self._log)
            if self._cause != ATTEMPT_CAUSE_WOKEN:
                past.resumed_s = PACE.get().clock()
            journal.rollback(past.close(), ROLLBACK_CAUSE_ATTEMPT_LOST)
            journal.replay = Replay(past)
            journal.turns = journal.replay.turns
            journal.waits.follow(past)
            journal.children, journal.children_started = past.children, past.children_started
            root.record = past.root
            # Committed before user code runs: if that blocks or kills this process at once, it is known to have begun.
            await self._log.append()
        elif self._run.log.last_offset > 1:
            async for event in self._log.read(after=1):  # Signals may be there before anybody waits.
                journal.waits.see(event)
        try:
            args, kwargs = self._workflow.signature.load_input(await self._input())
        except InputInvalid as error:
            return _failed(RunError(reason="INPUT_INVALID", message=told(str(error)), type="onward.InvalidInput"))
        if journal.closed or (self._cancel_reason is not None and journal.replay is None):
            return self._stopped_as(journal)
        call = Call(
            self._workflow.name, self._workflow.signature, self._workflow.policy, root, tuple(args), kwargs, kwargs
        )
        journal.waits.on_rest = self._on_rest
        journal.on_end = journal.waits.stir
        body = self._body = journal.body = asyncio.create_task(_body(call, root), name=f"run {self._run.run_id}")
        if self._cancel_reason is not None:
            self._begin_cancel()
        await self._settle(body)
        if self._cancelling is not None:
            self._cancelling.cancel()
        await self._stop_leaked(journal)
        if not body.done():
            logger.warning(
                "run %s: the workflow did not end within its grace and was left behind",
                self._run.run_id,
                extra=self._extra(),
            )
        if self._stopped(journal):
            if body.done() and not body.cancelled() and (failure := body.exception()) is not None:
                logger.warning("run %s: failed while stopping", self._run.run_id, exc_info=failure, extra=self._extra())
            return self._stopped_as(journal)
        changed = await self._outcome(call, body)
        if root.record is not None:
            journal.close_trail(root)
        return changed

    async def _input(self) -> bytes:
        payload = self._run.input
        if payload.media_type.partition(";")[0].strip().lower() not in _JSON:
            raise InputInvalid([f"the input is {payload.media_type}, not JSON"])
        match payload.WhichOneof("value"):
            case "data":
                return payload.data
            case "blob_uri":
                try:
                    return await self._log.get_blob(payload.blob_uri)
                except KeyError:
                    raise InputInvalid([f"the input {payload.blob_uri} is gone"]) from None
        return b"{}"

    async def _settle(self, body: asyncio.Task[Any]) -> None:
        """Wait for the body, and after it was cancelled no longer than its grace."""
        self._settled = asyncio.get_running_loop().create_future()
        body.add_done_callback(self._set_settled)
        try:
            await self._settled
        except asyncio.CancelledError:
            # Whoever awaits the attempt gives it up: the executor is being torn down.
            self.abandon()
            await asyncio.wait((body,), timeout=STOP_GRACE_S)
            raise

    def _set_settled(self, _: object = None) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def _begin_cancel(self) -> None:
        """Cancel the body, or let it catch up with the attempts before this one first."""
        journal = self._journal
        if journal is None or journal.replay is None:
            self._stop()
            return
        journal.before_live = self._arrive
        self._cancelling = asyncio.create_task(self._catch_up(journal.replay), name=f"cancel {self._run.run_id}")

    async def _catch_up(self, replay: Replay) -> None:
        """Wait until all that is remembered was given, or nothing more of it is asked for."""
        loop = asyncio.get_running_loop()
        progress, since = replay.progress, loop.time()
        while True:
            await asyncio.sleep(CATCH_UP_S)
            if replay.over and replay.turns.at_rest:
                break
            if replay.progress != progress:
                progress, since = replay.progress, loop.time()
            elif loop.time() - since > QUIET_S:
                break
        self._arrive()

    def _arrive(self) -> None:
        journal = self._journal
        if journal is not None and journal.before_live is not None and not journal.closed:
            journal.before_live = None
            if journal.replay is not None:
                journal.replay.strict = False
            if self._body is not None and asyncio.current_task() is self._body:
                self._body.cancel(self._cancel_reason or None)  # it is about to wait, and gets it there
            self._stop()

    def _stop(self) -> None:
        """Cancel the body, now or as soon as there is one, and wait for it no longer than the grace."""
        body = self._body
        if body is None or body.done():
            return
        # Where the body itself ran into a refusal, CancelledError is on its way up: a second one would hit its cleanup.
        if asyncio.current_task() is not body:
            body.cancel(self._cancel_reason or None)
        if self._grace is not None:
            self._grace.cancel()
        self._grace = asyncio.get_running_loop().call_later(self._grace_s, self._set_settled)

    async def _stop_leaked(self, journal: Journal) -> None:
        """Cancel the tasks that user code started and did not wait for."""
        leaked = [task for task in journal.tasks if not task.done()]
        if not leaked:
            return
        if not journal.closed and self._cancel_reason is None:
            logger.warning(
                "run %s: %d tasks outlived the workflow and were cancelled: %s",
                self._run.run_id,
                len(leaked),
                ", ".join(sorted(task.get_name() for task in leaked)),
                extra=self._extra(),
            )
        for task in leaked:
            task.cancel()
        await asyncio.wait(leaked, timeout=STOP_GRACE_S)

    async def _outcome(self, call: Call, body: asyncio.Task[Any]) -> RunStateChanged:
        """Return what an undisturbed body brings the run into."""
        if body.cancelled():
            # Nobody asked for it: user code cancelled itself, or something that it awaited.
            return _failed(
                RunError(
                    reason=WORKFLOW_FAILED, message="the workflow was cancelled by its own code", type="CancelledError"
                )
            )
        error = body.exception()
        if (leaves := continued(error)) is not None:
            assert self._journal is not None
            following = successor(self._journal, leaves.data)
            self._outbox = [errand(following)]
            return RunStateChanged(state=RUN_STATE_SUCCEEDED, continued_as_run_id=following.submit.start.run_id)
        if error is not None:
            return _failed(workflow_error(error, call.error_reason(error, WORKFLOW_FAILED)))
        try:
            data = call.signature.dump_output(body.result())
            call.signature.check_own(data)
        except Unserializable as unserializable:
            return _failed(run_error(unserializable, "OUTPUT_INVALID"))
        if len(data) > OUTPUT_BYTES_MAX:
            message = f"the output has {len(data)} bytes; a run's output has at most {OUTPUT_BYTES_MAX}"
            return _failed(RunError(reason="OUTPUT_INVALID", message=message))
        if len(data) <= INLINE_BYTES_MAX:
            output = inline(data)
        else:
            output = Payload(blob_uri=await self._log.put_blob(data), size=len(data))
        return RunStateChanged(state=RUN_STATE_SUCCEEDED, output=output)

    def _stopped(self, journal: Journal) -> bool:
        return journal.closed or self._cancel_reason is not None

    def _stopped_as(self, journal: Journal) -> RunStateChanged | None:
        if journal.closed:
            return None
        return RunStateChanged(state=RUN_STATE_CANCELLED, reason=self._cancel_reason or "")

    def _unfit(self, error: RunError) -> RunStateChanged:
        """How a run stops that cannot go on: for a person, unless its end was asked for already."""
        if self._cancel_reason is None:
            return RunStateChanged(state=RUN_STATE_PAUSED, error=error)
        return RunStateChanged(state=RUN_STATE_CANCELLED, reason=f"it could not clean up: {error.message}")

    async def _finish(self, journal: Journal, changed: RunStateChanged) -> None:
        journal.closed = True
        try:
            try:
                await self._log.finish(Event(create_time=now(), run_state_changed=changed), outbox=self._outbox)
            except (LogFull, RunCancelling) as refusal:
                if isinstance(refusal, RunCancelling):
                    self._cancel_reason = self._cancel_reason or ""
                changed = self._unfit(_log_limit(refusal) if isinstance(refusal, LogFull) else changed.error)
                await self._log.finish(Event(create_time=now(), run_state_changed=changed))
        except LogError:
            return  # Somebody else ended the run, or has it now.
        self.state = changed.state
        if changed.state != RUN_STATE_PAUSED:
            error = changed.error if changed.HasField("error") else None
            tracing.emit_run_span(self._run, changed.state, trace_parent=self._trace_parent, error=error)

    def _secret(self) -> bytes:
        name = f"{self._run.namespace}/{self._run.run_id}".encode()
        return blake2b(name, digest_size=32, key=self._digest_key[:64]).digest()

    def _extra(self) -> dict[str, Any]:
        return {"namespace": self._run.namespace, "run_id": self._run.run_id, "attempt": self._attempt}


async def _body(call: Call, root: Instance) -> Any:
    try:
        return await tries(call, root)
    except SystemExit as error:
        # The event loop would take it for its own.
        raise RuntimeError(f"the workflow called sys.exit({error.code!r})") from error


def _failed(error: RunError) -> RunStateChanged:
    return RunStateChanged(state=RUN_STATE_FAILED, error=error)


def _log_limit(full: LogFull) -> RunError:
    return RunError(reason="LOG_LIMIT", message=f"the run was stopped: {full}")
