"""Requests that are not well formed are refused with everything that is wrong with them."""

from __future__ import annotations

import json
import time
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.gateway_service_pb2 import (
    CancelRunRequest,
    GapPolicy,
    GetRunRequest,
    ListRunEventsRequest,
    ListRunsRequest,
    Position,
    ReadBlobRequest,
    SignalRunRequest,
    StartRunRequest,
    SubscribeRunRequest,
    View,
)
from onward.v1.run_pb2 import Payload, RunState
from onward_gateway import checking
from onward_serving.errors import Refused

SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["topic"],
    "additionalProperties": False,
}


def refusal(check: Any, *arguments: Any) -> Refused:
    with pytest.raises(Refused) as raised:
        check(*arguments)
    assert raised.value.code == grpc.StatusCode.INVALID_ARGUMENT
    return raised.value


def fields(refused: Refused) -> list[str]:
    return [field for field, _ in refused.violations]


def name(refused: Refused) -> str:
    return ErrorReason.Name(refused.reason).removeprefix("ERROR_REASON_")


def payload(value: object) -> Payload:
    return Payload(data=json.dumps(value).encode())


def test_every_violation_of_a_request_is_told() -> None:
    request = StartRunRequest(
        workflow="no such name!",
        run_id="a/b",
        request_id="é",
        priority=101,
        fairness_key="x" * 129,
        deployment="\n",
        run_timeout=Duration(seconds=-1),
        schedule_time=Timestamp(nanos=-1),
        labels={"": "x"},
        input=Payload(blob_uri="blob:1-1"),
    )
    refused = refusal(checking.check_start, request)
    assert name(refused) == "REQUEST_INVALID"
    assert set(fields(refused)) == {
        "workflow", "run_id", "request_id", "priority", "fairness_key", "deployment", "run_timeout", "schedule_time",
        "labels", "input",
    }  # fmt: skip


def test_a_request_at_its_bounds_is_taken() -> None:
    checking.check_start(
        StartRunRequest(
            workflow="w" * 128,
            run_id="r" * 64,
            request_id=" " * 64,
            priority=-100,
            fairness_key="k" * 128,
            labels={"k" * 64: "v" * 256, **{f"{i}": "" for i in range(31)}},
            run_timeout=Duration(nanos=1),
            schedule_time=Timestamp(),
            input=Payload(data=b"x" * checking.INPUT_BYTES_MAX),
        )
    )


@pytest.mark.parametrize(
    ("fields", "limit", "size"),
    [
        ({"labels": {str(i): "" for i in range(33)}}, 32, 33),
        ({"labels": {"é" * 33: ""}}, 64, 66),
        ({"labels": {"k": "v" * 257}}, 256, 257),
        ({"input": Payload(data=b"x" * (checking.INPUT_BYTES_MAX + 1))}, 3 * 1024 * 1024, 3 * 1024 * 1024 + 1),
    ],
)
def test_what_is_over_its_limit_is_told_with_both(fields: dict[str, Any], limit: int, size: int) -> None:
    refused = refusal(checking.check_start, StartRunRequest(workflow="blog", **fields))
    assert name(refused) == "TOO_LARGE"
    assert refused.metadata == {"limit": str(limit), "size": str(size)}


MALFORMED: list[tuple[Any, Any, str]] = [
    (checking.check_get, GetRunRequest(), "run_id"),
    (checking.check_get, GetRunRequest(run_id="r", wait=Duration(seconds=61)), "wait"),
    (checking.check_get, GetRunRequest(run_id="r", wait=Duration(seconds=1, nanos=-1)), "wait"),
    (checking.check_list, ListRunsRequest(page_size=1_001), "page_size"),
    (checking.check_list, ListRunsRequest(page_size=-1), "page_size"),
    (checking.check_list, ListRunsRequest(states=[RunState.RUN_STATE_UNSPECIFIED]), "states"),
    (checking.check_list, ListRunsRequest(states=[RunState.ValueType(99)]), "states"),
    (checking.check_list, ListRunsRequest(workflow="/"), "workflow"),
    (checking.check_list, ListRunsRequest(parent_run_id="/"), "parent_run_id"),
    (checking.check_cancel, CancelRunRequest(run_id="r" * 65), "run_id"),
    (checking.check_signal, SignalRunRequest(run_id="r"), "name"),
    (checking.check_signal, SignalRunRequest(run_id="r", name="n", request_id="\n"), "request_id"),
    (checking.check_blob, ReadBlobRequest(run_id="r"), "blob_uri"),
    (checking.check_blob, ReadBlobRequest(run_id="r", blob_uri="b", start=-1), "start"),
    (checking.check_blob, ReadBlobRequest(run_id="r", blob_uri="b", start=2**63 - 1), "start"),
    (checking.check_subscribe, SubscribeRunRequest(run_id="r", heartbeat=Duration(nanos=1)), "heartbeat"),
    (checking.check_subscribe, SubscribeRunRequest(run_id="r", heartbeat=Duration(seconds=61)), "heartbeat"),
    (checking.check_subscribe, SubscribeRunRequest(run_id="r", view=View.ValueType(9)), "view"),
    (checking.check_subscribe, SubscribeRunRequest(run_id="r", start=Position(last=-1)), "start.last"),
    (
        checking.check_subscribe,
        SubscribeRunRequest(run_id="r", start=Position(on_gap=GapPolicy.ValueType(9))),
        "start.on_gap",
    ),
    (checking.check_events, ListRunEventsRequest(run_id="r", start=Position(last=-1)), "start.last"),
    (checking.check_subscribe, SubscribeRunRequest(run_id="r", start=Position(after_offset=-1)), "start.after_offset"),
    (checking.check_events, ListRunEventsRequest(run_id="r", page_size=1_001), "page_size"),
]


@pytest.mark.parametrize(
    ("check", "request_", "field"), MALFORMED, ids=[f"{i}-{case[2]}" for i, case in enumerate(MALFORMED)]
)
def test_each_field_is_checked(check: Any, request_: Any, field: str) -> None:
    refused = refusal(check, request_)
    assert name(refused) == "REQUEST_INVALID"
    assert fields(refused) == [field]
    assert field in refused.message


def test_defaults() -> None:
    assert checking.check_get(GetRunRequest(run_id="r")) == 0
    assert checking.check_list(ListRunsRequest()) == 50
    assert checking.check_events(ListRunEventsRequest(run_id="r")) == 100
    assert checking.check_subscribe(SubscribeRunRequest(run_id="r")) == 10


def test_every_violation_of_the_schema_is_told_by_its_place() -> None:
    value = {"tags": ["fine", 1, None], "a/b~c": 2}
    refused = refusal(checking.checked_input, payload(value), payload(SCHEMA))
    assert name(refused) == "INPUT_INVALID"
    assert sorted(fields(refused)) == ["", "", "/tags/1", "/tags/2"]


def test_a_place_is_a_json_pointer() -> None:
    schema = {"properties": {"a/b~c": {"items": {"type": "null"}}}}
    refused = refusal(checking.checked_input, payload({"a/b~c": [None, 1]}), payload(schema))
    assert fields(refused) == ["/a~1b~0c/1"]


@pytest.mark.parametrize(
    "data", [b"{", b"\xff", b"NaN", b'{"topic": Infinity}', b"[" * 100_000, b"{} {}", b"", b'"\xed\xa0\x80"']
)
def test_broken_json_is_told(data: bytes) -> None:
    value = Payload(data=data, media_type="application/json")
    if not data:
        assert checking.checked_input(value, Payload()).data == b"{}"
        return
    assert name(refusal(checking.checked_input, value, Payload())) == "INPUT_INVALID"


def test_a_value_nested_deeper_than_the_checker_goes_is_told() -> None:
    refused = refusal(checking.checked_input, Payload(data=b'{"topic":' * 900 + b"1" + b"}" * 900), payload(SCHEMA))
    assert name(refused) == "INPUT_INVALID"


def test_an_input_is_kept_as_it_came_with_its_size() -> None:
    kept = checking.checked_input(Payload(data=b' {"topic": "tea"} '), payload(SCHEMA))
    assert kept == Payload(data=b' {"topic": "tea"} ', size=18)
    assert checking.checked_input(Payload(), Payload()) == Payload(data=b"{}", size=2)
    assert fields(refusal(checking.checked_input, Payload(), payload(SCHEMA))) == [""]


def test_another_media_type_fits_only_a_workflow_without_schema() -> None:
    text = Payload(data=b"tea", media_type="text/plain")
    assert checking.checked_input(text, Payload()).data == b"tea"
    assert name(refusal(checking.checked_input, text, payload(SCHEMA))) == "INPUT_INVALID"
    like_json = Payload(data=b'{"topic": 1}', media_type="application/vnd.tea+json; charset=utf-8")
    assert fields(refusal(checking.checked_input, like_json, payload(SCHEMA))) == ["/topic"]


def test_more_violations_than_an_error_holds_are_counted() -> None:
    value = {"topic": "tea", "tags": [0] * 5_000}
    refused = refusal(checking.checked_input, payload(value), payload(SCHEMA))
    told = refused.to_status().ByteSize()
    assert 2_000 < told < 7_000, "an error travels in trailing metadata, of which clients take 8 KiB"
    assert refused.violations[-1][1] == f"and {5_000 - len(refused.violations) + 1} more"


NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}


@pytest.mark.parametrize(
    ("schema", "field", "why"),
    [
        (NUMBERS, "/numbers/0", '"" is not of type "integer"'),
        ({"anyOf": [NUMBERS, {"type": "null"}]}, "", "it does not satisfy the schema, and is too large for"),
    ],
    ids=["plain", "optional"],
)
def test_a_million_violations_cost_no_more_than_one(schema: dict[str, Any], field: str, why: str) -> None:
    """A server does nothing else while it checks: listing them all took it 17 s and 1.6 GiB."""
    data = b'{"numbers":[' + b'"",' * 1_000_000 + b'""]}'
    began = time.monotonic()
    refused = refusal(checking.checked_input, Payload(data=data), payload({"properties": {"numbers": schema}}))
    assert time.monotonic() - began < 3
    assert (name(refused), fields(refused)) == ("INPUT_INVALID", [field])
    assert why in refused.message


def test_every_violation_of_a_long_text_is_told() -> None:
    value = {"topic": 1, "tags": ["word, " * 1_000, 2, "x" * 200_000, 3]}
    assert sorted(fields(refusal(checking.checked_input, payload(value), payload(SCHEMA)))) == [
        "/tags/1",
        "/tags/3",
        "/topic",
    ]


def test_a_violation_is_told_short() -> None:
    refused = refusal(checking.checked_input, payload({"topic": ["x" * 100_000]}), payload(SCHEMA))
    assert len(refused.violations[0][1]) < 400
    assert "is not of type" in refused.violations[0][1]


def test_a_schema_fetches_nothing() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        checking.checked_input(payload({}), payload({"$ref": "http://nowhere.invalid/schema"}))


def test_a_signal_that_says_it_is_json_is_json() -> None:
    broken = SignalRunRequest(run_id="r", name="n", value=Payload(data=b"{"))
    assert name(refusal(checking.check_signal, broken)) == "INPUT_INVALID"
    checking.check_signal(SignalRunRequest(run_id="r", name="n", value=Payload(data=b"{", media_type="text/plain")))
    checking.check_signal(SignalRunRequest(run_id="r", name="n"))
    large = SignalRunRequest(run_id="r", name="n", value=Payload(data=b"x" * 1_000_000, media_type="text/plain"))
    assert name(refusal(checking.check_signal, large)) == "TOO_LARGE"
