"""What the HTTP door chooses, moves and tells, without a network."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.event_pb2 import ComponentRetrying, ComponentStarted, Event, OutputDelta, StatusUpdated
from onward.v1.run_pb2 import Payload, Run, RunState
from onward_gateway.http import media
from onward_gateway.http.documents import dump, event_document, run_document
from onward_gateway.http.openapi import example_of, moved
from onward_gateway.http.problems import Problem, problem_of
from onward_serving.errors import Refused

OFFERED = ("application/json", "text/event-stream", "application/x-ndjson")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ([], "application/json"),
        (["*/*"], "application/json"),
        (["text/event-stream"], "text/event-stream"),
        (["TEXT/Event-Stream; charset=utf-8"], "text/event-stream"),
        (["text/html, text/*;q=0.5"], "text/event-stream"),
        (["application/json;q=0.1, application/x-ndjson;q=0.2, */*;q=0"], "application/x-ndjson"),
        (["application/json;q=0, */*"], "text/event-stream"),
        (["text/html", "application/*"], "application/json"),
    ],
)
def test_the_form_that_is_liked_best_is_chosen(accept: list[str], chosen: str) -> None:
    assert media.chosen(accept, OFFERED) == chosen


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "x", "*/*;q=0", "application/json;q=x"])
def test_no_form_will_do(accept: str) -> None:
    with pytest.raises(Problem) as raised:
        media.chosen([accept], OFFERED)
    assert raised.value.status == 406


def test_a_runs_values_are_told_as_what_they_are() -> None:
    run = Run(run_id="r", state=RunState.RUN_STATE_SUCCEEDED, input=Payload(data=b'{"a": [1, null]}'))
    for payload, told in [
        (Payload(data=b"null"), {"output": None}),
        (Payload(data=b'"\\ud800"'), {"output": "\ud800"}),
        (Payload(data=b"1e400"), {"output_blob": {"base64": "MWU0MDA=", "size": 0, "media_type": "application/json"}}),
        (Payload(data=b"{"), {"output_blob": {"base64": "ew==", "size": 0, "media_type": "application/json"}}),
        (
            Payload(blob_uri="blob:1-a b", size=9, media_type="text/x"),
            {"output_blob": {"url": "/v1/runs/r/blobs/1-a%20b", "size": 9, "media_type": "text/x"}},
        ),
        (Payload(), {}),
    ]:
        run.output.CopyFrom(payload)
        document = run_document(run)
        assert document["input"] == {"a": [1, None]}
        assert {name: value for name, value in document.items() if name.startswith("output")} == told
        assert json.loads(dump(document)) == document
    assert document["state"] == "SUCCEEDED"
    assert (document["attempt"], document["labels"], document["detached"]) == (0, {}, False)


def test_an_event_says_what_happened_under_the_name_of_its_kind() -> None:
    event = Event(
        offset=3, attempt=1, create_time=Timestamp(seconds=1, nanos=2_000), status_updated=StatusUpdated(done=0)
    )
    assert event_document(event, "r") == {
        "offset": 3,
        "time": "1970-01-01T00:00:01.000002Z",
        "attempt": 1,
        "component_id": "",
        "kind": "status_updated",
        "status_updated": {"message": "", "done": 0},
    }
    delta = Event(output_delta=OutputDelta(value=Payload(size=7)))
    assert event_document(delta, "r")["output_delta"] == {"part": 0, "value": {"size": 7}}
    retrying = Event(component_retrying=ComponentRetrying(try_number=1, delay=Duration(nanos=500_000_000)))
    assert event_document(retrying, "r")["component_retrying"].items() >= {"try_number": 1, "delay_s": 0.5}.items()
    started = Event(component_started=ComponentStarted(name="c", input_digest=b"x"))
    assert event_document(started, "r")["component_started"] == {"name": "c", "parent_id": ""}
    assert "kind" not in event_document(Event(offset=1), "r"), "newer than this Gateway"


def test_times_stay_within_the_calendar() -> None:
    for seconds, told in [(10**12, "9999-12-31T23:59:59"), (-(10**12), "0001-01-01T00:00:00")]:
        assert run_document(Run(deadline=Timestamp(seconds=seconds)))["deadline"].startswith(told)


def test_text_of_one_line_whatever_is_in_it() -> None:
    text = dump({"a": "line\nbreak\r\u2028", "b": "\ud83d"})
    assert b"\n" not in text
    assert b"\r" not in text
    assert json.loads(text) == {"a": "line\nbreak\r\u2028", "b": "\ud83d"}


def test_every_reason_has_a_status() -> None:
    """But those that no caller of a Gateway is told."""
    inside = {"UNSPECIFIED", "ATTEMPT_FENCED", "EXECUTOR_FULL", "FORBIDDEN"}
    for name, reason in ErrorReason.items():
        word = name.removeprefix("ERROR_REASON_")
        if word in inside:
            continue
        problem = problem_of(Refused(grpc.StatusCode.UNKNOWN, reason, "why", {"a": "b"}, [("f", "d")], 2.0))
        assert problem.reason == word
        assert 400 <= problem.status < 600
        assert problem.status != 500 or word == "INTERNAL"
        assert problem.document()["violations"] == [{"field": "f", "description": "d"}]
        assert problem.response().headers["retry-after"] == "2"


# Schemas.


def test_references_point_to_where_their_targets_went() -> None:
    schema: dict[str, Any] = {
        "$schema": "x",
        "$defs": {"A": {"$ref": "#/$defs/B[int]"}, "B[int]": {"items": {"$ref": "#"}}, "a/b": {"const": {"$ref": "#"}}},
        "properties": {
            "$ref": {"$ref": "#/$defs/A"},
            "deep": {"anyOf": [{"$ref": "#/$defs/B%5Bint%5D/items"}, {"$ref": "#/properties/deep"}]},
            "slash": {"$ref": "#/$defs/a~1b", "default": {"$ref": "#/$defs/A"}},
        },
    }
    schemas: dict[str, Any] = {"w.input.A": {}}
    assert moved(schema, "w.input", schemas) == {"$ref": "#/components/schemas/w.input"}
    assert schemas == {
        "w.input.A": {},
        "w.input.A_": {"$ref": "#/components/schemas/w.input.B_int_"},
        "w.input.B_int_": {"items": {"$ref": "#/components/schemas/w.input"}},
        "w.input.a_b": {"const": {"$ref": "#"}},
        "w.input": {
            "properties": {
                "$ref": {"$ref": "#/components/schemas/w.input.A_"},
                "deep": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/w.input.B_int_/items"},
                        {"$ref": "#/components/schemas/w.input/properties/deep"},
                    ]
                },
                "slash": {"$ref": "#/components/schemas/w.input.a_b", "default": {"$ref": "#/$defs/A"}},
            },
        },
    }


@pytest.mark.parametrize(
    ("schema", "example"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}, "b": {"default": 0}}}, {"a": "text", "b": 0}),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"enum": ["x", "y"]}}}, "x"),
        ({"anyOf": [{"type": "integer", "minimum": 5}, {"type": "null"}]}, 5),
        ({"type": ["boolean", "null"]}, True),
        ({"type": "array", "items": {"$ref": "#"}}, [[[]]]),
        ({"$ref": "#"}, None),
        ({"$ref": "#/nowhere"}, None),
        ({"properties": []}, None),
        ({"type": "object", "properties": []}, {}),
        ({}, None),
    ],
)
def test_an_example_is_made_of_any_schema(schema: dict[str, Any], example: object) -> None:
    assert example_of(schema, schema) == example
