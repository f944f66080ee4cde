"""What one run asks of another, and what a run's end means for its parent and its children.

Done at least once (see outbox): so each is idempotent, and each looks at the parent after what it did, since that may
have ended meanwhile. Either the parent's end comes later and finds the child, or the look finds the end.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import grpc

from onward.log import ACCEPTED, ENDED, RUN
from onward.v1.errand_pb2 import ContinueRun, Errand
from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.gateway_service_pb2 import SignalRunRequest
from onward.v1.run_pb2 import Payload, Run, RunError, RunState
from onward.v1.scheduler_service_pb2 import StopRunRequest, SubmitRunRequest
from onward_runlog.errors import RequestReused, RunNotFound, WrongState
from onward_runlog.record import TERMINAL
from onward_runlog.runs import Entry, Runs
from onward_scheduler.accepting import Accepting
from onward_scheduler.dispatching import Dispatcher
from onward_scheduler.outbox import Later
from onward_serving.errors import Refused
from onward_serving.schemas import check_schema, is_json

logger = logging.getLogger(__name__)

UNSEEN_TRIES_MAX = 5
"""How often a run that is to be stopped and is not there is looked for: its start may be under way."""

AT_ONCE = 50
"""Children that are cancelled at the same time."""


class Errands:
    """The handlers of the outbox that runs are the concern of.

    Args:
        runs: The transitions.
        dispatcher: Tells executors.
        accepting: Accepts runs.
    """

    def __init__(self, runs: Runs, dispatcher: Dispatcher, accepting: Accepting) -> None:
        self._runs = runs
        self._dispatcher = dispatcher
        self._accepting = accepting

    async def do(self, entry: Entry) -> None:
        """Do what a run asked for."""
        errand = Errand.FromString(entry.what)
        namespace, run_id = entry.run
        match errand.WhichOneof("kind"):
            case "start_child":
                submit = errand.start_child
                submit.namespace, submit.parent_run_id = namespace, run_id
                await self._start(submit)
            case "continue_run":
                errand.continue_run.submit.namespace = namespace
                await self._continue(run_id, errand.continue_run)
            case "stop_child":
                errand.stop_child.namespace = namespace
                await self._stop(run_id, errand.stop_child, seen_in_vain=entry.tries >= UNSEEN_TRIES_MAX)
            case "tell_end":
                await self._tell_end(Run(namespace=namespace, parent_run_id=run_id), errand.tell_end.run_id)
            case _:
                raise Later("it is of a kind that a newer Scheduler knows")

    async def end(self, entry: Entry) -> None:
        """A run has ended: tell its parent, and cancel its children."""
        namespace, run_id = entry.run
        run = await self._runs.get(namespace, run_id)
        if run.parent_run_id and not run.continued_as_run_id:
            await self._tell_of(run, run.first_run_id or run_id, _end_of(run))
        children = [
            child.run_id
            for child in await self._runs.children(namespace, run_id)
            if not child.detached and child.state not in TERMINAL
        ]
        for index in range(0, len(children), AT_ONCE):
            await asyncio.gather(
                *(
                    self._cancel(namespace, child, f"its parent, run {run_id}, has ended")
                    for child in children[index : index + AT_ONCE]
                )
            )

    async def _start(self, submit: SubmitRunRequest) -> None:
        name = ACCEPTED + submit.start.run_id
        if await self._runs.was_told(submit.namespace, submit.parent_run_id, name):
            return
        answer = Run(run_id=submit.start.run_id)
        try:
            if submit.detached or not await self._is_over(submit.namespace, submit.parent_run_id):
                await self._accept(submit)
        except (Refused, RequestReused) as error:
            answer.error.CopyFrom(_refusal(error))
        else:
            await self._unless_orphaned(submit)
        try:
            await self._tell(Run(namespace=submit.namespace, parent_run_id=submit.parent_run_id), name, answer)
        except (RunNotFound, WrongState):
            pass  # Nobody waits for it any more.
        except RequestReused:
            # Another Scheduler, at the same time, has told that it was refused.
            await self._cancel(submit.namespace, submit.start.run_id, "its start was refused")

    async def _accept(self, submit: SubmitRunRequest) -> None:
        """Accept a child, on its parent's build where that serves it.

        Raises:
            Refused: Nobody does, or the input does not fit.
            RequestReused: The run_id is taken.
        """
        start = submit.start
        if await self._is_known(submit):
            return
        served = await self._accepting.served_at_best(start.workflow, start.deployment)
        start.deployment = served.deployment
        if (schema := served.workflow.input_schema.data) and is_json(start.input.media_type):
            data = start.input.data or b"{}"
            check_schema(_parsed(data), data, schema)
        await self._accepting.submit(submit)

    async def _is_known(self, submit: SubmitRunRequest) -> bool:
        """Tell whether the run was accepted before. It would be, also if nobody served it any more."""
        start = submit.start
        run = Run(namespace=submit.namespace, run_id=start.run_id)
        made_of = start.workflow.encode() + b"\0" + start.input.SerializeToString()
        return await self._runs.known(run, made_of) is not None

    async def _continue(self, run_id: str, following: ContinueRun) -> None:
        submit = following.submit
        namespace, start = submit.namespace, submit.start
        if not await self._is_known(submit):
            before = await self._runs.get(namespace, run_id)
            # The newest build takes it; where none does, the one that it came from: it is accepted in any case.
            start.deployment = (await self._accepting.served_at_best(start.workflow, "", before.deployment)).deployment
            staged = await self._runs.stage_signals(
                namespace, run_id, start.run_id, following.signals, after=following.through_offset
            )
            await self._accepting.submit(submit, staged=staged)
        await self._unless_orphaned(submit)
        if await self._runs.was_cancelled(namespace, run_id):
            await self._cancel(namespace, start.run_id, f"run {run_id} was cancelled when it went on")

    async def _stop(self, parent_run_id: str, stop: StopRunRequest, *, seen_in_vain: bool) -> None:
        run_id = stop.run_id
        try:
            if (await self._runs.get(stop.namespace, run_id)).parent_run_id != parent_run_id:
                return  # A fork knows of the children of the run that it was made from.
            while run_id:
                run_id = (await self._cancel(stop.namespace, run_id, stop.reason)).continued_as_run_id
        except RunNotFound:
            if not seen_in_vain:
                raise Later("it is not there yet") from None
            if run_id == stop.run_id:
                await self._refuse_start(parent_run_id, stop)

    async def _refuse_start(self, parent_run_id: str, stop: StopRunRequest) -> None:
        """Answer for a start that is still put off, so that it is not done any more.

        Raises:
            Later: It was done meanwhile.
        """
        name = ACCEPTED + stop.run_id
        if await self._runs.was_told(stop.namespace, parent_run_id, name):
            if await self._runs.state(stop.namespace, stop.run_id) is not None:
                raise Later("it has been started now")
            return  # It was refused, or is past its retention.
        refused = Run(run_id=stop.run_id, error=RunError(reason="CANCELLED", message="it was stopped before it began"))
        try:
            await self._tell(Run(namespace=stop.namespace, parent_run_id=parent_run_id), name, refused)
        except (RunNotFound, WrongState):
            pass  # The parent has ended: whoever starts the child sees that.
        except RequestReused:
            raise Later("its start has just been answered") from None

    async def _tell_end(self, asker: Run, child: str) -> None:
        """Tell a fork of the end of a child that is not its own: of what that goes on as, where it does.

        Raises:
            Later: It has not ended.
        """
        if await self._is_over(asker.namespace, asker.parent_run_id):
            return
        run_id, told = child, Run(run_id=child, state=RunState.RUN_STATE_FAILED)
        try:
            while run_id:
                run = await self._runs.get(asker.namespace, run_id)
                if run.state not in TERMINAL:
                    raise Later(f"run {run_id} has not ended")
                run_id, told = run.continued_as_run_id, _end_of(run)
        except RunNotFound:
            if run_id != child:
                raise Later(f"run {run_id} is not there yet") from None
            told.error.CopyFrom(RunError(reason="RUN_NOT_FOUND", message=f"run {child} is past its retention"))
        await self._tell_of(asker, child, told)

    async def _tell_of(self, child: Run, name: str, told: Run) -> None:
        """Tell who started a run how it ended."""
        try:
            await self._tell(child, ENDED + name, told)
        except (RunNotFound, WrongState, RequestReused) as error:
            logger.debug("nobody waits for the end of run %s: %s", name, error)

    async def _cancel(self, namespace: str, run_id: str, reason: str) -> Run:
        run, holder = await self._runs.cancel(namespace, run_id, reason)
        if run.state not in TERMINAL:
            self._dispatcher.cancel(run, holder)
        return run

    async def _unless_orphaned(self, submit: SubmitRunRequest) -> None:
        """Cancel a run that was accepted now if its parent has ended, which may not have seen it."""
        if not submit.parent_run_id or submit.detached:
            return
        if await self._is_over(submit.namespace, submit.parent_run_id):
            try:
                await self._cancel(submit.namespace, submit.start.run_id, "its parent has ended")
            except RunNotFound:
                pass  # It was not even started.

    async def _is_over(self, namespace: str, run_id: str) -> bool:
        state = await self._runs.state(namespace, run_id)
        return state is None or state in TERMINAL

    async def _tell(self, child: Run, name: str, value: Run) -> None:
        """Send a run's parent a signal of the suite's own."""
        data = value.SerializeToString(deterministic=True)
        payload = Payload(media_type=RUN, data=data, size=len(data))
        request = SignalRunRequest(run_id=child.parent_run_id, name=name, value=payload, request_id=name)
        await self._signal(child.namespace, request)

    async def _signal(self, namespace: str, request: SignalRunRequest) -> None:
        offset, replayed, holder = await self._runs.signal(namespace, request)
        if not replayed:
            self._dispatcher.notify(namespace, request.run_id, holder, offset)


def _end_of(run: Run) -> Run:
    """Return what others are told of a run's end."""
    told = Run(run_id=run.run_id, workflow=run.workflow, state=run.state)
    if run.HasField("output"):
        told.output.CopyFrom(run.output)
    if run.HasField("error"):
        told.error.CopyFrom(run.error)
    return told


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        # An executor of another make has written it: its run is told, and does not wait for ever.
        message = f"the input is not JSON: {error}"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_INPUT_INVALID, message) from error


def _refusal(error: Refused | RequestReused) -> RunError:
    if isinstance(error, RequestReused):
        return RunError(reason="REQUEST_ID_REUSED", message=str(error))
    reason = ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
    return RunError(reason=reason, message=str(error), retryable=reason.endswith("NOT_FOUND"))
