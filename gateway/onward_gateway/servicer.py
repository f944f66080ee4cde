"""The gRPC door: GatewayService, translated to `Calls`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from onward.v1.gateway_service_pb2 import (
    DESCRIPTOR,
    CancelRunRequest,
    CancelRunResponse,
    ForkRunRequest,
    ForkRunResponse,
    GetRunRequest,
    GetRunResponse,
    InvokeWorkflowRequest,
    InvokeWorkflowResponse,
    ListRunEventsRequest,
    ListRunEventsResponse,
    ListRunsRequest,
    ListRunsResponse,
    ListWorkflowsRequest,
    ListWorkflowsResponse,
    ReadBlobRequest,
    ReadBlobResponse,
    ResumeRunRequest,
    ResumeRunResponse,
    SignalRunRequest,
    SignalRunResponse,
    StartRunRequest,
    StartRunResponse,
    SubscribeRunRequest,
)
from onward.v1.gateway_service_pb2_grpc import GatewayServiceServicer as Base
from onward.v1.gateway_service_pb2_grpc import add_GatewayServiceServicer_to_server
from onward.v1.run_pb2 import Run
from onward_gateway.access import Access, Caller
from onward_gateway.calls import Calls
from onward_gateway.following import AS_PROTOBUF
from onward_gateway.submitting import trace_parent
from onward_serving.errors import rpc_errors

SERVICE = DESCRIPTOR.services_by_name["GatewayService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class GatewayServicer(Base):
    """Answers everybody."""

    def __init__(self, calls: Calls, access: Access) -> None:
        self._calls = calls
        self._access = access

    async def StartRun(self, request: StartRunRequest, context: Context) -> StartRunResponse:
        """See GatewayService.StartRun."""
        async with rpc_errors(context):
            trace = trace_parent(context.invocation_metadata())
            run, replayed = await self._calls.start(self._caller(context), request, trace)
            return StartRunResponse(run=run, replayed=replayed)

    async def InvokeWorkflow(self, request: InvokeWorkflowRequest, context: Context) -> InvokeWorkflowResponse:
        """See GatewayService.InvokeWorkflow."""

        async def accepted(run: Run, _: bool) -> None:
            await context.send_initial_metadata((("onward-run-id", run.run_id),))

        async with rpc_errors(context):
            trace = trace_parent(context.invocation_metadata())
            run = await self._calls.invoke(self._caller(context), request, trace, accepted)
            return InvokeWorkflowResponse(run=run)

    async def GetRun(self, request: GetRunRequest, context: Context) -> GetRunResponse:
        """See GatewayService.GetRun."""
        async with rpc_errors(context):
            return GetRunResponse(run=await self._calls.get(self._caller(context), request))

    async def ListRuns(self, request: ListRunsRequest, context: Context) -> ListRunsResponse:
        """See GatewayService.ListRuns."""
        async with rpc_errors(context):
            return await self._calls.runs(self._caller(context), request)

    async def CancelRun(self, request: CancelRunRequest, context: Context) -> CancelRunResponse:
        """See GatewayService.CancelRun."""
        async with rpc_errors(context):
            return CancelRunResponse(run=await self._calls.cancel(self._caller(context), request))

    async def SignalRun(self, request: SignalRunRequest, context: Context) -> SignalRunResponse:
        """See GatewayService.SignalRun."""
        async with rpc_errors(context):
            return await self._calls.signal(self._caller(context), request)

    async def ResumeRun(self, request: ResumeRunRequest, context: Context) -> ResumeRunResponse:
        """See GatewayService.ResumeRun."""
        async with rpc_errors(context):
            return ResumeRunResponse(run=await self._calls.resume(self._caller(context), request))

    async def ForkRun(self, request: ForkRunRequest, context: Context) -> ForkRunResponse:
        """See GatewayService.ForkRun."""
        async with rpc_errors(context):
            return await self._calls.fork(self._caller(context), request, trace_parent(context.invocation_metadata()))

    async def ReadBlob(self, request: ReadBlobRequest, context: Context) -> AsyncIterator[ReadBlobResponse]:
        """See GatewayService.ReadBlob."""
        async with rpc_errors(context), contextlib.aclosing(self._calls.blob(self._caller(context), request)) as pieces:
            async for piece in pieces:
                yield ReadBlobResponse(data=piece)

    async def SubscribeRun(  # type: ignore[override]  # writes, which costs a third less than to yield
        self, request: SubscribeRunRequest, context: Context
    ) -> None:
        """See GatewayService.SubscribeRun."""
        async with rpc_errors(context):
            await self._calls.subscribe(self._caller(context), request, AS_PROTOBUF, context.write)

    async def ListRunEvents(self, request: ListRunEventsRequest, context: Context) -> ListRunEventsResponse:
        """See GatewayService.ListRunEvents."""
        async with rpc_errors(context):
            return await self._calls.events(self._caller(context), request)

    async def ListWorkflows(self, request: ListWorkflowsRequest, context: Context) -> ListWorkflowsResponse:
        """See GatewayService.ListWorkflows."""
        async with rpc_errors(context):
            return ListWorkflowsResponse(workflows=await self._calls.workflows(self._caller(context)))

    def _caller(self, context: Context) -> Caller:
        for key, value in context.invocation_metadata() or ():
            if key == "authorization" and isinstance(value, str):
                return self._access.caller(value)
        return self._access.caller(None)


def add_to(server: grpc.aio.Server, servicer: GatewayServicer) -> None:
    """Register the servicer. SubscribeRun writes serialized messages, the others what their methods return."""
    add_GatewayServiceServicer_to_server(servicer, server)
    subscribe: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(
        servicer.SubscribeRun, request_deserializer=SubscribeRunRequest.FromString
    )
    server.add_registered_method_handlers(SERVICE, {"SubscribeRun": subscribe})
