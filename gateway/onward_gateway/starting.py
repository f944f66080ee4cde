"""Accepting a run: who will run it, whether its input fits, and then a Scheduler's yes."""

from __future__ import annotations

import grpc

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.gateway_service_pb2 import StartRunRequest
from onward.v1.run_pb2 import Payload, Run
from onward_gateway.checking import checked_input
from onward_gateway.submitting import Schedulers
from onward_runlog.deployments import Deployments
from onward_runlog.errors import RunNotFound
from onward_runlog.reader import Reader
from onward_runlog.runs import new_run_id
from onward_serving.errors import Refused


class Starting:
    """Starts runs."""

    def __init__(self, reader: Reader, deployments: Deployments, schedulers: Schedulers) -> None:
        self._reader = reader
        self._deployments = deployments
        self._schedulers = schedulers

    async def start(self, namespace: str, request: StartRunRequest, trace_parent: str) -> tuple[Run, bool]:
        """Have a run accepted whose request is well formed; its input is checked here.

        Returns:
            The run, and whether an earlier call with the same request_id started it.

        Raises:
            Refused: No deployment serves the workflow, the input does not fit it, or no Scheduler answers.
            grpc.aio.AioRpcError: A Scheduler refuses.
        """
        try:
            request.input.CopyFrom(checked_input(request.input, await self._schema(request)))
        except Refused:
            known = await self._known(namespace, request)
            if known is None:
                raise
            return known, True
        return await self._schedulers.submit(namespace, request, trace_parent)

    async def _schema(self, request: StartRunRequest) -> Payload:
        served = await self._deployments.choose(request.workflow, request.deployment)
        if served is not None:
            return served.workflow.input_schema
        if request.deployment:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND,
                f"no deployment {request.deployment!r} serves workflow {request.workflow!r}",
                {"deployment": request.deployment},
            )
        raise Refused(
            grpc.StatusCode.NOT_FOUND,
            ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND,
            f"no deployment serves workflow {request.workflow!r}: start an executor that does",
            {"workflow": request.workflow},
        )

    async def _known(self, namespace: str, request: StartRunRequest) -> Run | None:
        """Return the run that an earlier call started, though today the request would be refused: a repeat of an
        accepted request is answered for as long as its run is kept, whatever deployments do meanwhile.
        """
        if not request.run_id and not request.request_id:
            return None
        run_id = request.run_id or new_run_id(namespace, request.request_id)
        try:
            run = await self._reader.run(namespace, run_id, input=True)
        except RunNotFound:
            return None
        given = request.input.data or b"{}"
        if (run.workflow, run.input.data, run.input.media_type) != (request.workflow, given, request.input.media_type):
            return None
        run.ClearField("input")
        return run
