"""A client that somebody else wrote: it has the stubs that plain protoc made from `protos/`, and nothing of ours.

test_contract_client.py starts it, in an interpreter of its own: with the folder of the stubs, the addresses of a
Gateway and a Scheduler, and the function to call. What a function finds wrong, it raises.
"""

from __future__ import annotations

import json
import sys
from typing import Any, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from onward.v1 import executor_service_pb2, gateway_service_pb2, run_pb2, scheduler_service_pb2
from onward.v1.gateway_service_pb2_grpc import GatewayServiceStub
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

Code = grpc.StatusCode
Position = gateway_service_pb2.Position
RunState = run_pb2.RunState

Request = TypeVar("Request")
Response = TypeVar("Response")

CALL_S = 20.0


def start(gateway: GatewayServiceStub, workflow: str, **input: object) -> run_pb2.Run:
    payload = run_pb2.Payload(data=json.dumps(input).encode(), media_type="application/json")
    request = gateway_service_pb2.StartRunRequest(workflow=workflow, input=payload)
    response = gateway.StartRun(request, timeout=CALL_S)
    assert response.run.state == RunState.RUN_STATE_QUEUED or response.run.attempt
    return response.run


def read(
    gateway: GatewayServiceStub, run_id: str, start: Position, count: int = 0
) -> tuple[list[gateway_service_pb2.SubscribeRunResponse], list[int]]:
    """Subscribe, and return the messages and the offsets: to the end, or until `count` events have come."""
    messages: list[gateway_service_pb2.SubscribeRunResponse] = []
    offsets: list[int] = []
    call = gateway.SubscribeRun(gateway_service_pb2.SubscribeRunRequest(run_id=run_id, start=start))
    for message in call:
        if not messages:
            through = message.opened.after_offset
            assert message.WhichOneof("message") == "opened"
        messages.append(message)
        if message.WhichOneof("message") == "batch":
            assert message.batch.after_offset == through
            through = message.batch.through_offset
            offsets += [event.offset for event in message.batch.events]
        if count and len(offsets) >= count:
            call.cancel()
            break
    return messages, offsets


def refusal(
    call: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request
) -> tuple[Code, str, dict[str, str]]:
    """Return how a call fails, as the bytes in its trailing metadata say it."""
    failed: Exception | None = None
    try:
        call(request, timeout=CALL_S)
    except grpc.RpcError as error:
        failed = error
    assert isinstance(failed, grpc.Call), "it was not refused"
    status = status_pb2.Status.FromString(metadata(failed.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.domain == "onward"
    assert status.code == failed.code().value[0]
    return failed.code(), info.reason, dict(info.metadata)


def metadata(pairs: Any) -> dict[str, Any]:
    return dict(pairs)


def follow(channel: grpc.Channel) -> None:
    """Start, follow to the end, and go on from an offset, a cursor and the newest events."""
    gateway = GatewayServiceStub(channel)
    run = start(gateway, "talk", count=20, pause_s=0.005)
    cut, seen = read(gateway, run.run_id, Position(), count=5)
    messages, rest = read(gateway, run.run_id, Position(after_cursor=cut[-1].cursor))
    assert messages[-1].completed.run.state == RunState.RUN_STATE_SUCCEEDED
    assert json.loads(messages[-1].completed.run.output.data).split() == [f"word{i}" for i in range(10)] * 2
    assert rest, "the first stream was cut before the end"
    last = len(seen + rest)
    assert last > 20
    assert seen + rest == list(range(1, last + 1))

    whole = list(range(1, last + 1))
    assert read(gateway, run.run_id, Position())[1] == whole
    assert read(gateway, run.run_id, Position(after_offset=7))[1] == whole[7:]
    assert read(gateway, run.run_id, Position(last=3))[1] == whole[-3:]
    closed, none = read(gateway, run.run_id, Position(after_offset=last))
    assert none == []
    assert [message.WhichOneof("message") for message in closed] == ["opened", "completed"]

    page = gateway.ListRunEvents(gateway_service_pb2.ListRunEventsRequest(run_id=run.run_id, page_size=9))
    assert [event.offset for event in page.events] == whole[:9]
    assert read(gateway, run.run_id, Position(after_cursor=page.next_cursor))[1] == whole[9:]


def stop(channel: grpc.Channel) -> None:
    """Cancel a run that is watched, and try to resume what has ended."""
    gateway = GatewayServiceStub(channel)
    run = start(gateway, "wait", seconds=60.0)
    messages, _ = read(gateway, run.run_id, Position(), count=4)
    cancelling = gateway.CancelRun(gateway_service_pb2.CancelRunRequest(run_id=run.run_id, reason="enough"))
    assert cancelling.run.state in (RunState.RUN_STATE_CANCELLING, RunState.RUN_STATE_CANCELLED)
    rest, _ = read(gateway, run.run_id, Position(after_cursor=messages[-1].cursor))
    assert rest[-1].completed.run.state == RunState.RUN_STATE_CANCELLED
    resume = gateway_service_pb2.ResumeRunRequest(run_id=run.run_id)
    assert refusal(gateway.ResumeRun, resume) == (
        Code.FAILED_PRECONDITION,
        "ERROR_REASON_RUN_STATE",
        {"state": "CANCELLED"},
    )


def invoke(channel: grpc.Channel) -> None:
    """Wait for a run's end in the call that starts it; the run's name comes before the answer."""
    gateway = GatewayServiceStub(channel)
    payload = run_pb2.Payload(data=b'{"value": "tea"}', media_type="application/json")
    request = gateway_service_pb2.InvokeWorkflowRequest(
        start=gateway_service_pb2.StartRunRequest(workflow="echo", input=payload)
    )
    response, call = gateway.InvokeWorkflow.with_call(request, timeout=CALL_S)
    assert metadata(call.initial_metadata())["onward-run-id"] == response.run.run_id
    assert response.run.state == RunState.RUN_STATE_SUCCEEDED
    assert json.loads(response.run.output.data) == "tea"

    # The name is there while the call still waits, and when the caller leaves, the run goes on. (For a call with one
    # answer, Python shows initial metadata with the answer only: hence the call as if there were several.)
    request.start.workflow, request.start.input.data = "wait", b'{"seconds": 60.0}'
    waiting = channel.unary_stream(
        "/onward.v1.GatewayService/InvokeWorkflow",
        request_serializer=gateway_service_pb2.InvokeWorkflowRequest.SerializeToString,
        response_deserializer=gateway_service_pb2.InvokeWorkflowResponse.FromString,
    )(request, timeout=CALL_S)
    run_id = metadata(waiting.initial_metadata())["onward-run-id"]
    assert waiting.is_active()
    waiting.cancel()
    run = gateway.GetRun(gateway_service_pb2.GetRunRequest(run_id=run_id)).run
    assert run.state in (RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_RUNNING)
    gateway.CancelRun(gateway_service_pb2.CancelRunRequest(run_id=run_id))

    request.start.workflow, request.start.input.data = "fail", b'{"message": "no tea"}'
    failed = gateway.InvokeWorkflow(request, timeout=CALL_S).run
    assert failed.state == RunState.RUN_STATE_FAILED, "a run's failure is data"
    assert failed.error.message == "no tea"


def refuse(channel: grpc.Channel) -> None:
    """Whatever cannot be asked has a code, a reason and what helps."""
    gateway = GatewayServiceStub(channel)
    get = gateway_service_pb2.GetRunRequest(run_id="nobody")
    assert refusal(gateway.GetRun, get) == (Code.NOT_FOUND, "ERROR_REASON_RUN_NOT_FOUND", {"run_id": "nobody"})
    nothing = gateway_service_pb2.StartRunRequest(workflow="nothing")
    assert refusal(gateway.StartRun, nothing) == (
        Code.NOT_FOUND,
        "ERROR_REASON_WORKFLOW_NOT_FOUND",
        {"workflow": "nothing"},
    )
    wrong = gateway_service_pb2.StartRunRequest(workflow="talk", input=run_pb2.Payload(data=b'{"count": "many"}'))
    assert refusal(gateway.StartRun, wrong)[:2] == (Code.INVALID_ARGUMENT, "ERROR_REASON_INPUT_INVALID")
    run = start(gateway, "echo")
    _, offsets = read(gateway, run.run_id, Position())
    ahead = gateway_service_pb2.ListRunEventsRequest(run_id=run.run_id, start=Position(after_offset=1_000))
    assert refusal(gateway.ListRunEvents, ahead) == (
        Code.OUT_OF_RANGE,
        "ERROR_REASON_OFFSET_AHEAD",
        {"last_offset": str(offsets[-1])},
    )
    ahead.start.after_cursor = "no cursor"
    assert refusal(gateway.ListRunEvents, ahead)[:2] == (Code.INVALID_ARGUMENT, "ERROR_REASON_CURSOR_INVALID")
    again = gateway_service_pb2.StartRunRequest(workflow="echo", request_id="one")
    assert not gateway.StartRun(again).replayed
    assert gateway.StartRun(again).replayed
    again.workflow = "steps"
    assert refusal(gateway.StartRun, again)[:2] == (Code.ALREADY_EXISTS, "ERROR_REASON_REQUEST_ID_REUSED")


def ask_servers(addresses: dict[str, str]) -> None:
    """Every server says whether it is healthy, and describes its service as the contract does."""
    services = {
        service.full_name: (addresses[name], service)
        for name, module in [
            ("gateway", gateway_service_pb2),
            ("scheduler", scheduler_service_pb2),
            ("executor", executor_service_pb2),
        ]
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    assert len(services) == 3
    for name, (address, service) in services.items():
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for asked in ("", name):
                request = health_pb2.HealthCheckRequest(service=asked)
                answer = health.Check(request, timeout=CALL_S)  # type: ignore[attr-defined]  # made at run time
                assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
            asking = reflection_pb2.ServerReflectionRequest
            questions = [asking(list_services=""), asking(file_containing_symbol=name)]
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            answers = reflection.ServerReflectionInfo(iter(questions), timeout=CALL_S)  # type: ignore[operator]
            listed, described = answers
            assert name in [each.name for each in listed.list_services_response.service]
            assert service.file.serialized_pb in described.file_descriptor_response.file_descriptor_proto


def main(stubs: str, gateway: str, scheduler: str, what: str) -> None:
    """Do what is asked for, and make sure that it was done with the stubs."""
    with grpc.insecure_channel(gateway) as channel, grpc.insecure_channel(scheduler) as beside:
        if what == "ask_servers":
            known = SchedulerServiceStub(beside).ListExecutors(scheduler_service_pb2.ListExecutorsRequest())
            executors = [executor.address for executor in known.executors]
            ask_servers({"gateway": gateway, "scheduler": scheduler, "executor": executors[0]})
        else:
            {"follow": follow, "stop": stop, "invoke": invoke, "refuse": refuse}[what](channel)
    ours = [module.__file__ for name, module in sys.modules.items() if name.split("_")[0].split(".")[0] == "onward"]
    assert all(file is None or file.startswith(stubs) for file in ours), "this is not the client that was meant"


if __name__ == "__main__":
    main(sys.argv[2], *sys.argv[4:])
