"""The client against a Gateway as bad as a test wants it: a real gRPC server, only its manners are scripted."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry.sdk.trace import TracerProvider

from onward import errors
from onward.blocking import LoopThread
from onward.client import Client, SyncClient
from onward.gateways import Gateways
from onward.payload import encode
from onward.signature import Signature, adapter_of, value_of
from onward.v1 import gateway_service_pb2 as pb
from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.event_pb2 import CHANGE_PATCH, CHANGE_SET, Event, OutputDelta, Published, Rollback, RunStateChanged
from onward.v1.gateway_service_pb2_grpc import GatewayServiceServicer, add_GatewayServiceServicer_to_server
from onward.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_RUNNING,
    RUN_STATE_SUCCEEDED,
    Payload,
    Run,
    RunError,
    RunLog,
)
from onward.views import fold

Code = grpc.StatusCode
Context = grpc.aio.ServicerContext[Any, Any]


class Refusal(Exception):
    """What a scripted Gateway answers instead of an answer."""

    def __init__(self, code: Code, reason: str = "", *details: Message, metadata: dict[str, str] | None = None) -> None:
        info = error_details_pb2.ErrorInfo(reason=f"ERROR_REASON_{reason}", domain="onward", metadata=metadata)
        self.status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=f"no: {reason or code.name}")
        for detail in [info, *details] if reason else details:
            packed = AnyMessage()
            packed.Pack(detail)
            self.status.details.append(packed)


CUT = Refusal(Code.UNAVAILABLE)
STALL = object()
"""In a script: send nothing more, ever."""


def message(**kind: Any) -> pb.SubscribeRunResponse:
    return pb.SubscribeRunResponse(**kind)


def opened(after: int, log_id: str = "L") -> pb.SubscribeRunResponse:
    return message(cursor=f"c{after}", opened=pb.Opened(after_offset=after, run=Run(log=RunLog(log_id=log_id))))


def batch(*offsets: int, after: int | None = None, through: int | None = None) -> pb.SubscribeRunResponse:
    after = offsets[0] - 1 if after is None else after
    through = offsets[-1] if through is None else through
    events = [event(offset) for offset in offsets]
    return message(cursor=f"c{through}", batch=pb.EventBatch(events=events, after_offset=after, through_offset=through))


def handoff(offset: int, delay_s: float = 0) -> pb.SubscribeRunResponse:
    response = message(cursor=f"c{offset}", handoff=pb.Handoff())
    response.handoff.retry_delay.FromMicroseconds(int(delay_s * 1e6))
    return response


def completed(last: int) -> pb.SubscribeRunResponse:
    run = Run(run_id="r", state=RUN_STATE_SUCCEEDED, log=RunLog(last_offset=last, closed=True))
    return message(cursor=f"c{last}", completed=pb.Completed(run=run))


def event(offset: int) -> Event:
    return Event(offset=offset, output_delta=OutputDelta(text=f"{offset} "))


class Gateway(GatewayServiceServicer):
    """Serves a log of so many events honestly, once it has played its scripts: one for each stream or call."""

    def __init__(self, events: int = 0) -> None:
        self.log = [event(offset) for offset in range(1, events + 1)]
        self.streams: deque[list[Any]] = deque()
        self.answers: deque[Message | Refusal] = deque()
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.live = 0
        self.changed = asyncio.Condition()
        self.hold_at: int | None = None
        """Offset after which the honest stream waits for ever."""
        self.on_stall: Callable[[], object] = lambda: None

    @property
    def positions(self) -> list[int | str]:
        """Where each subscription began."""
        starts = [request.start for request in self.requests if isinstance(request, pb.SubscribeRunRequest)]
        return [getattr(start, start.WhichOneof("at") or "", "") for start in starts]

    async def idle(self) -> None:
        """Wait until no stream is live."""
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: not self.live)

    async def SubscribeRun(
        self, request: pb.SubscribeRunRequest, context: Context
    ) -> AsyncIterator[pb.SubscribeRunResponse]:
        self.requests.append(request)
        self.live += 1
        try:
            for step in self.streams.popleft() if self.streams else self.honest(request.start):
                if isinstance(step, Refusal):
                    await refuse(context, step)
                elif step is STALL:
                    self.on_stall()
                    await asyncio.Event().wait()
                else:
                    yield step
        finally:
            self.live -= 1
            async with self.changed:
                self.changed.notify_all()

    def honest(self, start: pb.Position) -> list[Any]:
        after = int(start.after_cursor.removeprefix("c") or 0) or start.after_offset
        if start.WhichOneof("at") == "last":
            after = len(self.log) - start.last
        steps: list[Any] = [opened(after)]
        for offsets in threes(range(after + 1, len(self.log) + 1)):
            if self.hold_at is not None and offsets[0] > self.hold_at:
                return [*steps, STALL]
            steps += [batch(*offsets), message(cursor=f"c{offsets[-1]}", bookmark=pb.Bookmark(offset=offsets[-1]))]
        return [*steps, completed(len(self.log))]

    async def ReadBlob(self, request: pb.ReadBlobRequest, context: Context) -> AsyncIterator[pb.ReadBlobResponse]:
        self.requests.append(request)
        for step in self.streams.popleft():
            if isinstance(step, Refusal):
                await refuse(context, step)
            yield pb.ReadBlobResponse(data=step)

    async def _answer(self, request: Any, context: Context) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        answer = self.answers.popleft()
        if isinstance(answer, Refusal):
            await refuse(context, answer)
        return answer

    StartRun = GetRun = ListRuns = CancelRun = SignalRun = ResumeRun = ListRunEvents = ListWorkflows = _answer
    InvokeWorkflow = ForkRun = _answer


def threes(offsets: range) -> list[range]:
    return [offsets[start : start + 3] for start in range(0, len(offsets), 3)]


async def refuse(context: Context, refusal: Refusal) -> None:
    status = rpc_status.to_status(refusal.status)
    context.set_trailing_metadata(status.trailing_metadata)
    await context.abort(status.code, status.details)


@asynccontextmanager
async def serving(gateway: Gateway, port: int = 0) -> AsyncIterator[tuple[str, grpc.aio.Server]]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_GatewayServiceServicer_to_server(gateway, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.stop(None)


@asynccontextmanager
async def talking(gateway: Gateway, **options: Any) -> AsyncIterator[Client]:
    async with serving(gateway) as (address, _), Client(address, **options) as client:
        yield client
        await gateway.idle()


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it waits between tries is not what these tests ask."""
    monkeypatch.setattr("onward.gateways.BACKOFF_S", (0.01, 0.05))


@pytest.fixture(autouse=True)
async def _nothing_left() -> AsyncIterator[None]:
    """Whatever a test did, no task and no thread of the client outlives it."""
    yield
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
    assert "onward-client" not in [thread.name for thread in threading.enumerate()]


async def offsets(events: AsyncIterator[Event]) -> list[int]:
    return [event.offset async for event in events]


# Calls that answer at once


async def test_starting_names_the_workflow_and_its_input() -> None:
    """Everything that the caller said arrives, and a request_id that the caller need not think of."""
    gateway = Gateway()
    gateway.answers += [pb.StartRunResponse(run=Run(run_id="r1"))] * 2
    async with talking(gateway) as client:
        run = await client.start(
            "blog",
            {"topic": "tea", "when": datetime(2026, 11, 22, tzinfo=UTC)},
            run_id="r1",
            labels={"team": "a"},
            run_timeout="2m",
            schedule_time=datetime(2026, 11, 23, tzinfo=UTC),
            priority=3,
            fairness_key="f",
            deployment="d",
        )
        await client.start(type("Blog", (), {"name": "blog"})(), request_id="mine")
    assert run.run_id == "r1"
    request, named = gateway.requests
    assert (request.workflow, request.run_id, dict(request.labels), request.priority) == (
        "blog",
        "r1",
        {"team": "a"},
        3,
    )
    assert (request.fairness_key, request.deployment) == ("f", "d")
    assert json.loads(request.input.data) == {"topic": "tea", "when": "2026-11-22T00:00:00Z"}
    assert request.run_timeout.ToTimedelta() == timedelta(minutes=2)
    assert request.schedule_time.ToDatetime(tzinfo=UTC) == datetime(2026, 11, 23, tzinfo=UTC)
    assert len(request.request_id) == 32
    assert (named.workflow, named.request_id, json.loads(named.input.data)) == ("blog", "mine", {})
    assert not named.HasField("schedule_time")


async def test_bytes_arrive_as_they_are() -> None:
    """In an input as in a signal; whether they are text or not."""

    async def upload(raw: bytes) -> None: ...

    gateway = Gateway()
    gateway.answers += [pb.StartRunResponse(run=Run(run_id="r1")), pb.SignalRunResponse(offset=1)]
    async with talking(gateway) as client:
        await client.start("upload", {"raw": b"abcd"})
        await client.signal("r1", "more", b"\xfb\xff\xfe")
    started, signalled = gateway.requests
    assert Signature(upload).load_input(started.input.data) == ([], {"raw": b"abcd"})
    assert value_of(adapter_of(bytes), signalled.value.data, strict=True) == b"\xfb\xff\xfe"


async def test_a_start_that_nobody_answered_is_repeated_as_the_same_request() -> None:
    """A reply that was lost costs no second run."""
    gateway = Gateway()
    gateway.answers += [CUT, Refusal(Code.DEADLINE_EXCEEDED), Refusal(Code.UNAVAILABLE, "DRAINING")]
    gateway.answers += [pb.StartRunResponse(run=Run(run_id="first"), replayed=True)]
    async with talking(gateway) as client:
        assert (await client.start("blog")).run_id == "first"
    assert len(gateway.requests) == 4
    assert len({request.request_id for request in gateway.requests}) == 1


async def test_a_start_without_time_zone_or_json_form_is_refused_here() -> None:
    """What cannot be said is not sent."""
    gateway = Gateway()
    async with talking(gateway) as client:
        with pytest.raises(ValueError, match="time zone"):
            await client.start("blog", schedule_time=datetime(2026, 11, 23))  # noqa: DTZ001
        with pytest.raises(ValueError, match="serialize"):
            await client.start("blog", {"a": object()})
    assert gateway.requests == []


async def test_the_callers_span_goes_along() -> None:
    """A run becomes part of the trace that started it, where there is one."""
    gateway = Gateway()
    gateway.answers += [pb.StartRunResponse(run=Run(run_id="r"))] * 2
    async with talking(gateway) as client:
        with TracerProvider().get_tracer("test").start_as_current_span("caller") as span:
            await client.start("blog")
        await client.start("blog")
    context = span.get_span_context()
    assert str(gateway.metadata[0]["traceparent"]).startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")
    assert "traceparent" not in gateway.metadata[1]


REASONS = {
    "RUN_NOT_FOUND": (Code.NOT_FOUND, errors.RunNotFound),
    "WORKFLOW_NOT_FOUND": (Code.NOT_FOUND, errors.WorkflowNotFound),
    "INPUT_INVALID": (Code.INVALID_ARGUMENT, errors.InvalidInput),
    "CURSOR_INVALID": (Code.INVALID_ARGUMENT, errors.InvalidRequest),
    "EVENTS_TRIMMED": (Code.OUT_OF_RANGE, errors.PositionLost),
    "OFFSET_AHEAD": (Code.OUT_OF_RANGE, errors.PositionLost),
    "LOG_REBUILT": (Code.FAILED_PRECONDITION, errors.PositionLost),
    "REQUEST_ID_REUSED": (Code.ALREADY_EXISTS, errors.RequestReused),
    "RUN_STATE": (Code.FAILED_PRECONDITION, errors.WrongState),
    "LIMIT_REACHED": (Code.RESOURCE_EXHAUSTED, errors.LimitReached),
    "DRAINING": (Code.UNAVAILABLE, errors.Unavailable),
    "STORE_UNAVAILABLE": (Code.UNAVAILABLE, errors.Unavailable),
    "ATTEMPT_FENCED": (Code.ABORTED, errors.InternalError),
    "FORBIDDEN": (Code.PERMISSION_DENIED, errors.Denied),
    "REQUEST_INVALID": (Code.INVALID_ARGUMENT, errors.InvalidRequest),
    "TOO_LARGE": (Code.INVALID_ARGUMENT, errors.InvalidRequest),
    "DEPLOYMENT_NOT_FOUND": (Code.NOT_FOUND, errors.NotFound),
    "BLOB_NOT_FOUND": (Code.NOT_FOUND, errors.NotFound),
    "SCHEDULER_UNAVAILABLE": (Code.UNAVAILABLE, errors.Unavailable),
    "EXECUTOR_FULL": (Code.RESOURCE_EXHAUSTED, errors.LimitReached),
    "READER_STALLED": (Code.UNAVAILABLE, errors.Unavailable),
    "INTERNAL": (Code.INTERNAL, errors.InternalError),
}


def test_every_reason_of_the_contract_has_an_error() -> None:
    """A reason that is added to the contract is noticed here."""
    assert {name.removeprefix("ERROR_REASON_") for name, _ in ErrorReason.items()} - {"UNSPECIFIED"} == {*REASONS}


@pytest.mark.parametrize("reason", REASONS)
async def test_a_refusal_arrives_as_its_error(reason: str) -> None:
    """With the reason, the message and the metadata that the Gateway gave; never as gRPC's own exception."""
    code, kind = REASONS[reason]
    gateway = Gateway()
    gateway.answers.append(Refusal(code, reason, metadata={"run_id": "r"}))
    async with talking(gateway, patience=0) as client:
        with pytest.raises(errors.RequestError) as caught:
            await client.get("r")
    assert type(caught.value) is kind
    assert (caught.value.reason, caught.value.metadata, str(caught.value)) == (reason, {"run_id": "r"}, f"no: {reason}")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.NOT_FOUND, errors.NotFound),
        (Code.UNIMPLEMENTED, errors.InvalidRequest),
        (Code.UNAUTHENTICATED, errors.Denied),
        (Code.CANCELLED, errors.Unavailable),
        (Code.UNKNOWN, errors.InternalError),
        (Code.DATA_LOSS, errors.InternalError),
    ],
)
async def test_a_refusal_without_a_reason_is_known_by_its_code(code: Code, kind: type[errors.RequestError]) -> None:
    """Proxies and gRPC itself give no reason."""
    gateway = Gateway()
    gateway.answers.append(Refusal(code))
    async with talking(gateway, patience=0) as client:
        with pytest.raises(errors.RequestError) as caught:
            await client.get("r")
    assert type(caught.value) is kind
    assert caught.value.reason == ""


async def test_details_that_contradict_the_status_are_ignored() -> None:
    """A proxy that changed the status does not break the client."""
    gateway = Gateway()
    refusal = Refusal(Code.NOT_FOUND, "RUN_NOT_FOUND")

    async def lie(request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        context.set_trailing_metadata(rpc_status.to_status(refusal.status).trailing_metadata)
        await context.abort(Code.PERMISSION_DENIED, "not you")
        raise AssertionError

    gateway.GetRun = lie  # type: ignore[method-assign]
    async with talking(gateway) as client:
        with pytest.raises(errors.Denied, match="not you"):
            await client.get("r")


async def test_everything_wrong_with_an_input_is_listed() -> None:
    """And a limit says when to try again."""
    violation = error_details_pb2.BadRequest.FieldViolation
    bad = error_details_pb2.BadRequest(
        field_violations=[violation(field="topic", description="required"), violation(field="n", description="not 0")]
    )
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    gateway = Gateway()
    gateway.answers += [
        Refusal(Code.INVALID_ARGUMENT, "INPUT_INVALID", bad),
        Refusal(Code.RESOURCE_EXHAUSTED, "LIMIT_REACHED", retry),
    ]
    async with talking(gateway) as client:
        with pytest.raises(errors.InvalidInput) as invalid:
            await client.start("blog")
        with pytest.raises(errors.LimitReached) as limit:
            await client.start("blog")
    assert invalid.value.violations == ["topic: required", "n: not 0"]
    assert limit.value.retry_after_s == 1.5


async def test_patience_ends() -> None:
    """When nobody answers for long enough, the caller is told."""
    async with Client("127.0.0.1:1", patience=0.3) as client:
        with pytest.raises(errors.Unavailable):
            await client.get("r")
        with pytest.raises(errors.Unavailable):
            await offsets(client.follow("r"))
        with pytest.raises(errors.Unavailable):
            await client.read_blob("r", "b")


async def test_a_call_without_an_answer_is_made_again() -> None:
    """A Gateway that is frozen does not hold a call for ever."""
    gateway = Gateway()
    calls = itertools.count()

    async def freeze(request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        if next(calls) == 0:
            await asyncio.Event().wait()
        return pb.GetRunResponse(run=Run(run_id="r"))

    gateway.GetRun = freeze  # type: ignore[method-assign]
    async with serving(gateway) as (address, _):
        gateways = Gateways([address], patience_s=5)
        response = await gateways.ask(lambda stub: stub.GetRun, pb.GetRunRequest(), timeout_s=0.2)
        await gateways.close()
    assert response.run.run_id == "r"


async def test_another_gateway_answers() -> None:
    """A dead address costs nothing but a moment, and only once."""
    gateway = Gateway()
    gateway.answers += [pb.GetRunResponse(run=Run(run_id="r"))] * 2
    async with serving(gateway) as (address, _), Client(f"127.0.0.1:1, {address},") as client:
        assert (await client.get("r")).run_id == "r"
        assert (await client.get("r")).run_id == "r"


async def test_the_environment_names_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONWARD_GATEWAY is used where no address is given."""
    gateway = Gateway()
    gateway.answers.append(pb.GetRunResponse(run=Run(run_id="r")))
    async with serving(gateway) as (address, _):
        monkeypatch.setenv("ONWARD_GATEWAY", address)
        async with Client() as client:
            assert (await client.get("r")).run_id == "r"
    with pytest.raises(ValueError, match="address"):
        Client(" , ")
    with pytest.raises(ValueError, match="no address of a Gateway"):
        Client("127.0.0.1:99999")  # gRPC would ask whoever listens on another port


async def test_a_closed_client_says_so() -> None:
    """Not with an error of gRPC."""
    client = Client()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.get("r")


async def test_large_answers_arrive() -> None:
    """gRPC's own limit of 4 MiB is less than what a Gateway may send."""
    gateway = Gateway()
    payload = Payload(data=b"x" * 5 * 1024 * 1024)
    gateway.answers.append(pb.GetRunResponse(run=Run(output=payload)))
    async with talking(gateway) as client:
        assert (await client.get("r")).output == payload


async def test_the_other_calls_say_what_they_mean() -> None:
    """Cancel, signal, resume and the list of workflows."""
    gateway = Gateway()
    gateway.answers += [
        pb.CancelRunResponse(run=Run(state=RUN_STATE_CANCELLED)),
        pb.SignalRunResponse(offset=7),
        pb.ResumeRunResponse(run=Run(run_id="r")),
        pb.ListWorkflowsResponse(workflows=[pb.Workflow(name="blog")]),
    ]
    async with talking(gateway) as client:
        run = client.run("r")
        assert (await run.cancel("why")).state == RUN_STATE_CANCELLED
        assert await run.signal("ok", {"yes": True}) == 7
        assert (await run.resume("v2")).run_id == "r"
        assert [workflow.name for workflow in await client.workflows()] == ["blog"]
    cancel, signalled, resume, *_ = gateway.requests
    assert (cancel.run_id, cancel.reason) == ("r", "why")
    assert (signalled.name, signalled.value.data, len(signalled.request_id)) == ("ok", b'{"yes":true}', 32)
    assert (resume.run_id, resume.deployment) == ("r", "v2")


async def test_forks_say_what_they_mean() -> None:
    gateway = Gateway()
    gateway.answers += [pb.ForkRunResponse(run=Run(run_id=f"f{number}")) for number in range(2)]
    async with talking(gateway) as client:
        run = client.run("r")
        assert (await run.fork("c1", deployment="v2", new_run_id="new", request_id="q")).run_id == "f0"
        assert (await run.retry()).run_id == "f1"
    fork, retry = gateway.requests
    assert (fork.run_id, fork.component_id, fork.deployment, fork.new_run_id) == ("r", "c1", "v2", "new")
    assert (fork.request_id, fork.from_failure) == ("q", False)
    assert (retry.from_failure, len(retry.request_id)) == (True, 32)


async def test_runs_are_listed_over_pages() -> None:
    """A page may be empty before the end."""
    gateway = Gateway()
    gateway.answers += [
        pb.ListRunsResponse(runs=[Run(run_id="a"), Run(run_id="b")], next_page_token="1"),
        pb.ListRunsResponse(next_page_token="2"),
        pb.ListRunsResponse(runs=[Run(run_id="c")]),
    ]
    async with talking(gateway) as client:
        listed = client.list_runs(workflow="blog", states=["FAILED", "PAUSED"], labels={"a": "b"}, parent_run_id="p")
        assert [run.run_id async for run in listed] == ["a", "b", "c"]
        with pytest.raises(ValueError, match="NONSENSE"):
            await anext(client.list_runs(states=["NONSENSE"]))
    assert [request.page_token for request in gateway.requests] == ["", "1", "2"]
    assert list(gateway.requests[2].states) == [RUN_STATE_FAILED, RUN_STATE_PAUSED]
    assert (gateway.requests[2].workflow, gateway.requests[2].parent_run_id) == ("blog", "p")


# The end of a run


async def test_invoke_waits_for_the_output() -> None:
    """Also when the Gateway answers early, or goes away in between."""
    gateway = Gateway()
    gateway.answers += [
        pb.StartRunResponse(run=Run(run_id="r")),
        pb.GetRunResponse(run=Run(state=RUN_STATE_RUNNING)),
        CUT,
        pb.GetRunResponse(run=Run(state=RUN_STATE_SUCCEEDED, output=encode({"title": "Tea"}))),
    ]
    async with talking(gateway) as client:
        assert await client.invoke("blog", {"topic": "tea"}) == {"title": "Tea"}
    assert gateway.requests[-1].wait.seconds > 0


async def test_a_long_output_is_read_from_where_it_is() -> None:
    """In pieces, and on from where a cut left it."""
    gateway = Gateway()
    output = Payload(blob_uri="b", size=11)
    gateway.answers.append(pb.GetRunResponse(run=Run(state=RUN_STATE_SUCCEEDED, output=output)))
    gateway.streams += [[b'["lo', CUT], [b"ng ", b'one"]']]
    async with talking(gateway) as client:
        assert await client.run("r").result() == ["long one"]
        gateway.streams.append([Refusal(Code.NOT_FOUND, "BLOB_NOT_FOUND")])
        with pytest.raises(errors.NotFound):
            await client.read_blob("r", "gone")
    assert [request.start for request in gateway.requests[1:3]] == [0, 4]


@pytest.mark.parametrize(
    ("run", "reason", "message"),
    [
        (Run(state=RUN_STATE_FAILED, error=RunError(reason="RUN_TIMEOUT", message="late")), "RUN_TIMEOUT", "late"),
        (Run(state=RUN_STATE_PAUSED, error=RunError(reason="LOG_LIMIT")), "LOG_LIMIT", "paused"),
        (Run(state=RUN_STATE_CANCELLED), "", "cancelled"),
    ],
    ids=["failed", "paused", "cancelled"],
)
async def test_a_run_without_output_raises(run: Run, reason: str, message: str) -> None:
    """A run's failure is data on the wire and an exception for who waits for its output."""
    gateway = Gateway()
    gateway.answers.append(pb.GetRunResponse(run=run))
    async with talking(gateway) as client:
        with pytest.raises(errors.RunFailed, match=message) as caught:
            await client.run("r").result()
    assert (caught.value.run_id, caught.value.reason) == ("r", reason)


async def test_waiting_ends_and_the_run_goes_on() -> None:
    """The error names the run, so that it can be waited for again."""
    gateway = Gateway()
    gateway.answers += [pb.GetRunResponse(run=Run(state=RUN_STATE_RUNNING))] * 9
    async with talking(gateway) as client:
        with pytest.raises(TimeoutError, match="run r goes on"):
            await client.run("r").result(timeout="100ms")
    assert {type(request) for request in gateway.requests} == {pb.GetRunRequest}


# Following


async def test_following_reads_to_the_end() -> None:
    """A stream that nothing disturbs."""
    gateway = Gateway(events=10)
    async with talking(gateway) as client:
        assert await offsets(client.follow("r")) == list(range(1, 11))
        assert await offsets(client.run("r").follow(after=8, view="settled")) == [9, 10]
        assert await offsets(client.follow("r", after="c9")) == [10]
        assert await offsets(client.follow("r", last=2)) == [9, 10]
        assert await offsets(client.follow("r", after=None)) == list(range(1, 11))
    request = gateway.requests[1]
    assert (request.view, request.heartbeat.seconds, request.run_id) == (pb.VIEW_SETTLED, 10, "r")
    assert gateway.positions == [0, 8, "c9", 2, ""]


@pytest.mark.parametrize(
    "code", [Code.UNAVAILABLE, Code.CANCELLED, Code.UNKNOWN, Code.INTERNAL, Code.DEADLINE_EXCEEDED]
)
async def test_a_cut_stream_goes_on_where_it_was(code: Code) -> None:
    """Whatever the status, OK included: without Completed it was not the end."""
    gateway = Gateway(events=7)
    gateway.streams += [[], [Refusal(code)], [opened(0), Refusal(code)], [opened(0), batch(1, 2, 3), Refusal(code)]]
    gateway.streams += [[opened(3), batch(4)]]
    async with talking(gateway) as client:
        assert await offsets(client.follow("r")) == [1, 2, 3, 4, 5, 6, 7]
    assert gateway.positions == [0, 0, 0, "c0", "c3", "c4"]


async def test_a_cut_is_told_once_and_so_is_its_end() -> None:
    """However often it is tried in between, and where nothing new comes. What is handed over is not cut."""
    gateway = Gateway(events=3)
    gateway.streams += [[opened(0), batch(1), CUT], [], [CUT], [opened(1), handoff(1)], [opened(1), batch(2), CUT]]
    told: list[Any] = []
    async with talking(gateway) as client:
        async for each in client.follow("r", on_connection=told.append):
            told.append(each.offset)  # noqa: PERF401 - two write to it
    assert [type(each) if isinstance(each, Exception) else each for each in told] == [
        1,
        errors.Unavailable,
        None,
        2,
        errors.Unavailable,
        None,
        3,
    ]


async def test_a_cut_before_the_first_message_keeps_the_start() -> None:
    """Also where the start is not an offset."""
    gateway = Gateway(events=5)
    gateway.streams += [[CUT]]
    async with talking(gateway) as client:
        assert await offsets(client.follow("r", last=2)) == [4, 5]
    assert gateway.positions == [2, 2]


async def test_a_handoff_is_followed() -> None:
    """To another Gateway where there is one, after the time that was asked for."""
    first, second = Gateway(events=4), Gateway(events=4)
    first.streams.append([opened(0), batch(1, 2), handoff(2, delay_s=0.05)])
    async with serving(first) as (one, _), serving(second) as (two, _), Client(f"{one},{two}") as client:
        assert await offsets(client.follow("r")) == [1, 2, 3, 4]
    assert second.positions == ["c2"]


async def test_being_handed_round_without_progress_ends() -> None:
    """Gateways that only send one away do not keep a client for ever."""
    gateway = Gateway()
    gateway.streams += [[opened(0), handoff(0, delay_s=0.05)]] * 100
    async with talking(gateway, patience=0.3) as client:
        with pytest.raises(errors.Unavailable, match="handed over"):
            await offsets(client.follow("r"))


async def test_progress_renews_the_patience() -> None:
    """A stream that is cut again and again, but goes on, may take as long as it takes."""
    gateway = Gateway(events=60)
    gateway.streams += [[opened(offset - 1), batch(offset), CUT] for offset in range(1, 61)]
    async with talking(gateway, patience=0.2) as client:
        assert await offsets(client.follow("r")) == list(range(1, 61))


async def test_events_that_come_again_are_skipped() -> None:
    """Whole batches, their beginnings, single ones; the position too may be said to be earlier than asked for."""
    gateway = Gateway(events=9)
    gateway.streams.append(
        [
            opened(0),
            batch(1, 2, 3),
            batch(1, 2, 3),
            batch(2, 3, 4, 5, after=1),
            batch(6, 6, 7, after=5),
            message(batch=pb.EventBatch(after_offset=7, through_offset=7)),
            message(),
            message(bookmark=pb.Bookmark(offset=5)),
            CUT,
        ]
    )
    gateway.streams.append([opened(3), batch(4, 5, 6), batch(7, 8, 9), completed(9)])
    async with talking(gateway) as client:
        assert await offsets(client.follow("r")) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


HOLES: dict[str, pb.SubscribeRunResponse] = {
    "between batches": batch(4, 5),
    "in a batch": batch(3, 5),
    "at the end of a batch": batch(3, through=5),
    "at the beginning of a batch": batch(4, 5, after=2),
    "at the opening": opened(4),
    "told by a bookmark": message(bookmark=pb.Bookmark(offset=4)),
    "told by the end": completed(5),
}


def streams_with_hole(hole: str) -> list[list[Any]]:
    """Two good events and the hole."""
    bad = HOLES[hole]
    good = [opened(0), batch(1, 2)]
    return [[*good, CUT], [bad]] if bad.HasField("opened") else [[*good, bad]]


@pytest.mark.parametrize("hole", HOLES)
async def test_a_hole_is_read_again_from_what_is_known(hole: str) -> None:
    """By offset and log, not by the cursor of a server that is in doubt."""
    gateway = Gateway(events=6)
    gateway.streams += streams_with_hole(hole)
    async with talking(gateway) as client:
        assert await offsets(client.follow("r")) == [1, 2, 3, 4, 5, 6]
    assert gateway.positions[-1] == 2
    assert gateway.requests[-1].start.log_id == "L"


@pytest.mark.parametrize("hole", HOLES)
async def test_a_hole_that_stays_is_loud(hole: str) -> None:
    """What is missing is named, and what came before it was yielded."""
    gateway = Gateway()
    gateway.streams += [*streams_with_hole(hole), [opened(2), HOLES[hole]]]
    async with talking(gateway) as client:
        events = client.follow("r")
        assert [(await anext(events)).offset for _ in range(2)] == [1, 2]
        with pytest.raises(errors.InternalError, match="left out events"):
            await anext(events)


async def test_a_settled_view_may_leave_out_what_is_void() -> None:
    """But says where each batch begins and ends, and that is checked."""
    gateway = Gateway(events=9)
    gateway.streams.append(
        [opened(0), batch(2, 4, after=0, through=5), batch(after=5, through=6), batch(8, after=7, through=8)]
    )
    async with talking(gateway) as client:
        assert await offsets(client.follow("r", view="settled")) == [2, 4, 7, 8, 9]
    assert gateway.positions == [0, 6]


async def test_silence_is_a_cut() -> None:
    """A stream without even a bookmark for twice the heartbeat is replaced, before and after its first message."""
    gateway = Gateway(events=3)
    gateway.streams += [[STALL], [opened(0), batch(1), STALL]]
    async with talking(gateway, heartbeat=0.1) as client:
        assert await offsets(client.follow("r")) == [1, 2, 3]


async def test_a_slow_reader_is_no_silence() -> None:
    """Time that the caller takes is not held against the Gateway."""
    gateway = Gateway(events=6)
    async with talking(gateway, heartbeat=0.5) as client:
        seen = []
        async for each in client.follow("r"):
            seen.append(each.offset)
            if each.offset == 3:
                # The passing of time is the subject here: of more than the Gateway may be silent for.
                await asyncio.sleep(1.1)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert len(gateway.positions) == 1


async def test_another_gateway_goes_on_when_one_dies() -> None:
    """The same events, once each, and no waiting while there is somebody else to ask."""
    first, second = Gateway(events=9), Gateway(events=9)
    first.hold_at = 3
    async with (
        serving(first) as (one, server),
        serving(second) as (two, _),
        Client(f"{one},{two}") as client,
        asyncio.timeout(5),
    ):
        seen = []
        async for each in client.follow("r"):
            seen.append(each.offset)
            if each.offset == 3:
                await server.stop(None)
        assert seen == list(range(1, 10))
        assert second.positions == ["c3"]


async def test_a_restarted_gateway_is_found_again() -> None:
    """On its old address, by a client that knows no other."""
    first, second = Gateway(events=6), Gateway(events=6)
    first.hold_at = 3
    async with serving(first) as (address, server), Client(address) as client:
        seen = []
        async with aclosing(client.follow("r")) as events:
            async for each in events:
                seen.append(each.offset)
                if each.offset == 3:
                    await server.stop(None)
                    break
            async with serving(second, port=int(address.rpartition(":")[2])):
                seen += await offsets(events)
    assert seen == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("reason", ["EVENTS_TRIMMED", "OFFSET_AHEAD", "LOG_REBUILT", "RUN_NOT_FOUND", "CURSOR_INVALID"])
async def test_a_position_that_is_lost_is_an_error_at_once(reason: str) -> None:
    """At the opening and when a stream is resumed."""
    code, kind = REASONS[reason]
    gateway = Gateway()
    gateway.streams += [[Refusal(code, reason)], [opened(0), batch(1), CUT], [Refusal(code, reason)]]
    async with talking(gateway) as client:
        with pytest.raises(kind):
            await anext(client.follow("r"))
        events = client.follow("r")
        assert (await anext(events)).offset == 1
        with pytest.raises(kind):
            await anext(events)
    assert len(gateway.positions) == 3


async def test_a_gap_that_nobody_asked_for_is_an_error() -> None:
    """Trimmed events are never skipped in silence."""
    gateway = Gateway()
    gateway.streams.append([opened(0), message(gap=pb.Gap(first_missing=1, last_missing=3)), batch(4)])
    async with talking(gateway) as client:
        with pytest.raises(errors.PositionLost, match="1 to 3"):
            await anext(client.follow("r"))


async def test_leaving_early_ends_the_stream() -> None:
    """The Gateway is not left with a stream that nobody reads."""
    gateway = Gateway(events=9)
    gateway.hold_at = 3
    async with talking(gateway) as client:
        async for each in client.follow("r"):
            if each.offset == 2:
                break
        await gateway.idle()


async def test_a_cancelled_reader_is_cancelled() -> None:
    """Its cancellation is not taken for a cut, and its stream ends."""
    gateway = Gateway(events=9)
    gateway.hold_at = 3
    async with talking(gateway) as client:
        third = asyncio.Event()

        async def read() -> None:
            async for each in client.follow("r"):
                if each.offset == 3:
                    third.set()

        task = asyncio.create_task(read())
        await third.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gateway.idle()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await read()
        await gateway.idle()


async def test_a_reader_that_is_cancelled_before_it_reads_on_is_cancelled() -> None:
    """As Ctrl-C does it: a signal handler cancels the task while it handles an event."""
    gateway = Gateway(events=9)
    gateway.hold_at = 3

    async def read(client: Client) -> None:
        task = asyncio.current_task()
        assert task is not None
        async with aclosing(client.follow("r")) as events:
            async for event in events:
                if event.offset == 3:
                    task.cancel()

    async with talking(gateway) as client:
        reading = asyncio.create_task(read(client))
        async with asyncio.timeout(5):
            await asyncio.wait([reading])
        assert reading.cancelled()


async def test_closing_the_client_ends_its_calls_with_an_error() -> None:
    """Who waits for an answer was not cancelled, and a group of tasks would hide that."""
    gateway = Gateway()
    asked = asyncio.Event()

    async def freeze(request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    gateway.GetRun = freeze  # type: ignore[method-assign]
    async with serving(gateway) as (address, _):
        client = Client(address)
        task = asyncio.create_task(client.get("r"))
        await asked.wait()
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await task


async def test_closing_the_client_ends_its_streams_with_an_error() -> None:
    """A reader in another task learns of it."""
    gateway = Gateway(events=9)
    gateway.hold_at = 3
    async with serving(gateway) as (address, _):
        client = Client(address)
        events = client.follow("r")
        assert [(await anext(events)).offset for _ in range(3)] == [1, 2, 3]
        task = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await task


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_each_event_comes_once(seed: int) -> None:
    """Random faults at random places, two Gateways, and nothing is lost, repeated or out of order."""
    chance = random.Random(seed)
    gateways = [Gateway(events=40), Gateway(events=40)]
    last, hole = 0, -1
    for turn in range(14):
        begin = max(0, last - chance.randrange(3))
        steps: list[Any] = [opened(begin)]
        for _ in range(chance.randrange(3)):
            end = min(40, begin + chance.randrange(1, 4))
            if begin < end:
                steps.append(batch(*range(begin + 1, end + 1)))
            begin = max(0, end - chance.randrange(2))
            last = max(last, end)
        fault = chance.choice([CUT, handoff(last), batch(last + 2, last + 3), message(), Refusal(Code.UNKNOWN)])
        if isinstance(fault, pb.SubscribeRunResponse) and fault.HasField("batch"):
            # Twice at one place would be no accident.
            fault = CUT if last == hole else fault
            hole = last
        gateways[turn % 2].streams.append([*steps, fault])
    async with serving(gateways[0]) as (one, _), serving(gateways[1]) as (two, _), Client(f"{one},{two}") as client:
        assert await offsets(client.follow("r")) == list(range(1, 41))


# What a user sees


async def test_watching_shows_the_run_as_it_goes() -> None:
    """A view that grows, across cuts, and whose states are whole though they stand outside the log."""
    end = Event(offset=4, run_state_changed=RunStateChanged(state=RUN_STATE_SUCCEEDED))
    patch = encode([{"op": "append", "path": "/text", "value": "!"}])
    events = [
        event(1),
        Event(offset=2, published=Published(name="doc", change=CHANGE_SET, value=Payload(blob_uri="b"))),
        Event(offset=3, published=Published(name="doc", change=CHANGE_PATCH, value=patch)),
    ]
    gateway = Gateway()
    gateway.streams += [
        [opened(0), message(batch=pb.EventBatch(events=events, through_offset=3), cursor="c3"), CUT],
        [b'{"text"', b': "long"}'],
        [opened(3), message(batch=pb.EventBatch(events=[end], after_offset=3, through_offset=4)), completed(4)],
    ]
    async with talking(gateway) as client:
        shown = [(view.text, view.states, view.done) async for view in client.run("r").watch()]
    assert shown == [("1 ", {"doc": {"text": "long!"}}, False), ("1 ", {"doc": {"text": "long!"}}, True)]


def page(*offsets: int, after: int, through: int, last: int) -> pb.ListRunEventsResponse:
    return pb.ListRunEventsResponse(
        events=[event(offset) for offset in offsets],
        after_offset=after,
        through_offset=through,
        next_cursor=f"c{through}",
        log=RunLog(last_offset=last),
    )


async def test_pages_of_events_are_put_together() -> None:
    """Raw pages are whole; settled ones leave out what is void and may even be empty."""
    gateway = Gateway()
    gateway.answers += [page(1, 2, after=0, through=2, last=3), CUT, page(3, after=2, through=3, last=3)]
    gateway.answers += [page(after=0, through=2, last=3), page(3, after=2, through=3, last=3)]
    async with talking(gateway) as client:
        assert await offsets(client.events("r", page_size=2)) == [1, 2, 3]
        assert await client.run("r").view() == fold([event(3)])
    assert [request.start.after_cursor for request in gateway.requests] == ["", "c2", "c2", "", "c2"]
    assert gateway.requests[-1].view == pb.VIEW_SETTLED


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(page(1, 3, after=0, through=3, last=3), id="within"),
        pytest.param(page(2, after=1, through=2, last=2), id="before"),
        pytest.param(page(after=0, through=0, last=3), id="nothing"),
    ],
)
async def test_a_page_with_a_hole_is_loud(bad: pb.ListRunEventsResponse) -> None:
    """Nothing is skipped in silence, and nothing is asked for without end."""
    gateway = Gateway()
    gateway.answers.append(bad)
    async with talking(gateway) as client:
        with pytest.raises(errors.InternalError, match="events"):
            await offsets(client.events("r"))


async def test_a_view_of_a_rolled_back_run_is_the_same_both_ways() -> None:
    """Followed raw and followed settled."""
    void = Event(offset=2, rollback=Rollback(component_ids=[""]))
    raw = message(batch=pb.EventBatch(events=[event(1), void, event(3)], through_offset=3))
    settled = message(batch=pb.EventBatch(events=[void, event(3)], through_offset=3))
    gateway = Gateway()
    gateway.streams += [[opened(0), raw, completed(3)], [opened(0), settled, completed(3)]]
    async with talking(gateway) as client:
        live = fold([each async for each in client.follow("r")])
        late = fold([each async for each in client.follow("r", view="settled")])
    assert live == late
    assert live.text == "3 "


# Synchronous programs


@contextmanager
def talking_synchronously(gateway: Gateway) -> Iterator[tuple[SyncClient, LoopThread]]:
    """The Gateway lives in the loop of the client: a process has one loop for gRPC."""
    thread = LoopThread.acquire()
    server = serving(gateway)
    # An asynchronous context manager returns awaitables, a loop takes coroutines.
    address, _ = thread.wait(coroutine(server.__aenter__()))
    try:
        with Client(address) as client:
            yield client, thread
        thread.wait(gateway.idle())
    finally:
        thread.wait(coroutine(server.__aexit__(None, None, None)))
        thread.release()


async def coroutine(work: Awaitable[Any]) -> Any:
    return await work


def test_a_synchronous_program_does_the_same() -> None:
    """Start, follow across a cut, wait, list; errors are the same; and the caller's span goes along."""
    gateway = Gateway(events=5)
    gateway.answers += [pb.StartRunResponse(run=Run(run_id="r"))]
    gateway.answers += [pb.GetRunResponse(run=Run(state=RUN_STATE_SUCCEEDED, output=encode([1])))]
    gateway.answers += [pb.ListRunsResponse(runs=[Run(run_id="r")]), Refusal(Code.NOT_FOUND, "RUN_NOT_FOUND")]
    gateway.streams.append([opened(0), batch(1, 2), CUT])
    with talking_synchronously(gateway) as (client, _):
        with TracerProvider().get_tracer("test").start_as_current_span("caller"):
            run = client.start("blog", {"topic": "tea"})
        assert run.run_id == "r"
        assert [each.offset for each in run.follow()] == [1, 2, 3, 4, 5]
        assert run.result() == [1]
        assert [each.run_id for each in client.list_runs()] == ["r"]
        with pytest.raises(errors.RunNotFound):
            client.run("x").get()
    assert "traceparent" in gateway.metadata[0]


def test_a_synchronous_iterator_can_be_left() -> None:
    """By break and by close; the stream ends at the Gateway. One that is left open ends with the loop."""
    gateway = Gateway(events=9)
    gateway.hold_at = 3
    with talking_synchronously(gateway) as (client, thread):
        for each in client.follow("r"):
            if each.offset == 2:
                break
        thread.wait(gateway.idle())
        events = client.follow("r", after=1)
        assert next(events).offset == 2
        events.close()
        thread.wait(gateway.idle())
        left = client.follow("r")
        next(left)
    left.close()


def test_a_synchronous_wait_can_be_interrupted() -> None:
    """Ctrl-C while a stream is silent ends the stream, and the client is as good as before."""
    gateway = Gateway(events=9)
    gateway.hold_at = 3
    main = threading.main_thread().ident
    assert main is not None
    with talking_synchronously(gateway) as (client, thread):
        events = client.follow("r", after=3)
        gateway.on_stall = lambda: signal.pthread_kill(main, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            next(events)
        gateway.on_stall = lambda: None
        thread.wait(gateway.idle())
        assert next(client.follow("r")).offset == 1


async def test_a_synchronous_client_is_refused_where_it_would_block_a_loop() -> None:
    """The message says what to do instead."""
    with pytest.raises(RuntimeError, match="async with"), Client():
        pass
