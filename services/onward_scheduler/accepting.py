"""Which run is made of a request, and who runs it."""

from __future__ import annotations

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.gateway_service_pb2 import ForkRunRequest, Workflow
from onward.v1.run_pb2 import Run, RunState
from onward.v1.scheduler_service_pb2 import BranchRunRequest, SubmitRunRequest
from onward_runlog.deployments import Deployments, Served
from onward_runlog.errors import ComponentNotFound, WrongState
from onward_runlog.record import TERMINAL
from onward_runlog.runs import Runs, new_run_id, state_name
from onward_runlog.staging import Staged
from onward_scheduler.dispatching import Dispatcher
from onward_serving.bounds import check_labels
from onward_serving.errors import Refused


class Accepting:
    """Accepts runs.

    Args:
        runs: The transitions.
        dispatcher: Records runs and hands them out.
        deployments: Who serves what.
        always: Whom to tell of every run's end and pauses, in the two fields of a Workflow.
    """

    def __init__(self, runs: Runs, dispatcher: Dispatcher, deployments: Deployments, always: Workflow) -> None:
        self._always = always
        self._runs = runs
        self._dispatcher = dispatcher
        self._deployments = deployments

    async def submit(
        self, request: SubmitRunRequest, *, staged: Staged | None = None, silent: bool = False
    ) -> tuple[Run, bool]:
        """Accept a run; returns it, and whether an earlier call did.

        Args:
            request: What was asked for.
            staged: What its log begins with, where that is more than its first event.
            silent: Nobody is told how it ends: it is a notification itself, and would have another one for each.

        Raises:
            Refused: No deployment serves the workflow, there is no such time as the one at which it is to begin, or
                its labels are too large.
            RunLogError: As Runs.submit.
        """
        start = request.start
        # A Gateway lets neither in; an executor, also of another language, may ask for a child with whatever it likes.
        _check_time(start.schedule_time)
        if not request.continued_from_run_id:  # it has the labels of the run before, and is accepted in any case
            check_labels(start.labels)
        served = await self.served(start.workflow, start.deployment)
        run = Run(
            run_id=start.run_id or new_run_id(request.namespace, start.request_id),
            namespace=request.namespace,
            workflow=start.workflow,
            input=start.input,
            deployment=served.deployment,
            labels=start.labels,
            priority=start.priority,
            fairness_key=start.fairness_key,
            request_id=start.request_id,
            parent_run_id=request.parent_run_id,
            parent_component_id=request.parent_component_id,
            detached=request.detached,
            depth=request.depth,
            continued_from_run_id=request.continued_from_run_id,
            first_run_id=request.first_run_id,
        )
        if start.HasField("schedule_time"):
            run.schedule_time.CopyFrom(start.schedule_time)
        return await self._dispatcher.submit(
            run,
            trace_parent=request.trace_parent,
            staged=staged,
            hooks=None if silent else self._hooks(served),
            timeout_s=_seconds(start.run_timeout if start.HasField("run_timeout") else served.workflow.run_timeout),
        )

    async def fork(self, request: BranchRunRequest) -> tuple[Run, bool]:
        """Accept a fork; returns it, and whether an earlier call did.

        It is a run of its own: it has the input, labels, priority and fairness_key of its source, the time limit of its
        workflow from now on, and no parent.

        Raises:
            Refused: No deployment serves the workflow.
            WrongState: The source still goes on, or there is nothing that failed.
            RunLogError: As Runs.submit and Runs.stage.
        """
        fork = request.fork
        run = Run(
            run_id=fork.new_run_id or new_run_id(request.namespace, fork.request_id),
            namespace=request.namespace,
            request_id=fork.request_id,
            forked_from_run_id=fork.run_id,
        )
        made_of = b"\0".join((b"fork", fork.run_id.encode(), fork.component_id.encode(), b"%d" % fork.from_failure))
        known = await self._runs.known(run, made_of)
        if known is not None:
            return known, True
        source = await self._runs.get(request.namespace, fork.run_id)
        ended = source.state in TERMINAL or source.state == RunState.RUN_STATE_PAUSED
        if not ended or (fork.from_failure and source.state == RunState.RUN_STATE_SUCCEEDED):
            raise WrongState(source.run_id, state_name(source.state))
        served = await self.served(source.workflow, fork.deployment)
        run.workflow, run.deployment = source.workflow, served.deployment
        run.priority, run.fairness_key = source.priority, source.fairness_key
        run.labels.update(source.labels)
        run.input.CopyFrom(source.input)
        return await self._dispatcher.submit(
            run,
            trace_parent=request.trace_parent,
            made_of=made_of,
            staged=await self._staged(source, run.run_id, fork),
            hooks=self._hooks(served),
            timeout_s=_seconds(served.workflow.run_timeout),
        )

    async def _staged(self, source: Run, run_id: str, fork: ForkRunRequest) -> Staged | None:
        """Copy what the fork begins with; None from the start."""
        if not fork.from_failure:
            return await self._runs.stage(source, run_id, fork.component_id) if fork.component_id else None
        if source.error.component_id:
            try:
                return await self._runs.stage(source, run_id, source.error.component_id, from_failure=True)
            except ComponentNotFound:
                pass  # It was refused before it began: everything that has finished stays.
        return await self._runs.stage(source, run_id, None)

    def _hooks(self, served: Served) -> Workflow | None:
        """Return whom to tell, each once; None where that is nobody."""
        named, always = served.workflow, self._always
        ends, pauses = (
            dict.fromkeys([*own, *others])
            for own, others in (
                (named.on_run_end, always.on_run_end),
                (named.on_run_paused, always.on_run_paused),
            )
        )
        return Workflow(on_run_end=ends, on_run_paused=pauses) if ends or pauses else None

    async def served_at_best(self, workflow: str, *deployments: str) -> Served:
        """Return who takes a run of a workflow: the first deployment of these that serves it ("" is whoever does).

        Raises:
            Refused: Nobody does.
        """
        for deployment in deployments:
            if (served := await self._deployments.choose(workflow, deployment)) is not None:
                return served
        return await self.served(workflow, "")

    async def served(self, workflow: str, deployment: str) -> Served:
        """Return who takes a run of a workflow: the deployment that is named, else the one that takes new runs.

        Raises:
            Refused: Nobody does.
        """
        served = await self._deployments.choose(workflow, deployment)
        if served is None and deployment:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND,
                f"no deployment {deployment!r} serves workflow {workflow!r}",
                {"deployment": deployment},
            )
        if served is None:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND,
                f"no deployment serves workflow {workflow!r}: start an executor that does",
                {"workflow": workflow},
            )
        return served


def _check_time(time: Timestamp) -> None:
    try:
        time.ToNanoseconds()
    except ValueError as error:
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            ErrorReason.ERROR_REASON_REQUEST_INVALID,
            f"the request is malformed: schedule_time: {error}",
            violations=[("schedule_time", str(error))],
        ) from None


def _seconds(duration: Duration) -> float:
    return max(0, duration.ToNanoseconds()) / 1e9
