"""ExecutorService: translates requests for what this executor holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from onward.v1.executor_service_pb2 import (
    CancelRequest,
    CancelResponse,
    DrainRequest,
    DrainResponse,
    ExecuteRequest,
    ExecuteResponse,
    NotifyRequest,
    NotifyResponse,
    WatchRequest,
    WatchResponse,
)
from onward.v1.executor_service_pb2_grpc import ExecutorServiceServicer
from onward_executor.holding import Holding
from onward_runlog import keys
from onward_serving.errors import rpc_errors

Context = grpc.aio.ServicerContext[Any, Any]


class ExecutorServicer(ExecutorServiceServicer):
    """Answers Schedulers.

    Args:
        holding: What this executor holds.
        drain: Begins the end of the process; takes the grace in seconds.
    """

    def __init__(self, holding: Holding, drain: Callable[[float], None]) -> None:
        self._holding = holding
        self._drain = drain

    async def Execute(self, request: ExecuteRequest, context: Context) -> ExecuteResponse:
        """See ExecutorService.Execute."""
        async with rpc_errors(context):
            return ExecuteResponse(running=self._holding.take(request))

    async def Cancel(self, request: CancelRequest, context: Context) -> CancelResponse:
        """See ExecutorService.Cancel."""
        async with rpc_errors(context):
            ref = keys.ref(request.namespace, request.run_id)
            self._holding.cancel(ref, request.attempt, request.grace.ToMilliseconds() / 1000)
            return CancelResponse()

    async def Notify(self, request: NotifyRequest, context: Context) -> NotifyResponse:
        """See ExecutorService.Notify."""
        async with rpc_errors(context):
            ref = keys.ref(request.namespace, request.run_id)
            self._holding.notify(ref, request.attempt, request.last_offset)
            return NotifyResponse()

    async def Drain(self, request: DrainRequest, context: Context) -> DrainResponse:
        """See ExecutorService.Drain."""
        async with rpc_errors(context):
            running = self._holding.running
            self._drain(request.grace.ToMilliseconds() / 1000)
            return DrainResponse(running=running)

    async def Watch(self, request: WatchRequest, context: Context) -> AsyncIterator[WatchResponse]:
        """See ExecutorService.Watch."""
        async for response in self._holding.watch():
            yield response
