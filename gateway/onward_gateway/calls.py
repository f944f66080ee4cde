"""What callers can ask of a Gateway: reads here, writes at a Scheduler. Each door translates to it and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

import grpc

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import (
    CancelRunRequest,
    ForkRunRequest,
    ForkRunResponse,
    GetRunRequest,
    InvokeWorkflowRequest,
    ListRunEventsRequest,
    ListRunEventsResponse,
    ListRunsRequest,
    ListRunsResponse,
    ReadBlobRequest,
    ResumeRunRequest,
    SignalRunRequest,
    SignalRunResponse,
    StartRunRequest,
    SubscribeRunRequest,
    Workflow,
)
from onward.v1.run_pb2 import Run
from onward_gateway import checking
from onward_gateway.access import Access, Caller, Scope
from onward_gateway.following import Form, Limits, Stream
from onward_gateway.paging import Pages
from onward_gateway.settings import Settings
from onward_gateway.starting import Starting
from onward_gateway.submitting import Schedulers
from onward_gateway.waiting import Waiting
from onward_runlog.deployments import Deployments
from onward_runlog.errors import StoreUnavailable
from onward_runlog.feed import Feed
from onward_runlog.listing import Filter, Listing, PageTokenInvalid
from onward_runlog.reader import Reader
from onward_runlog.settled import Settling
from onward_serving.errors import Refused, draining

STREAMS_RETRY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What calls are made of; there when the store is."""

    reader: Reader
    feed: Feed
    settling: Settling
    listing: Listing
    deployments: Deployments
    schedulers: Schedulers
    starting: Starting
    waiting: Waiting
    pages: Pages


class Calls:
    """Answers callers, each in its namespace.

    Every method raises what its request deserves: `Refused`, a `RunLogError`, or `grpc.aio.AioRpcError` where a
    Scheduler refuses.
    """

    def __init__(self, settings: Settings, access: Access) -> None:
        self._settings = settings
        self._access = access
        self._opened: Work | None = None
        self._draining = False
        self._streams: dict[Stream, Caller] = {}
        self._streams_of: Counter[str] = Counter()

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self._opened is not None and not self._draining

    @property
    def streams(self) -> int:
        """How many runs are read here now, each reader counted."""
        return len(self._streams)

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

    def access_changed(self) -> None:
        """Hand over the streams of callers who would not be let in today; the next Gateway, or this, refuses them."""
        for stream, caller in self._streams.items():
            if not self._access.knows(caller):
                stream.drain()

    async def start(self, caller: Caller, request: StartRunRequest, trace_parent: str) -> tuple[Run, bool]:
        """Start a run; returns it, and whether an earlier call with the same request_id did."""
        caller.check(Scope.WRITE)
        checking.check_start(request)
        return await self._work.starting.start(caller.namespace, request, trace_parent)

    async def invoke(
        self,
        caller: Caller,
        request: InvokeWorkflowRequest,
        trace_parent: str,
        accepted: Callable[[Run, bool], Awaitable[None]],
    ) -> Run:
        """Start a run and wait for its end, or until it is PAUSED.

        Args:
            accepted: Called as soon as the run is accepted, with it and whether an earlier call started it.
        """
        caller.check(Scope.WRITE, Scope.READ)
        checking.check_invoke(request)
        work = self._work
        run, replayed = await work.starting.start(caller.namespace, request.start, trace_parent)
        await accepted(run, replayed)
        wait_s = checking.seconds(request.wait) if request.HasField("wait") else None
        run = await work.waiting.end_of(caller.namespace, run.run_id, wait_s, output=True)
        self._access.check(caller)
        return run

    async def get(self, caller: Caller, request: GetRunRequest) -> Run:
        """Return a run, with input and output."""
        caller.check(Scope.READ)
        wait_s = checking.check_get(request)
        work = self._work
        if wait_s:
            run = await work.waiting.end_of(caller.namespace, request.run_id, wait_s, input=True, output=True)
            self._access.check(caller)
        else:
            run = await work.reader.run(caller.namespace, request.run_id, input=True, output=True)
        await work.deployments.explain([run])
        return run

    async def runs(self, caller: Caller, request: ListRunsRequest) -> ListRunsResponse:
        """Return a page of runs."""
        caller.check(Scope.READ)
        size = checking.check_list(request)
        wanted = Filter(
            namespace=caller.namespace,
            workflow=request.workflow,
            states=frozenset(request.states),
            labels=dict(request.labels),
            parent_run_id=request.parent_run_id,
        )
        try:
            page = await self._work.listing.page(wanted, size=size, token=request.page_token)
        except PageTokenInvalid as error:
            raise checking.page_token_invalid(str(error)) from error
        await self._work.deployments.explain(page.runs)
        return ListRunsResponse(runs=page.runs, next_page_token=page.next_token)

    async def cancel(self, caller: Caller, request: CancelRunRequest) -> Run:
        """Have a run cancelled."""
        caller.check(Scope.WRITE)
        checking.check_cancel(request)
        return await self._work.schedulers.stop(caller.namespace, request.run_id, request.reason)

    async def signal(self, caller: Caller, request: SignalRunRequest) -> SignalRunResponse:
        """Send a value into a run."""
        caller.check(Scope.WRITE)
        checking.check_signal(request)
        return await self._work.schedulers.signal(caller.namespace, request)

    async def resume(self, caller: Caller, request: ResumeRunRequest) -> Run:
        """Have a paused run go on."""
        caller.check(Scope.WRITE)
        checking.check_resume(request)
        return await self._work.schedulers.wake(caller.namespace, request.run_id, request.deployment)

    async def fork(self, caller: Caller, request: ForkRunRequest, trace_parent: str) -> ForkRunResponse:
        """Start a run with what another one has got."""
        caller.check(Scope.WRITE)
        checking.check_fork(request)
        return await self._work.schedulers.branch(caller.namespace, request, trace_parent)

    async def blob(self, caller: Caller, request: ReadBlobRequest) -> AsyncGenerator[bytes, None]:
        """Give a value that is kept apart, in pieces."""
        caller.check(Scope.READ)
        checking.check_blob(request)
        reader, start = self._work.reader, request.start
        while piece := await reader.blob_piece(caller.namespace, request.run_id, request.blob_uri, start):
            yield piece
            start += len(piece)

    async def blob_size(self, caller: Caller, request: ReadBlobRequest) -> int:
        """Return how many bytes a value has that is kept apart."""
        caller.check(Scope.READ)
        checking.check_blob(request)
        return await self._work.reader.blob_size(caller.namespace, request.run_id, request.blob_uri)

    async def subscribe(
        self,
        caller: Caller,
        request: SubscribeRunRequest,
        form: Form,
        write: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Send a run's log to a reader until it is closed or the stream is handed off.

        The caller is looked at again: a response may subscribe many times, and its key may be taken back meanwhile.

        Args:
            form: What messages look like.
            write: Sends one, and returns when the transport has taken it.
        """
        caller.check(Scope.READ)
        limits = Limits(
            heartbeat_s=checking.check_subscribe(request),
            age_s=self._settings.stream_age_s,
            slow_s=self._settings.slow_reader_s,
            grace_s=self._settings.slow_reader_grace_s,
        )
        work = self._work
        self._access.check(caller)
        self._check_room(caller)
        stream = Stream(work.reader, work.feed, work.settling, caller.namespace, request, limits, form, write)
        self._streams[stream] = caller
        self._streams_of[caller.namespace] += 1
        try:
            await stream.serve()
        finally:
            del self._streams[stream]
            self._streams_of[caller.namespace] -= 1
            if not self._streams_of[caller.namespace]:
                del self._streams_of[caller.namespace]

    async def events(self, caller: Caller, request: ListRunEventsRequest) -> ListRunEventsResponse:
        """Return a page of a run's log."""
        caller.check(Scope.READ)
        size = checking.check_events(request)
        return await self._work.pages.page(caller.namespace, request, size)

    async def workflows(self, caller: Caller) -> list[Workflow]:
        """Return what can be started."""
        caller.check(Scope.READ)
        return await self._work.deployments.all()

    async def executors(self, caller: Caller) -> list[Executor]:
        """Return who runs workflows."""
        caller.check(Scope.ADMIN)
        return await self._work.schedulers.executors()

    @property
    def _work(self) -> Work:
        if self._draining:
            raise draining()
        if self._opened is None:
            raise StoreUnavailable("this Gateway still waits for Redis")
        return self._opened

    def _check_room(self, caller: Caller) -> None:
        settings = self._settings
        full = len(self._streams) >= settings.streams_max
        if full or self._streams_of[caller.namespace] >= settings.namespace_streams_max:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                ErrorReason.ERROR_REASON_LIMIT_REACHED,
                "as many runs are followed here as may be" + ("" if full else " in one namespace"),
                retry_s=STREAMS_RETRY_S,
            )
