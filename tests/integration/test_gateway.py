"""The Gateway's requests: what is taken, what is refused and why, and who is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.gateway import Door, Log, bare_redis, begun, client, delta, follow, gateway, refused, serve_workflow
from tests.runlog import append, ended, log_of

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.gateway_service_pb2 import (
    CancelRunRequest,
    GetRunRequest,
    InvokeWorkflowRequest,
    InvokeWorkflowResponse,
    ListRunsRequest,
    ListWorkflowsRequest,
    ReadBlobRequest,
    ResumeRunRequest,
    SignalRunRequest,
    StartRunRequest,
    SubscribeRunRequest,
)
from onward.v1.run_pb2 import Payload, Run, RunState
from onward.v1.scheduler_service_pb2 import (
    BranchRunRequest,
    BranchRunResponse,
    DeliverSignalRequest,
    DeliverSignalResponse,
    StopRunRequest,
    StopRunResponse,
    SubmitRunRequest,
    SubmitRunResponse,
    WakeRunRequest,
    WakeRunResponse,
)
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceServicer, add_SchedulerServiceServicer_to_server
from onward_gateway import app
from onward_gateway.access import Access
from onward_gateway.calls import Calls
from onward_gateway.servicer import SERVICE, GatewayServicer, add_to
from onward_gateway.settings import Settings
from onward_runlog import keys
from onward_runlog.runs import Runs, new_run_id
from onward_runlog.store import Store
from onward_scheduler import app as scheduler_app
from onward_scheduler.settings import Settings as SchedulerSettings
from onward_serving.errors import Refused, draining, rpc_errors
from onward_serving.server import serving

SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "words": {"type": "integer", "minimum": 1}},
    "required": ["topic"],
}
TEA = Payload(data=b'{"topic": "tea"}')
Answer = Callable[[Any, Any], Awaitable[Any]]


@pytest.fixture
async def scheduler(redis_url: str, store: Store) -> AsyncIterator[str]:
    async with scheduler_app.opened(SchedulerSettings(redis_url=redis_url, listen="127.0.0.1:0")) as serving:
        yield serving.address


@pytest.fixture
async def door(redis_url: str, store: Store, scheduler: str) -> AsyncIterator[Door]:
    """A Gateway with a real Scheduler, and a deployment that serves `blog` but has room for nothing."""
    await serve_workflow(store, schema=json.dumps(SCHEMA).encode())
    async with gateway(redis_url, schedulers=(scheduler,)) as door:
        yield door


class ScriptedScheduler(SchedulerServiceServicer):
    """Answers as the test says, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[Any] = []
        self._answer = answer

    async def _do(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        async with rpc_errors(context):
            return await self._answer(request, context)

    SubmitRun = BranchRun = StopRun = DeliverSignal = WakeRun = _do
    RegisterExecutor = ListExecutors = SetTraffic = ListDeployments = _do


async def yes(request: Any, _: Any) -> Any:
    match request:
        case SubmitRunRequest():
            return SubmitRunResponse(run=Run(run_id=request.start.run_id or "its-own"))
        case StopRunRequest():
            return StopRunResponse(run=Run(run_id=request.run_id, state=RunState.RUN_STATE_CANCELLING))
        case DeliverSignalRequest():
            return DeliverSignalResponse(offset=7)
        case BranchRunRequest():
            return BranchRunResponse(run=Run(run_id=request.fork.new_run_id or "its-own"))
        case WakeRunRequest():
            return WakeRunResponse(run=Run(run_id=request.run_id, state=RunState.RUN_STATE_QUEUED))


@contextlib.asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[tuple[ScriptedScheduler, str]]:
    servicer = ScriptedScheduler(answer)

    def add(server: grpc.aio.Server) -> None:
        add_SchedulerServiceServicer_to_server(servicer, server)

    async with serving(add, "127.0.0.1:0", services=[], grace_s=0.0) as server:
        yield servicer, server.address


NOBODY = "127.0.0.1:1"
"""Nothing listens there."""


# Starting.


async def test_a_run_is_started_and_read(door: Door, store: Store) -> None:
    request = StartRunRequest(
        workflow="blog",
        input=TEA,
        labels={"user": "ann"},
        priority=5,
        fairness_key="ann",
        run_timeout=Duration(seconds=60),
    )
    response = await door.stub.StartRun(request)
    assert not response.replayed
    assert not response.run.HasField("input")
    run = (await door.stub.GetRun(GetRunRequest(run_id=response.run.run_id))).run
    assert (run.workflow, run.namespace, run.state) == ("blog", "default", RunState.RUN_STATE_QUEUED)
    assert (run.deployment, run.priority, run.fairness_key, dict(run.labels)) == ("build", 5, "ann", {"user": "ann"})
    assert (run.input.data, run.input.size) == (TEA.data, len(TEA.data))
    assert run.deadline.seconds - run.create_time.seconds in (59, 60)
    assert [each.run_id for each in (await door.stub.ListRuns(ListRunsRequest())).runs] == [run.run_id]
    assert len(await log_of(store, run)) == 1


async def test_a_repeat_returns_the_first_run(door: Door) -> None:
    first = await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA, request_id="req"))
    again = await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA, request_id="req"))
    assert (first.replayed, again.replayed) == (False, True)
    assert first.run.run_id == again.run.run_id == new_run_id("default", "req")
    other = StartRunRequest(workflow="blog", input=Payload(data=b'{"topic": "coffee"}'), request_id="req")
    failure = await refused(door.stub.StartRun(other))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert failure.metadata == {"run_id": first.run.run_id}
    chosen = await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA, run_id="chosen"))
    assert chosen.run.run_id == "chosen"
    assert len((await door.stub.ListRuns(ListRunsRequest())).runs) == 2


async def test_without_request_id_a_repeat_is_a_new_run(door: Door) -> None:
    responses = [await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA)) for _ in range(2)]
    assert [response.replayed for response in responses] == [False, False]
    assert responses[0].run.run_id != responses[1].run.run_id


async def test_a_repeat_is_answered_though_its_deployment_changed_meanwhile(
    door: Door, store: Store, redis_url: str
) -> None:
    first = await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA, request_id="req"))
    stricter = json.dumps({**SCHEMA, "required": ["topic", "words"]}).encode()
    await serve_workflow(store, schema=stricter)
    async with asyncio.timeout(5):  # the new schema holds as soon as it is known here
        while True:
            try:
                await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA))
            except grpc.aio.AioRpcError:
                break
    failure = await refused(door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA)))
    assert failure.reason == "INPUT_INVALID"
    again = await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA, request_id="req"))
    assert (again.run.run_id, again.replayed) == (first.run.run_id, True)
    async with bare_redis(redis_url) as redis:
        await redis.delete(f"{keys.REGISTRY}:workflows")
    await asyncio.sleep(0)
    again = await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA, request_id="req"))
    assert (again.run.run_id, again.replayed) == (first.run.run_id, True)


async def test_an_input_that_breaks_the_schema_starts_nothing(door: Door) -> None:
    wrong = StartRunRequest(workflow="blog", input=Payload(data=b'{"words": 0}'), run_id="never")
    for failure in (
        await refused(door.stub.StartRun(wrong)),
        await refused(door.stub.InvokeWorkflow(InvokeWorkflowRequest(start=wrong))),
    ):
        assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_INVALID")
        assert set(failure.violations) == {"", "/words"}
        assert "topic" in failure.violations[""]
    broken = StartRunRequest(workflow="blog", input=Payload(data=b"{"), run_id="never")
    assert (await refused(door.stub.StartRun(broken))).reason == "INPUT_INVALID"
    assert (await refused(door.stub.StartRun(StartRunRequest(workflow="blog")))).reason == "INPUT_INVALID"
    assert (await refused(door.stub.GetRun(GetRunRequest(run_id="never")))).reason == "RUN_NOT_FOUND"


@pytest.mark.parametrize("letter", ["a", "%", "é", "中", "😀"])
@pytest.mark.parametrize(("count", "field", "text"), [(50, 200, 250), (1, 2_000, 2_000), (1_000, 1, 1)])
async def test_a_refusal_arrives_in_whatever_letters(
    store: Store, redis_url: str, letter: str, count: int, field: int, text: int
) -> None:
    """Clients take 8 KiB of metadata. A message has three bytes there for each that is not plain ASCII."""
    await serve_workflow(store, "many", schema=b'{"additionalProperties": {"type": "integer"}}')
    value = {letter * field + str(number): letter * text for number in range(count)}
    request = StartRunRequest(workflow="many", input=Payload(data=json.dumps(value, ensure_ascii=False).encode()))
    async with gateway(redis_url) as door:
        failure = await refused(door.stub.StartRun(request))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_INVALID")
    assert failure.message.startswith(f"the input is invalid: /{letter}")
    assert len(failure.violations) == count or failure.violations[""].startswith("and ")


async def test_what_nobody_serves(door: Door) -> None:
    failure = await refused(door.stub.StartRun(StartRunRequest(workflow="nobody")))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND")
    assert failure.metadata == {"workflow": "nobody"}
    request = StartRunRequest(workflow="blog", input=TEA, deployment="none")
    failure = await refused(door.stub.StartRun(request))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "DEPLOYMENT_NOT_FOUND")
    assert failure.metadata == {"deployment": "none"}


async def test_a_malformed_request_is_told_with_everything_that_is_wrong(door: Door) -> None:
    failure = await refused(door.stub.StartRun(StartRunRequest(workflow="/", run_id="/", priority=1_000)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")
    assert set(failure.violations) == {"workflow", "run_id", "priority"}
    failure = await refused(door.stub.ListRuns(ListRunsRequest(page_token="nonsense")))
    assert (failure.reason, set(failure.violations)) == ("REQUEST_INVALID", {"page_token"})
    many = ListRunsRequest(labels={str(number): "" for number in range(33)})
    failure = await refused(door.stub.ListRuns(many))
    assert (failure.reason, set(failure.violations)) == ("REQUEST_INVALID", {"labels"})
    large = StartRunRequest(workflow="blog", input=Payload(data=b" " * (3 * 1024 * 1024 + 1)))
    failure = await refused(door.stub.StartRun(large))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_LARGE")
    assert failure.metadata == {"limit": str(3 * 1024 * 1024), "size": str(3 * 1024 * 1024 + 1)}


LONGEST_S = 315_576_000_000
END = Timestamp(seconds=253_402_300_799)


async def test_the_longest_durations_and_the_last_time_are_taken(door: Door) -> None:
    """A deadline that would be later than any time that can be told is the last one."""
    longest, end = Duration(seconds=LONGEST_S), Timestamp(seconds=END.seconds, nanos=999_999_999)
    for fields in (
        {"run_timeout": longest},
        {"run_timeout": longest, "schedule_time": end},
        {"run_timeout": Duration(nanos=1), "schedule_time": end},
        {"run_timeout": longest, "schedule_time": Timestamp(seconds=-62_135_596_800)},
    ):
        started = await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA, **fields))
        run = (await door.stub.GetRun(GetRunRequest(run_id=started.run.run_id))).run
        assert run.deadline == END, fields
    start = StartRunRequest(workflow="blog", input=TEA, run_id="waited")
    await door.stub.StartRun(start)
    waits = asyncio.ensure_future(door.stub.InvokeWorkflow(InvokeWorkflowRequest(start=start, wait=longest)))
    await door.stub.GetRun(GetRunRequest(run_id="waited"))
    await door.stub.CancelRun(CancelRunRequest(run_id="waited"))
    assert (await waits).run.state == RunState.RUN_STATE_CANCELLED


@pytest.mark.parametrize(
    "fields",
    [
        *(
            {"run_timeout": Duration(seconds=seconds, nanos=nanos)}
            for seconds, nanos in [(LONGEST_S, 1), (1 << 62, 0), (-1, 0), (0, 0), (1, -1), (0, 1_000_000_000)]
        ),
        *(
            {"schedule_time": Timestamp(seconds=seconds, nanos=nanos)}
            for seconds, nanos in [(END.seconds + 1, 0), (1 << 62, 0), (-62_135_596_801, 0), (0, -1)]
        ),
    ],
    ids=lambda fields: " ".join(str(fields).split()),
)
async def test_what_is_no_duration_or_no_time_is_refused(door: Door, fields: dict[str, Any]) -> None:
    failure = await refused(door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA, **fields)))
    assert (failure.reason, set(failure.violations)) == ("REQUEST_INVALID", set(fields))


async def test_the_largest_input_is_taken_and_given_back(door: Door) -> None:
    topic = "x" * (3 * 1024 * 1024 - len('{"topic": ""}'))
    largest = Payload(data=b'{"topic": "%s"}' % topic.encode())
    run = (await door.stub.StartRun(StartRunRequest(workflow="blog", input=largest))).run
    assert (await door.stub.GetRun(GetRunRequest(run_id=run.run_id))).run.input.data == largest.data


async def test_every_request_names_a_run_that_exists(door: Door) -> None:
    requests: list[Awaitable[Any]] = [
        door.stub.GetRun(GetRunRequest(run_id="nobody")),
        door.stub.GetRun(GetRunRequest(run_id="nobody", wait=Duration(seconds=5))),
        door.stub.CancelRun(CancelRunRequest(run_id="nobody")),
        door.stub.SignalRun(SignalRunRequest(run_id="nobody", name="go")),
        door.stub.ResumeRun(ResumeRunRequest(run_id="nobody")),
        read_blob(door, "nobody", "blob:1-1"),
        follow(door, "nobody"),
    ]
    for request in requests:
        failure = await refused(request)
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
        assert failure.metadata == {"run_id": "nobody"}


# Cancelling, signalling, resuming.


async def test_a_run_is_cancelled(door: Door) -> None:
    run = (await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA))).run
    response = await door.stub.CancelRun(CancelRunRequest(run_id=run.run_id, reason="enough"))
    assert response.run.state == RunState.RUN_STATE_CANCELLED
    assert not response.run.HasField("input")
    again = await door.stub.CancelRun(CancelRunRequest(run_id=run.run_id, reason="again"))
    assert again.run == response.run
    followed = await follow(door, run.run_id)
    assert followed.events[-1].run_state_changed.reason == "enough"
    assert followed.end is not None
    assert followed.end.completed.run.state == RunState.RUN_STATE_CANCELLED


async def test_a_run_is_signalled(door: Door, store: Store) -> None:
    run = (await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA))).run
    request = SignalRunRequest(run_id=run.run_id, name="approve", value=Payload(data=b"true"), request_id="req")
    first = await door.stub.SignalRun(request)
    again = await door.stub.SignalRun(request)
    assert (first.offset, first.replayed, again.offset, again.replayed) == (2, False, 2, True)
    request.value.data = b"false"
    failure = await refused(door.stub.SignalRun(request))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    plain = [await door.stub.SignalRun(SignalRunRequest(run_id=run.run_id, name="go")) for _ in range(2)]
    assert [(response.offset, response.replayed) for response in plain] == [(3, False), (4, False)]
    await door.stub.CancelRun(CancelRunRequest(run_id=run.run_id))
    failure = await refused(door.stub.SignalRun(SignalRunRequest(run_id=run.run_id, name="late")))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_STATE")
    assert failure.metadata == {"state": "CANCELLED"}


async def test_a_run_that_is_not_paused_is_not_resumed(door: Door) -> None:
    run = (await door.stub.StartRun(StartRunRequest(workflow="blog", input=TEA))).run
    failure = await refused(door.stub.ResumeRun(ResumeRunRequest(run_id=run.run_id)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_STATE")


# Waiting.


async def test_get_run_waits_for_the_end(door: Door, store: Store) -> None:
    log = await begun(store)
    waits = [
        asyncio.ensure_future(door.stub.GetRun(GetRunRequest(run_id="run", wait=Duration(seconds=30))))
        for _ in range(5)
    ]
    short = await door.stub.GetRun(GetRunRequest(run_id="run", wait=Duration(nanos=50_000_000)))
    assert short.run.state not in (RunState.RUN_STATE_SUCCEEDED, RunState.RUN_STATE_UNSPECIFIED)
    await log.close(delta())
    for wait in waits:
        run = (await wait).run
        assert (run.state, run.output.data, run.input.data) == (RunState.RUN_STATE_SUCCEEDED, b'"done"', b"{}")
        assert run.log.closed
    ended = await door.stub.GetRun(GetRunRequest(run_id="run", wait=Duration(seconds=30)))
    assert ended.run == run


async def test_get_run_does_not_wait_for_a_paused_run(door: Door, store: Store) -> None:
    """It does not end by itself: whoever waits is told at once, and so is who comes later."""
    log = await begun(store)
    waits = asyncio.ensure_future(door.stub.GetRun(GetRunRequest(run_id="run", wait=Duration(seconds=60))))
    await log.append(delta())
    await append(store, log.run, 1, 2, ended(RunState.RUN_STATE_PAUSED), end=RunState.RUN_STATE_PAUSED)
    assert (await waits).run.state == RunState.RUN_STATE_PAUSED
    again = await door.stub.GetRun(GetRunRequest(run_id="run", wait=Duration(seconds=60)))
    assert again.run.state == RunState.RUN_STATE_PAUSED


async def test_invoke_names_its_run_at_once_and_waits_for_the_end(door: Door, store: Store) -> None:
    """Called as if it answered with a stream, which is the same on the wire: Python's unary calls, of either kind, show
    initial metadata only at their end.
    """
    request = InvokeWorkflowRequest(start=StartRunRequest(workflow="blog", input=TEA))
    async with grpc.aio.insecure_channel(door.grpc) as channel:
        call = channel.unary_stream(
            f"/{SERVICE}/InvokeWorkflow",
            request_serializer=InvokeWorkflowRequest.SerializeToString,
            response_deserializer=InvokeWorkflowResponse.FromString,
        )(request)
        run_id = dict(await call.initial_metadata())["onward-run-id"]
        assert isinstance(run_id, str)
        [taken] = await Runs(store).claim(store.place("default", run_id)[0], "build", holder="hand", ttl_s=60, limit=1)
        await Log(store, taken.run, taken.attempt).close()
        [response] = [response async for response in call]
    assert (response.run.run_id, response.run.state) == (run_id, RunState.RUN_STATE_SUCCEEDED)
    assert response.run.output.data == b'"done"'
    assert not response.run.HasField("input")


async def test_invoke_does_not_wait_for_a_paused_run(door: Door, store: Store) -> None:
    """Whether it pauses meanwhile, or had been when it was invoked again."""
    start = StartRunRequest(workflow="blog", input=TEA, run_id="run")
    await door.stub.StartRun(start)
    [taken] = await Runs(store).claim(store.place("default", "run")[0], "build", holder="hand", ttl_s=60, limit=1)
    again = InvokeWorkflowRequest(start=start)
    waits = asyncio.ensure_future(door.stub.InvokeWorkflow(again))
    log = Log(store, taken.run, taken.attempt)
    await log.append(delta())
    await append(store, log.run, taken.attempt, 2, ended(RunState.RUN_STATE_PAUSED), end=RunState.RUN_STATE_PAUSED)
    assert (await waits).run.state == RunState.RUN_STATE_PAUSED
    assert (await door.stub.InvokeWorkflow(again)).run.state == RunState.RUN_STATE_PAUSED


async def test_invoke_returns_when_its_wait_has_passed(door: Door) -> None:
    request = InvokeWorkflowRequest(start=StartRunRequest(workflow="blog", input=TEA), wait=Duration(nanos=1))
    run = (await door.stub.InvokeWorkflow(request)).run
    assert run.state == RunState.RUN_STATE_QUEUED


async def test_a_run_goes_on_when_the_deadline_of_its_invoke_passes(door: Door) -> None:
    request = InvokeWorkflowRequest(start=StartRunRequest(workflow="blog", input=TEA, run_id="run"))
    call = door.stub.InvokeWorkflow(request, timeout=0.5)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert dict(await call.initial_metadata())["onward-run-id"] == "run"
    assert (await door.stub.GetRun(GetRunRequest(run_id="run"))).run.state == RunState.RUN_STATE_QUEUED


# Blobs.


async def read_blob(door: Door, run_id: str, blob_uri: str, start: int = 0) -> list[bytes]:
    request = ReadBlobRequest(run_id=run_id, blob_uri=blob_uri, start=start)
    return [response.data async for response in door.stub.ReadBlob(request)]


async def test_a_blob_is_read_in_pieces_from_anywhere(door: Door, store: Store) -> None:
    await begun(store)
    mebibyte = 1024 * 1024
    value = bytes(range(256)) * (2 * mebibyte // 256) + b"rest"
    base, ref = store.place("default", "run")
    await store.call("blob", base, ref, 1, "1-1", value)
    await store.call("blob", base, ref, 1, "1-2", b"")
    pieces = await read_blob(door, "run", "blob:1-1")
    assert [len(piece) for piece in pieces] == [mebibyte, mebibyte, 4]
    assert b"".join(pieces) == value
    for start in (1, mebibyte, 2 * mebibyte + 3, 2 * mebibyte + 4, 9 * mebibyte, 2**53):
        assert b"".join(await read_blob(door, "run", "blob:1-1", start)) == value[start:]
    assert await read_blob(door, "run", "blob:1-2") == []
    failure = await refused(read_blob(door, "run", "blob:1-1", 2**63 - 1))
    assert (failure.reason, set(failure.violations)) == ("REQUEST_INVALID", {"start"})
    for missing in ("blob:1-3", "blob:", "1-1", "log"):
        failure = await refused(read_blob(door, "run", missing))
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "BLOB_NOT_FOUND")
        assert failure.metadata == {"blob_uri": missing}


# Workflows.


async def test_workflows_are_listed_by_name_as_the_newest_deployment_serves_them(door: Door, store: Store) -> None:
    await serve_workflow(store, "audit")
    await serve_workflow(store, "blog", schema=b'{"type": "object"}', deployment="build-2", executor="e2")
    response = await door.stub.ListWorkflows(ListWorkflowsRequest())
    assert [workflow.name for workflow in response.workflows] == ["audit", "blog"]
    blog = response.workflows[-1]
    assert blog.deployments[0] == "build-2"
    assert blog.input_schema.data == b'{"type": "object"}'


# Schedulers.


async def test_the_next_scheduler_is_asked_where_one_does_not_answer(store: Store, redis_url: str) -> None:
    async def drains(_: Any, __: Any) -> None:
        raise draining()

    await serve_workflow(store)
    async with (
        scripted(drains) as (first, first_address),
        scripted(yes) as (second, second_address),
        gateway(redis_url, schedulers=(NOBODY, first_address, second_address)) as door,
    ):
        response = await door.stub.StartRun(StartRunRequest(workflow="blog"))
        assert (
            [each.start.run_id for each in first.asked]
            == [each.start.run_id for each in second.asked]
            == [response.run.run_id]
        ), "a run that was not named has a name before anybody is asked, so that two Schedulers cannot make two"
        await door.stub.SignalRun(SignalRunRequest(run_id="run", name="go"))
        assert len(first.asked) == 1, "who answered last is asked first"
        assert second.asked[1].signal.request_id
        assert (await door.stub.CancelRun(CancelRunRequest(run_id="run", reason="why"))).run.run_id == "run"
        assert second.asked[2] == StopRunRequest(namespace="default", run_id="run", reason="why")
        woken = (await door.stub.ResumeRun(ResumeRunRequest(run_id="run", deployment="d"))).run
        assert woken.state == RunState.RUN_STATE_QUEUED
        assert second.asked[3] == WakeRunRequest(namespace="default", run_id="run", deployment="d")


async def test_no_scheduler_answers(store: Store, redis_url: str) -> None:
    await serve_workflow(store)
    await begun(store)
    async with gateway(redis_url, schedulers=(NOBODY, "127.0.0.1:2")) as door:
        for request in (
            door.stub.StartRun(StartRunRequest(workflow="blog")),
            door.stub.CancelRun(CancelRunRequest(run_id="run")),
            door.stub.SignalRun(SignalRunRequest(run_id="run", name="go")),
            door.stub.ResumeRun(ResumeRunRequest(run_id="run")),
        ):
            failure = await refused(request)
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "SCHEDULER_UNAVAILABLE")
            assert failure.retry_s is not None
        assert (await door.stub.GetRun(GetRunRequest(run_id="run"))).run.run_id == "run", "reading goes on"


async def test_a_schedulers_refusal_passes_unchanged(store: Store, redis_url: str) -> None:
    async def refuse(_: Any, __: Any) -> None:
        raise Refused(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            ErrorReason.ERROR_REASON_LIMIT_REACHED,
            "too many",
            {"some": "thing"},
            [("field", "why")],
            2.5,
        )

    async def no_store(_: Any, __: Any) -> None:
        raise Refused(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_STORE_UNAVAILABLE, "gone")

    await serve_workflow(store)
    async with (
        scripted(refuse) as (_, full),
        scripted(no_store) as (_, without_store),
        scripted(yes) as (second, second_address),
        gateway(redis_url, schedulers=(full, second_address)) as door,
        gateway(redis_url, schedulers=(without_store, second_address)) as other,
    ):
        failure = await refused(door.stub.StartRun(StartRunRequest(workflow="blog")))
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")
        assert (failure.metadata, failure.violations, failure.retry_s) == ({"some": "thing"}, {"field": "why"}, 2.5)
        assert failure.message == "too many"
        failure = await refused(other.stub.StartRun(StartRunRequest(workflow="blog")))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert second.asked == [], "another Scheduler has the same store"


async def test_the_callers_trace_reaches_the_scheduler(store: Store, redis_url: str) -> None:
    await serve_workflow(store)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with (
        scripted(yes) as (scheduler, address),
        gateway(redis_url, schedulers=(address,), namespace="tenant") as door,
    ):
        for value in (trace, "nonsense"):
            await door.stub.StartRun(StartRunRequest(workflow="blog"), metadata=(("traceparent", value),))
        await door.stub.StartRun(StartRunRequest(workflow="blog"))
    assert [request.trace_parent for request in scheduler.asked] == [trace, "", ""]
    assert {request.namespace for request in scheduler.asked} == {"tenant"}


# The process.


async def http_get(address: str, path: str) -> tuple[int, bytes]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
    response = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def health_of(address: str, service: str = SERVICE) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)


async def test_health_and_reflection(door: Door) -> None:
    assert await http_get(door.http, "/healthz") == (200, b'{"status":"ready"}')
    assert (await http_get(door.http, "/nothing"))[0] == 404
    for service in ("", SERVICE):
        assert await health_of(door.grpc, service) == health_pb2.HealthCheckResponse.SERVING
    async with grpc.aio.insecure_channel(door.grpc) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = await call.read()
        call.cancel()
    assert SERVICE in [service.name for service in listed.list_services_response.service]


async def test_a_gateway_waits_for_its_store_and_says_so(redis_url: str) -> None:
    """Both doors are open before the store was set up, and tell that nobody should come in yet."""
    found: asyncio.Future[app.Doors] = asyncio.get_running_loop().create_future()
    announced: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def run() -> None:
        settings = Settings(redis_url=redis_url, grpc="127.0.0.1:0", http="127.0.0.1:0")
        await app.serve(settings, stop, lambda **doors: announced.set_result(doors), listening=found.set_result)

    serving_ = asyncio.create_task(run())
    doors = await found
    assert (await http_get(doors.http, "/healthz"))[0] == 503
    assert await health_of(doors.grpc) == health_pb2.HealthCheckResponse.NOT_SERVING
    async with client(doors.grpc) as stub:
        failure = await refused(stub.GetRun(GetRunRequest(run_id="run")))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert not announced.done()
        async with bare_redis(redis_url) as redis:
            await redis.hset(keys.STORE, mapping={"partitions": 16, "digest_key": b"x" * 32})
        assert await announced == {"grpc": doors.grpc, "http": doors.http}
        assert (await refused(stub.GetRun(GetRunRequest(run_id="run")))).reason == "RUN_NOT_FOUND"
    stop.set()
    await serving_


async def test_a_gateway_that_waits_can_be_stopped(redis_url: str) -> None:
    found: asyncio.Future[app.Doors] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    settings = Settings(redis_url=redis_url, grpc="127.0.0.1:0", http="127.0.0.1:0")

    def never(**_: str) -> None:
        raise AssertionError("not ready")

    serving_ = asyncio.create_task(app.serve(settings, stop, never, listening=found.set_result))
    await found
    stop.set()
    await serving_


async def test_a_taken_port_is_told(door: Door, redis_url: str) -> None:
    for taken in ({"grpc": door.grpc}, {"http": door.http}):
        with pytest.raises(OSError, match=re.escape(next(iter(taken.values())))):
            async with gateway(redis_url, **taken):
                pass


async def test_a_draining_gateway_refuses_what_is_new(redis_url: str) -> None:
    access = Access("default", None)
    calls = Calls(Settings(redis_url=redis_url), access)
    calls.drain()

    def add(server: grpc.aio.Server) -> None:
        add_to(server, GatewayServicer(calls, access))

    async with serving(add, "127.0.0.1:0", services=[SERVICE], grace_s=0.0) as server, client(server.address) as stub:
        stream = stub.SubscribeRun(SubscribeRunRequest(run_id="run"))
        for request in (
            stub.StartRun(StartRunRequest(workflow="blog")),
            stub.GetRun(GetRunRequest(run_id="run")),
            anext(aiter(stream)),
        ):
            failure = await refused(request)
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert failure.retry_s is not None


async def test_a_gateway_that_drains_ends_what_waits(store: Store, redis_url: str) -> None:
    await begun(store)
    async with contextlib.AsyncExitStack() as stack:
        async with gateway(redis_url) as door:
            stub = await stack.enter_async_context(client(door.grpc))
            wait = asyncio.ensure_future(stub.GetRun(GetRunRequest(run_id="run", wait=Duration(seconds=60))))
            await stub.GetRun(GetRunRequest(run_id="run"))  # the one before is under way
        failure = await refused(wait)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def test_a_bug_is_told_by_an_id_that_is_logged(
    door: Door, store: Store, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await begun(store)
    base, ref = store.place("default", "run")
    async with bare_redis(redis_url) as redis:
        await redis.hset(keys.run(base, ref), "run", b"\xff\xff not a Run")
    failure = await refused(door.stub.GetRun(GetRunRequest(run_id="run")))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert failure.metadata["id"] in caplog.text
    assert failure.metadata["id"] in failure.message
