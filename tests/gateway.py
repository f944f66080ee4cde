"""What tests of the Gateway share: one on free ports, its client, runs with logs written by hand, and its errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from redis.asyncio import Redis
from tests.runlog import a_run, append, ended

from onward.v1.event_pb2 import Event, OutputDelta
from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import (
    ListRunEventsRequest,
    Position,
    SubscribeRunRequest,
    SubscribeRunResponse,
    View,
    Workflow,
)
from onward.v1.gateway_service_pb2_grpc import GatewayServiceStub
from onward.v1.run_pb2 import Payload, Run, RunState
from onward_gateway import app
from onward_gateway.settings import Settings
from onward_runlog import registry
from onward_runlog.runs import Runs
from onward_runlog.store import Store

if TYPE_CHECKING:
    from onward.v1.gateway_service_pb2_grpc import GatewayServiceAsyncStub

CLIENT_OPTIONS = [
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
    # Above the limit that clients have by default they refuse some, by chance, and all above twice as much.
    ("grpc.absolute_max_metadata_size", 8 * 1024),
]


@dataclass(frozen=True)
class Door:
    """A Gateway, and a client of it."""

    stub: GatewayServiceAsyncStub
    grpc: str
    http: str


@contextlib.asynccontextmanager
async def gateway(redis_url: str, **settings: Any) -> AsyncIterator[Door]:
    """A Gateway in this process."""
    values = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "shutdown_grace_s": 2.0, **settings}
    async with app.opened(Settings(redis_url=redis_url, **values)) as doors, client(doors.grpc) as stub:
        yield Door(stub, doors.grpc, doors.http)


@contextlib.asynccontextmanager
async def client(address: str) -> AsyncIterator[GatewayServiceAsyncStub]:
    """A client with a connection of its own."""
    async with grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS) as channel:
        yield GatewayServiceStub(channel)


@contextlib.asynccontextmanager
async def bare_redis(redis_url: str) -> AsyncIterator[Any]:
    """A client for what nobody may do but a test; untyped, since its types fit no reply."""
    async with Redis.from_url(redis_url) as redis:
        yield redis


class Log:
    """A run that an executor holds, and its log, written by hand."""

    def __init__(self, store: Store, run: Run, attempt: int) -> None:
        self.run = run
        self._store = store
        self._attempt = attempt
        self._sequence = 0

    @property
    def run_id(self) -> str:
        return self.run.run_id

    async def append(self, *events: Event) -> int:
        """Append events in one step, and return the newest offset."""
        self._sequence += 1
        limits = {"events_max": 1_000_000, "bytes_max": 1 << 28}
        reply = await append(self._store, self.run, self._attempt, self._sequence, *events, **limits)
        assert reply.status == "ok", reply
        return reply.last_offset

    async def close(self, *events: Event) -> int:
        """Append events and the run's success in one step."""
        self._sequence += 1
        last = ended()
        output = last.run_state_changed.output.SerializeToString()
        state = last.run_state_changed.state
        limits = {"events_max": 1_000_000, "bytes_max": 1 << 28}
        reply = await append(
            self._store, self.run, self._attempt, self._sequence, *events, last, end=state, output=output, **limits
        )
        assert reply.status == "ok", reply
        return reply.last_offset

    async def fail(self, state: RunState.ValueType = RunState.RUN_STATE_FAILED) -> int:
        """Append the run's end without success."""
        self._sequence += 1
        last = ended(state)
        error = last.run_state_changed.error.SerializeToString()
        limits = {"events_max": 1_000_000, "bytes_max": 1 << 28}
        reply = await append(
            self._store, self.run, self._attempt, self._sequence, last, end=state, error=error, **limits
        )
        assert reply.status == "ok", reply
        return reply.last_offset


async def begun(store: Store, run_id: str = "run", **fields: Any) -> Log:
    """A run that is held, whose log has its first event."""
    run, _, taken = await Runs(store).submit(a_run(run_id, **fields), holder="hand", ttl_s=600)
    assert taken is not None
    return Log(store, run, taken.attempt)


def delta(text: str = "x", component_id: str = "") -> Event:
    return Event(component_id=component_id, output_delta=OutputDelta(text=text))


async def serve_workflow(
    store: Store, name: str = "blog", *, schema: bytes = b"", deployment: str = "build", executor: str = "e1"
) -> None:
    """Have an executor register that serves a workflow."""
    workflow = Workflow(name=name, input_schema=Payload(data=schema, size=len(schema)))
    await registry.register(
        store,
        Executor(executor_id=executor, deployment=deployment, address="127.0.0.1:1", workflows=[workflow]),
        ttl_s=60,
    )


@dataclass
class Followed:
    """What a stream has said so far. Every claim of the contract about messages in a row is asserted as they come."""

    opened: SubscribeRunResponse | None = None
    events: list[Event] = field(default_factory=list)
    end: SubscribeRunResponse | None = None
    cursors: list[tuple[int, str]] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    bookmarks: list[int] = field(default_factory=list)
    through: int = -1

    def take(self, response: SubscribeRunResponse, view: View.ValueType = View.VIEW_RAW) -> None:
        assert self.end is None, "nothing follows handoff or completed"
        assert response.cursor
        kind = response.WhichOneof("message")
        assert (kind == "opened") == (self.opened is None), "opened comes first, and once"
        match kind:
            case "opened":
                self.opened = response
                self.through = response.opened.after_offset
                assert not response.opened.run.HasField("input")
                assert not response.opened.run.HasField("output")
            case "batch":
                batch = response.batch
                offsets = [event.offset for event in batch.events]
                assert batch.after_offset == self.through, "a batch begins where the message before it ended"
                if view == View.VIEW_SETTLED:
                    assert set(offsets) <= set(range(batch.after_offset + 1, batch.through_offset + 1))
                else:
                    assert offsets == list(range(batch.after_offset + 1, batch.through_offset + 1))
                assert len(offsets) == 1 or batch.ByteSize() <= 1024 * 1024 + 32
                self.events += batch.events
                self.through = batch.through_offset
            case "bookmark":
                assert response.bookmark.offset == self.through
                self.bookmarks.append(response.bookmark.offset)
            case "gap":
                assert response.gap.first_missing == self.through + 1
                self.gaps.append((response.gap.first_missing, response.gap.last_missing))
                self.through = response.gap.last_missing
            case "handoff" | "completed":
                self.end = response
        self.cursors.append((self.through, response.cursor))

    @property
    def offsets(self) -> list[int]:
        return [event.offset for event in self.events]


class Reading:
    """A stream that is read message by message."""

    def __init__(self, door: Door, request: SubscribeRunRequest, view: View.ValueType = View.VIEW_RAW) -> None:
        self.followed = Followed()
        self._view = view
        self._call = door.stub.SubscribeRun(request)
        self._messages = aiter(self._call)

    async def next(self) -> SubscribeRunResponse:
        """Take one message."""
        response = await anext(self._messages)
        self.followed.take(response, self._view)
        return response

    async def rest(self) -> Followed:
        """Take all that is left."""
        async for response in self._messages:
            self.followed.take(response, self._view)
        return self.followed

    def cancel(self) -> None:
        """Go away."""
        self._call.cancel()


async def follow(
    door: Door,
    run_id: str = "run",
    *,
    until: int | None = None,
    namespace: str = "",
    view: View.ValueType = View.VIEW_RAW,
    heartbeat_s: int = 0,
    **position: Any,
) -> Followed:
    """Subscribe and read to the end of the stream, or through an offset."""
    request = SubscribeRunRequest(run_id=run_id, start=Position(**position), view=view)
    if heartbeat_s:
        request.heartbeat.FromSeconds(heartbeat_s)
    followed = Followed()
    call = door.stub.SubscribeRun(request)
    try:
        async for response in call:
            followed.take(response, view)
            if until is not None and followed.through >= until:
                return followed
    finally:
        call.cancel()
    assert followed.end is not None, "a stream ends with handoff or completed"
    return followed


async def whole_log(door: Door, run_id: str = "run") -> tuple[list[Event], list[str]]:
    """Every event by ListRunEvents, one a page, and the cursor after each: the one at 0 first."""
    events: list[Event] = []
    cursors: list[str] = []
    position = Position(after_offset=0)
    while True:
        page = await door.stub.ListRunEvents(ListRunEventsRequest(run_id=run_id, start=position, page_size=1))
        assert page.after_offset == len(events)
        events += page.events
        if not cursors:
            opened = await follow(door, run_id, until=0)
            cursors.append(opened.cursors[0][1])
        cursors.append(page.next_cursor)
        if page.through_offset == page.log.last_offset:
            return events, cursors
        position = Position(after_cursor=page.next_cursor)


@dataclass(frozen=True)
class Told:
    """An RPC's failure, as its caller sees it."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    violations: dict[str, str]
    retry_s: float | None
    message: str


def told(error: grpc.aio.AioRpcError) -> Told:
    """Read the details of an error."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, error
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    retry_s = None
    for detail in status.details:
        if not detail.Unpack(info) and not detail.Unpack(request) and detail.Unpack(retry):
            retry_s = retry.retry_delay.ToTimedelta().total_seconds()
    assert info.domain == "onward"
    violations = {violation.field: violation.description for violation in request.field_violations}
    reason = info.reason.removeprefix("ERROR_REASON_")
    return Told(error.code(), reason, dict(info.metadata), violations, retry_s, error.details() or "")


async def refused(call: Awaitable[object]) -> Told:
    """Return how a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return told(raised.value)


async def gather(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*calls))
