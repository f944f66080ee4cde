"""The generated stubs, called synchronously on a channel that goes nowhere: a test takes the calls and answers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc_testing
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from onward.v1 import executor_service_pb2, gateway_service_pb2, scheduler_service_pb2
from onward.v1.event_pb2 import Event, OutputDelta
from onward.v1.executor_service_pb2_grpc import ExecutorServiceStub
from onward.v1.gateway_service_pb2 import (
    Completed,
    EventBatch,
    Opened,
    Position,
    StartRunRequest,
    StartRunResponse,
    SubscribeRunRequest,
    SubscribeRunResponse,
)
from onward.v1.gateway_service_pb2_grpc import GatewayServiceStub
from onward.v1.run_pb2 import RUN_STATE_QUEUED, RUN_STATE_SUCCEEDED, Payload, Run
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

GATEWAY = gateway_service_pb2.DESCRIPTOR.services_by_name["GatewayService"]
STUBS: list[tuple[ServiceDescriptor, Callable[[grpc.Channel], object]]] = [
    (GATEWAY, GatewayServiceStub),
    (scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"], SchedulerServiceStub),
    (executor_service_pb2.DESCRIPTOR.services_by_name["ExecutorService"], ExecutorServiceStub),
]


@pytest.fixture
def channel() -> Any:
    return grpc_testing.channel([GATEWAY], grpc_testing.strict_real_time())


@pytest.fixture
def gateway(channel: Any) -> GatewayServiceStub:
    stub: GatewayServiceStub = GatewayServiceStub(channel)
    return stub


def test_a_call_carries_the_request_and_brings_the_response(gateway: GatewayServiceStub, channel: Any) -> None:
    """With its metadata, both ways."""
    request = StartRunRequest(workflow="blog_post", input=Payload(data=b'{"topic": "tea"}'), request_id="once")
    call = gateway.StartRun.future(request, metadata=(("traceparent", "00-1-2-01"),), timeout=5)
    metadata, taken, rpc = channel.take_unary_unary(GATEWAY.methods_by_name["StartRun"])
    assert taken == request
    assert ("traceparent", "00-1-2-01") in metadata
    rpc.send_initial_metadata([("onward-run-id", "r")])
    answer = StartRunResponse(run=Run(run_id="r", workflow="blog_post", state=RUN_STATE_QUEUED))
    rpc.terminate(answer, (), grpc.StatusCode.OK, "")
    assert call.result() == answer


def test_a_stream_brings_every_message_in_order(gateway: GatewayServiceStub, channel: Any) -> None:
    """Opened, batches, completed, and then it is over."""
    request = SubscribeRunRequest(run_id="r", start=Position(after_offset=6))
    messages = [
        SubscribeRunResponse(cursor="c6", opened=Opened(run=Run(run_id="r"), after_offset=6)),
        SubscribeRunResponse(
            cursor="c8",
            batch=EventBatch(
                events=[Event(offset=offset, output_delta=OutputDelta(text="tea ")) for offset in (7, 8)],
                after_offset=6,
                through_offset=8,
            ),
        ),
        SubscribeRunResponse(cursor="c8", completed=Completed(run=Run(run_id="r", state=RUN_STATE_SUCCEEDED))),
    ]
    call = gateway.SubscribeRun(request)
    _, taken, rpc = channel.take_unary_stream(GATEWAY.methods_by_name["SubscribeRun"])
    assert taken == request
    rpc.send_initial_metadata(())
    for message in messages:
        rpc.send_response(message)
        assert next(call) == message
    rpc.terminate((), grpc.StatusCode.OK, "")
    with pytest.raises(StopIteration):
        next(call)


def test_an_error_surfaces_with_its_code_and_details(gateway: GatewayServiceStub, channel: Any) -> None:
    """Of a call, and of a stream that has begun."""
    details = [("grpc-status-details-bin", b"status")]
    call = gateway.StartRun.future(StartRunRequest())
    _, _, rpc = channel.take_unary_unary(GATEWAY.methods_by_name["StartRun"])
    rpc.terminate(None, details, grpc.StatusCode.NOT_FOUND, "no such workflow")
    with pytest.raises(grpc.RpcError) as raised:
        call.result()
    assert isinstance(raised.value, grpc.Call)
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such workflow")
    assert set(details) < set(raised.value.trailing_metadata())

    stream = gateway.SubscribeRun(SubscribeRunRequest(run_id="r"))
    _, _, rpc = channel.take_unary_stream(GATEWAY.methods_by_name["SubscribeRun"])
    rpc.send_response(SubscribeRunResponse(cursor="c0"))
    assert next(stream).cursor == "c0"
    rpc.terminate(details, grpc.StatusCode.UNAVAILABLE, "cut")
    with pytest.raises(grpc.RpcError) as raised:
        next(stream)
    assert isinstance(raised.value, grpc.Call)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_caller_who_leaves_is_noticed(gateway: GatewayServiceStub, channel: Any) -> None:
    """The other side learns that nobody reads any more."""
    stream = gateway.SubscribeRun(SubscribeRunRequest(run_id="r"))
    _, _, rpc = channel.take_unary_stream(GATEWAY.methods_by_name["SubscribeRun"])
    stream.cancel()
    rpc.cancelled()  # returns once it is


class _Recorded:
    """A channel that notes how each method is called, as a stub sets it up."""

    def __init__(self) -> None:
        self.methods: dict[str, tuple[bool, bool, Any, Any]] = {}

    def __getattr__(self, kind: str) -> Callable[..., object]:
        client, server = (half == "stream" for half in kind.split("_"))

        def note(
            path: str, *, request_serializer: Any, response_deserializer: Any, _registered_method: bool = False
        ) -> object:
            self.methods[path] = (client, server, request_serializer, response_deserializer)
            return object()

        return note


def as_described(method: MethodDescriptor) -> tuple[bool, bool, Any, Any]:
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    return (method.client_streaming, method.server_streaming, request.SerializeToString, response.FromString)


@pytest.mark.parametrize(("service", "stub"), STUBS, ids=lambda value: getattr(value, "name", ""))
def test_stubs_call_what_the_contract_describes(
    service: ServiceDescriptor, stub: Callable[[grpc.Channel], object]
) -> None:
    """Every method of a service, by its name, its kind and its messages, and no other."""
    recorded: Any = _Recorded()
    made = stub(recorded)
    assert recorded.methods == {
        f"/{service.full_name}/{method.name}": as_described(method) for method in service.methods
    }
    assert set(vars(made)) == {method.name for method in service.methods}
