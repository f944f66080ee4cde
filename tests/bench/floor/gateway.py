"""The floor's gateway: hands on what is started, and streams what is in the logs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from redis.asyncio import Redis
from tests.bench.floor.pipe import CHANNEL, Pipe, log_key

from onward.v1.event_pb2 import Event
from onward.v1.gateway_service_pb2 import (
    Completed,
    EventBatch,
    ListRunsRequest,
    ListRunsResponse,
    Opened,
    StartRunRequest,
    StartRunResponse,
    SubscribeRunRequest,
    SubscribeRunResponse,
)
from onward.v1.gateway_service_pb2_grpc import GatewayServiceServicer
from onward.v1.run_pb2 import RUN_STATE_SUCCEEDED, Run
from onward.v1.scheduler_service_pb2 import SubmitRunRequest
from onward.v1.wake_pb2 import Wake

if TYPE_CHECKING:
    from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

Context = grpc.aio.ServicerContext[Any, Any]

PAGE_EVENTS = 4_096


News = tuple[int, list[Event]]
"""The offset before events, and the events."""


class FloorGateway(GatewayServiceServicer):
    """Knows one scheduler."""

    def __init__(self, pipe: Pipe, scheduler: SchedulerServiceAsyncStub) -> None:
        self._pipe = pipe
        self._scheduler = scheduler
        self._subscribers: dict[str, set[asyncio.Queue[News]]] = {}

    async def listen(self, redis: Redis) -> None:
        """Hand what was appended to those who follow it, for ever."""
        async with redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(CHANNEL)
            async for message in channel.listen():
                for appended in Wake.FromString(message["data"]).appended:
                    if queues := self._subscribers.get(appended.ref):
                        events = [Event.FromString(event) for event in appended.events]
                        for queue in queues:
                            queue.put_nowait((appended.after_offset, events))

    async def _page(self, run_id: str, after: int) -> list[Event]:
        entries = await self._pipe.call("XRANGE", log_key(run_id), f"{after + 1}-0", "+", "COUNT", PAGE_EVENTS)
        return [Event.FromString(fields[b"e"]) for _, fields in entries]

    async def StartRun(self, request: StartRunRequest, context: Context) -> StartRunResponse:
        """Hand it to the scheduler."""
        submit = SubmitRunRequest(namespace="default", start=request)
        submit.start.run_id = request.run_id or secrets.token_hex(13)
        response = await self._scheduler.SubmitRun(submit)
        return StartRunResponse(run=response.run)

    async def SubscribeRun(self, request: SubscribeRunRequest, context: Context) -> AsyncIterator[SubscribeRunResponse]:
        """Send what is there, then what comes."""
        run_id = request.run_id
        queue: asyncio.Queue[News] = asyncio.Queue()
        queues = self._subscribers.setdefault(run_id, set())
        queues.add(queue)
        after = 0
        try:
            yield SubscribeRunResponse(opened=Opened(run=Run(run_id=run_id)))
            events = await self._page(run_id, after)
            while True:
                if events:
                    yield _batch(events, after)
                    after = events[-1].offset
                    if events[-1].run_state_changed.state == RUN_STATE_SUCCEEDED:
                        yield _completed(run_id, events[-1])
                        return
                if len(events) == PAGE_EVENTS:
                    events = await self._page(run_id, after)
                    continue
                begin, events = await queue.get()
                while not queue.empty():
                    events = events + queue.get_nowait()[1]
                if begin > after:
                    events = await self._page(run_id, after)
                elif begin < after:
                    events = events[after - begin :]
        finally:
            queues.discard(queue)
            if not queues and self._subscribers.get(run_id) is queues:
                del self._subscribers[run_id]

    async def ListRuns(self, request: ListRunsRequest, context: Context) -> ListRunsResponse:
        """Read the newest from the one index that there is."""
        ids = await self._pipe.call("ZREVRANGE", "runs", 0, request.page_size - 1)
        records = await asyncio.gather(*(self._pipe.call("GET", b"run:" + run_id) for run_id in ids))
        return ListRunsResponse(runs=[Run.FromString(record) for record in records])


def _batch(events: list[Event], after: int) -> SubscribeRunResponse:
    return SubscribeRunResponse(
        cursor=str(events[-1].offset),
        batch=EventBatch(events=events, after_offset=after, through_offset=events[-1].offset),
    )


def _completed(run_id: str, last: Event) -> SubscribeRunResponse:
    run = Run(run_id=run_id, state=RUN_STATE_SUCCEEDED, output=last.run_state_changed.output)
    run.log.last_offset = last.offset
    run.log.closed = True
    return SubscribeRunResponse(cursor=str(last.offset), completed=Completed(run=run))
