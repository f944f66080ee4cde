"""Writes: a Gateway asks a Scheduler for each, and asks the next one where it is not answered."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import (
    ForkRunRequest,
    ForkRunResponse,
    SignalRunRequest,
    SignalRunResponse,
    StartRunRequest,
)
from onward.v1.run_pb2 import Run
from onward.v1.scheduler_service_pb2 import (
    BranchRunRequest,
    DeliverSignalRequest,
    ListExecutorsRequest,
    StopRunRequest,
    SubmitRunRequest,
    WakeRunRequest,
)
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from onward_runlog.runs import new_run_id
from onward_serving.errors import Refused
from onward_serving.tls import Peers

if TYPE_CHECKING:
    from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

logger = logging.getLogger(__name__)

TRY_S = 10.0
"""How long one Scheduler may take. It waits itself for a store that is away, for a shorter time than this."""

FORK_S = 120.0
"""The same for a fork, which copies a log."""

_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", re.ASCII)
_SILENT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})

Response = TypeVar("Response")


class Schedulers:
    """All Schedulers of the suite, any of which answers any call.

    Each write is made idempotent before it is first sent, so that asking another Scheduler never does it twice.
    """

    def __init__(self, stubs: Sequence[SchedulerServiceAsyncStub]) -> None:
        self._stubs = stubs
        self._first = 0

    async def submit(self, namespace: str, start: StartRunRequest, trace_parent: str) -> tuple[Run, bool]:
        """Have a checked run recorded and queued; returns it, and whether an earlier call with the request_id did.

        Raises:
            Refused: No Scheduler answers; the outcome is unknown.
            grpc.aio.AioRpcError: A Scheduler refuses.
        """
        anonymous = not start.run_id and not start.request_id
        if anonymous:
            start.run_id = new_run_id(namespace, "")
        request = SubmitRunRequest(namespace=namespace, start=start, trace_parent=trace_parent)
        response = await self._ask(lambda stub: stub.SubmitRun(request, timeout=TRY_S))
        return response.run, response.replayed and not anonymous

    async def stop(self, namespace: str, run_id: str, reason: str) -> Run:
        """Have a run cancelled; raises as `submit`."""
        request = StopRunRequest(namespace=namespace, run_id=run_id, reason=reason)
        return (await self._ask(lambda stub: stub.StopRun(request, timeout=TRY_S))).run

    async def signal(self, namespace: str, signal: SignalRunRequest) -> SignalRunResponse:
        """Have a checked signal appended; raises as `submit`."""
        anonymous = not signal.request_id
        if anonymous:
            signal.request_id = secrets.token_hex(16)
        request = DeliverSignalRequest(namespace=namespace, signal=signal)
        response = await self._ask(lambda stub: stub.DeliverSignal(request, timeout=TRY_S))
        return SignalRunResponse(offset=response.offset, replayed=response.replayed and not anonymous)

    async def wake(self, namespace: str, run_id: str, deployment: str) -> Run:
        """Have a paused run queued; raises as `submit`."""
        request = WakeRunRequest(namespace=namespace, run_id=run_id, deployment=deployment)
        return (await self._ask(lambda stub: stub.WakeRun(request, timeout=TRY_S))).run

    async def branch(self, namespace: str, fork: ForkRunRequest, trace_parent: str) -> ForkRunResponse:
        """Have a checked fork recorded and queued; raises as `submit`."""
        anonymous = not fork.new_run_id and not fork.request_id
        if anonymous:
            fork.new_run_id = new_run_id(namespace, "")
        request = BranchRunRequest(namespace=namespace, fork=fork, trace_parent=trace_parent)
        response = await self._ask(lambda stub: stub.BranchRun(request, timeout=FORK_S))
        return ForkRunResponse(run=response.run, replayed=response.replayed and not anonymous)

    async def executors(self) -> list[Executor]:
        """Return the executors that are there, with what their deployments are called but not what they serve.

        Raises:
            Refused: No Scheduler answers.
        """
        response = await self._ask(lambda stub: stub.ListExecutors(ListExecutorsRequest(), timeout=TRY_S))
        return list(response.executors)

    async def _ask(self, call: Callable[[SchedulerServiceAsyncStub], Awaitable[Response]]) -> Response:
        silent: list[str] = []
        for i in range(len(self._stubs)):
            at = (self._first + i) % len(self._stubs)
            try:
                response = await call(self._stubs[at])
            except grpc.aio.AioRpcError as error:
                if error.code() not in _SILENT or _reason(error) == "ERROR_REASON_STORE_UNAVAILABLE":
                    raise
                silent.append(f"{error.code().name} {error.details()}")
                continue
            self._first = at
            return response
        logger.warning("no Scheduler answers: %s", "; ".join(silent))
        raise Refused(
            grpc.StatusCode.UNAVAILABLE,
            ErrorReason.ERROR_REASON_SCHEDULER_UNAVAILABLE,
            "no Scheduler answers: whether this was done is unknown, repeat it with the same request_id",
            retry_s=1.0,
        )


@contextlib.asynccontextmanager
async def schedulers(addresses: Sequence[str], peers: Peers) -> AsyncIterator[Schedulers]:
    """Hold a channel to each Scheduler. None needs to be there yet.

    Raises:
        TlsInvalid: What `peers` names cannot be used.
    """
    async with contextlib.AsyncExitStack() as channels:
        stubs = [
            SchedulerServiceStub(await channels.enter_async_context(peers.channel(address))) for address in addresses
        ]
        yield Schedulers(stubs)


def trace_parent(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the caller's W3C traceparent; empty where there is none, or a malformed one."""
    for key, value in metadata or ():
        if key == "traceparent" and isinstance(value, str) and _TRACE_PARENT.fullmatch(value):
            return value
    return ""


def _reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            return str(info.reason)
    return ""
