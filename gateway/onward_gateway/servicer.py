"""GatewayService: translates requests into reads here and writes at a Scheduler, and their results into responses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
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
from onward_gateway import checking
from onward_gateway.following import Limits, Stream
from onward_gateway.paging import Pages
from onward_gateway.settings import Settings
from onward_gateway.starting import Starting
from onward_gateway.submitting import Schedulers, trace_parent
from onward_gateway.waiting import Waiting
from onward_runlog.deployments import Deployments
from onward_runlog.errors import StoreUnavailable
from onward_runlog.feed import Feed
from onward_runlog.listing import Filter, Listing, PageTokenInvalid
from onward_runlog.reader import Reader
from onward_runlog.settled import Settling
from onward_serving.errors import draining, rpc_errors

SERVICE = DESCRIPTOR.services_by_name["GatewayService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the servicer translates to; made when the store is there."""

    reader: Reader
    feed: Feed
    settling: Settling
    listing: Listing
    deployments: Deployments
    schedulers: Schedulers
    starting: Starting
    waiting: Waiting
    pages: Pages


class GatewayServicer(Base):
    """Answers everybody."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._namespace = settings.namespace
        self._opened: Work | None = None
        self._draining = False
        self._streams: set[Stream] = set()

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self._opened is not None and not self._draining

    def open(self, work: Work) -> None:
        """Begin to answer."""
        self._opened = work

    def drain(self) -> None:
        """Hand over every stream, and end what waits; nothing new is taken."""
        self._draining = True
        for stream in self._streams:
            stream.drain()
        if self._opened is not None:
            self._opened.waiting.drain()

    @property
    def _work(self) -> Work:
        if self._draining:
            raise draining()
        if self._opened is None:
            raise StoreUnavailable("this Gateway still waits for Redis")
        return self._opened

    async def StartRun(self, request: StartRunRequest, context: Context) -> StartRunResponse:
        """See GatewayService.StartRun."""
        async with rpc_errors(context):
            checking.check_start(request)
            run, replayed = await self._work.starting.start(request, trace_parent(context.invocation_metadata()))
            return StartRunResponse(run=run, replayed=replayed)

    async def InvokeWorkflow(self, request: InvokeWorkflowRequest, context: Context) -> InvokeWorkflowResponse:
        """See GatewayService.InvokeWorkflow."""
        async with rpc_errors(context):
            checking.check_invoke(request)
            work = self._work
            run, _ = await work.starting.start(request.start, trace_parent(context.invocation_metadata()))
            await context.send_initial_metadata((("onward-run-id", run.run_id),))
            wait_s = checking.seconds(request.wait) if request.HasField("wait") else None
            run = await work.waiting.end_of(self._namespace, run.run_id, wait_s, output=True)
            return InvokeWorkflowResponse(run=run)

    async def GetRun(self, request: GetRunRequest, context: Context) -> GetRunResponse:
        """See GatewayService.GetRun."""
        async with rpc_errors(context):
            wait_s = checking.check_get(request)
            work = self._work
            if wait_s:
                run = await work.waiting.end_of(self._namespace, request.run_id, wait_s, input=True, output=True)
            else:
                run = await work.reader.run(self._namespace, request.run_id, input=True, output=True)
            return GetRunResponse(run=run)

    async def ListRuns(self, request: ListRunsRequest, context: Context) -> ListRunsResponse:
        """See GatewayService.ListRuns."""
        async with rpc_errors(context):
            size = checking.check_list(request)
            wanted = Filter(
                namespace=self._namespace,
                workflow=request.workflow,
                states=frozenset(request.states),
                labels=dict(request.labels),
                parent_run_id=request.parent_run_id,
            )
            try:
                page = await self._work.listing.page(wanted, size=size, token=request.page_token)
            except PageTokenInvalid as error:
                raise checking.page_token_invalid(str(error)) from error
            return ListRunsResponse(runs=page.runs, next_page_token=page.next_token)

    async def CancelRun(self, request: CancelRunRequest, context: Context) -> CancelRunResponse:
        """See GatewayService.CancelRun."""
        async with rpc_errors(context):
            checking.check_cancel(request)
            return CancelRunResponse(run=await self._work.schedulers.stop(request.run_id, request.reason))

    async def SignalRun(self, request: SignalRunRequest, context: Context) -> SignalRunResponse:
        """See GatewayService.SignalRun."""
        async with rpc_errors(context):
            checking.check_signal(request)
            return await self._work.schedulers.signal(request)

    async def ResumeRun(self, request: ResumeRunRequest, context: Context) -> ResumeRunResponse:
        """See GatewayService.ResumeRun."""
        async with rpc_errors(context):
            checking.check_resume(request)
            return ResumeRunResponse(run=await self._work.schedulers.wake(request.run_id, request.deployment))

    async def ForkRun(self, request: ForkRunRequest, context: Context) -> ForkRunResponse:
        """Not served yet."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "runs cannot be forked yet")

    async def ReadBlob(self, request: ReadBlobRequest, context: Context) -> AsyncIterator[ReadBlobResponse]:
        """See GatewayService.ReadBlob."""
        async with rpc_errors(context):
            checking.check_blob(request)
            reader, start = self._work.reader, request.start
            while piece := await reader.blob_piece(self._namespace, request.run_id, request.blob_uri, start):
                yield ReadBlobResponse(data=piece)
                start += len(piece)

    async def SubscribeRun(  # type: ignore[override]  # writes, which costs a third less than to yield
        self, request: SubscribeRunRequest, context: Context
    ) -> None:
        """See GatewayService.SubscribeRun."""
        async with rpc_errors(context):
            limits = Limits(
                heartbeat_s=checking.check_subscribe(request),
                age_s=self._settings.stream_age_s,
                slow_s=self._settings.slow_reader_s,
                grace_s=self._settings.slow_reader_grace_s,
            )
            work = self._work
            stream = Stream(work.reader, work.feed, work.settling, self._namespace, request, limits, context.write)
            self._streams.add(stream)
            try:
                await stream.serve()
            finally:
                self._streams.discard(stream)

    async def ListRunEvents(self, request: ListRunEventsRequest, context: Context) -> ListRunEventsResponse:
        """See GatewayService.ListRunEvents."""
        async with rpc_errors(context):
            size = checking.check_events(request)
            return await self._work.pages.page(self._namespace, request, size)

    async def ListWorkflows(self, request: ListWorkflowsRequest, context: Context) -> ListWorkflowsResponse:
        """See GatewayService.ListWorkflows."""
        async with rpc_errors(context):
            return ListWorkflowsResponse(workflows=await self._work.deployments.all())


def add_to(server: grpc.aio.Server, servicer: GatewayServicer) -> None:
    """Register the servicer. SubscribeRun writes serialized messages, the others what their methods return."""
    add_GatewayServiceServicer_to_server(servicer, server)
    subscribe: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(
        servicer.SubscribeRun, request_deserializer=SubscribeRunRequest.FromString
    )
    server.add_registered_method_handlers(SERVICE, {"SubscribeRun": subscribe})
