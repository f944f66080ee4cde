"""SchedulerService: translates requests into transitions and their results into responses."""

from __future__ import annotations

import json
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import SignalRunRequest
from onward.v1.run_pb2 import Run, RunState
from onward.v1.scheduler_service_pb2 import (
    BranchRunRequest,
    BranchRunResponse,
    DeliverSignalRequest,
    DeliverSignalResponse,
    ListDeploymentsRequest,
    ListDeploymentsResponse,
    ListExecutorsRequest,
    ListExecutorsResponse,
    RegisterExecutorRequest,
    RegisterExecutorResponse,
    SetTrafficRequest,
    SetTrafficResponse,
    StopRunRequest,
    StopRunResponse,
    SubmitRunRequest,
    SubmitRunResponse,
    WakeRunRequest,
    WakeRunResponse,
)
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceServicer
from onward_runlog import registry
from onward_runlog.errors import StoreUnavailable, WrongState
from onward_runlog.record import TERMINAL
from onward_runlog.runs import Holder, Runs
from onward_runlog.store import Store
from onward_scheduler.accepting import Accepting
from onward_scheduler.dispatching import Dispatcher
from onward_scheduler.settings import Settings
from onward_serving.errors import Refused, draining, rpc_errors
from onward_serving.schemas import check_schema, is_json

Context = grpc.aio.ServicerContext[Any, Any]


class SchedulerServicer(SchedulerServiceServicer):
    """Answers Gateways, executors and operators."""

    def __init__(
        self, store: Store, runs: Runs, dispatcher: Dispatcher, accepting: Accepting, settings: Settings
    ) -> None:
        self._store = store
        self._runs = runs
        self._dispatcher = dispatcher
        self._accepting = accepting
        self._settings = settings
        self.draining = False

    async def SubmitRun(self, request: SubmitRunRequest, context: Context) -> SubmitRunResponse:
        """See SchedulerService.SubmitRun."""
        async with rpc_errors(context):
            self._check_taking()
            run, replayed = await self._accepting.submit(request)
            return SubmitRunResponse(run=run, replayed=replayed)

    async def BranchRun(self, request: BranchRunRequest, context: Context) -> BranchRunResponse:
        """See SchedulerService.BranchRun."""
        async with rpc_errors(context):
            self._check_taking()
            run, replayed = await self._accepting.fork(request)
            return BranchRunResponse(run=run, replayed=replayed)

    async def StopRun(self, request: StopRunRequest, context: Context) -> StopRunResponse:
        """See SchedulerService.StopRun."""
        async with rpc_errors(context):
            self._check_taking()
            run = await self._cancel(request.namespace, request.run_id, request.reason)
            while run.continued_as_run_id:
                await self._check_gone_on(request.namespace, run)
                run = await self._cancel(request.namespace, run.continued_as_run_id, request.reason)
            run.ClearField("input")
            run.ClearField("output")
            return StopRunResponse(run=run)

    async def DeliverSignal(self, request: DeliverSignalRequest, context: Context) -> DeliverSignalResponse:
        """See SchedulerService.DeliverSignal."""
        async with rpc_errors(context):
            self._check_taking()
            if schema := await self._runs.asked(request.namespace, request.signal):
                _check_answer(request.signal, schema)
            offset, replayed, holder = await self._signal(request)
            if not replayed:
                self._dispatcher.notify(request.namespace, request.signal.run_id, holder, offset)
            return DeliverSignalResponse(offset=offset, replayed=replayed)

    async def WakeRun(self, request: WakeRunRequest, context: Context) -> WakeRunResponse:
        """See SchedulerService.WakeRun."""
        async with rpc_errors(context):
            self._check_taking()
            deployment = request.deployment
            if deployment or self._settings.resume_on_newest:
                run = await self._runs.get(request.namespace, request.run_id)
                deployment = (await self._accepting.served(run.workflow, deployment)).deployment
                if request.deployment and (moved := await self._moved(run, deployment)) is not None:
                    moved.ClearField("input")
                    return WakeRunResponse(run=moved)
            run = await self._runs.resume(request.namespace, request.run_id, deployment=deployment)
            run.ClearField("input")
            return WakeRunResponse(run=run)

    async def RegisterExecutor(self, request: RegisterExecutorRequest, context: Context) -> RegisterExecutorResponse:
        """See SchedulerService.RegisterExecutor."""
        async with rpc_errors(context):
            self._check_taking()
            ttl_s = self._settings.lease_ttl_s
            await registry.register(self._store, request.executor, ttl_s=ttl_s)
            self._dispatcher.fleet.meet(request.executor)
            ttl = Duration()
            ttl.FromMilliseconds(int(ttl_s * 1000))
            return RegisterExecutorResponse(lease_ttl=ttl)

    async def ListExecutors(self, request: ListExecutorsRequest, context: Context) -> ListExecutorsResponse:
        """See SchedulerService.ListExecutors."""
        async with rpc_errors(context):
            return ListExecutorsResponse(
                executors=[self._as_seen(each) for each in await registry.executors(self._store)]
            )

    async def SetTraffic(self, request: SetTrafficRequest, context: Context) -> SetTrafficResponse:
        """Not served yet."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "traffic shares are not served yet")

    async def ListDeployments(self, request: ListDeploymentsRequest, context: Context) -> ListDeploymentsResponse:
        """Not served yet."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "deployments are not listed yet")

    async def _moved(self, run: Run, deployment: str) -> Run | None:
        """Have a run that waits for nothing but an executor wait for one of a deployment; None where it does not."""
        if run.state != RunState.RUN_STATE_QUEUED or run.executor_id:
            return None
        if run.deployment != deployment:
            reason = f"moved to deployment {deployment}"
            await self._runs.adopt(run.namespace, run.run_id, run.deployment, deployment, reason=reason)
            # Not by what that says: a reply that was lost is asked for again, when there is nothing left to do.
            run = await self._runs.get(run.namespace, run.run_id)
        return run if run.deployment == deployment else None

    async def _signal(self, request: DeliverSignalRequest) -> tuple[int, bool, Holder]:
        """Deliver a signal to the run that is named, or to the one that it goes on as."""
        while True:
            try:
                return await self._runs.signal(request.namespace, request.signal)
            except WrongState:
                run = await self._runs.get(request.namespace, request.signal.run_id)
                if not run.continued_as_run_id:
                    raise
                request.signal.run_id = run.continued_as_run_id
                await self._check_gone_on(request.namespace, run)

    async def _cancel(self, namespace: str, run_id: str, reason: str) -> Run:
        run, holder = await self._runs.cancel(namespace, run_id, reason)
        if run.state not in TERMINAL:
            self._dispatcher.cancel(run, holder)
        return run

    async def _check_gone_on(self, namespace: str, run: Run) -> None:
        """Refuse for now what is meant for a run that is about to go on as another one."""
        if await self._runs.state(namespace, run.continued_as_run_id) is None:
            raise StoreUnavailable(f"run {run.run_id} is about to go on as another one")

    def _check_taking(self) -> None:
        if self.draining:
            raise draining()

    def _as_seen(self, executor: Executor) -> Executor:
        link = self._dispatcher.fleet.link(executor.executor_id)
        if link is not None:
            executor.running = link.executor.running
            executor.draining = link.executor.draining
        return executor


def _check_answer(signal: SignalRunRequest, schema: bytes) -> None:
    """Refuse a signal that is not what the run asks for: whoever sent it is told, and can send another."""
    message = f"signal {signal.name!r} is not what the run asks for"
    if not is_json(signal.value.media_type):
        why = f"it asks for application/json, not {signal.value.media_type}"
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            ErrorReason.ERROR_REASON_INPUT_INVALID,
            f"{message}: {why}",
            violations=[("", why)],
        )
    data = signal.value.data or b"null"
    check_schema(json.loads(data), data, schema, message)
