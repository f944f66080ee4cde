"""The OpenAPI document: what is served now, each workflow with its own types."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import jsonschema_rs
from google.protobuf.descriptor import Descriptor

from onward.v1.event_pb2 import Event
from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import Gap, Workflow
from onward.v1.run_pb2 import Run, RunState
from onward_gateway.http import media, problems
from onward_gateway.http.asking import IDEMPOTENCY_KEY
from onward_gateway.http.documents import Document, schema_of, schema_of_message

REF = "#/components/schemas/"

EXAMPLE_DEPTH_MAX = 8

_RUN_ID = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]")
_OF_NAMES = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
_OF_SCHEMAS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_OF_SCHEMA = frozenset(
    {
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)


def openapi(workflows: Sequence[Workflow], *, version: str, keys: bool) -> Document:
    """Return the document.

    Args:
        workflows: What can be started.
        version: Of this server.
        keys: Whether an API key is asked for.
    """
    schemas = _own_schemas()
    paths: Document = {}
    for workflow in workflows:
        paths.update(_workflow_paths(workflow, schemas))
    paths.update(_run_paths())
    document: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Onward",
            "version": version,
            "description": "Long agent workflows that never lose the thread. A run goes on whatever becomes of the "
            "request that started it; its log can be read from any place, during the run and after it.",
        },
        "tags": [{"name": each.name, "description": each.description} for each in workflows]
        + [
            {"name": "runs", "description": "Runs, and what they say."},
            {"name": "suite", "description": "What is served, and by whom."},
        ],
        "paths": paths,
        "components": {"schemas": schemas, "headers": _HEADERS},
    }
    if keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def example_of(schema: Any, root: Mapping[str, Any], depth: int = 0) -> Any:
    """Return a value that a schema takes, as far as that can be told by looking at it.

    Args:
        schema: What the value is of.
        root: The schema that references in it point into.
        depth: How deep the value lies in another.
    """
    if not isinstance(schema, dict) or depth > EXAMPLE_DEPTH_MAX:
        return None
    if "default" in schema:
        return schema["default"]
    for key in ("examples", "enum"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("$ref"), str):
        return example_of(_resolved(schema["$ref"], root), root, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return example_of(schema[key][0], root, depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    match kind:
        case "object":
            properties, required = schema.get("properties"), schema.get("required", ())
            return {
                name: example_of(each, root, depth + 1)
                for name, each in (properties.items() if isinstance(properties, dict) else ())
                if not depth or name in required  # all there is at first, and then what there must be
            }
        case "array":
            one = None if depth > 2 else example_of(schema.get("items"), root, depth + 1)
            return [] if one is None else [one]
        case "string":
            return {"date-time": "2026-11-22T08:00:00Z", "date": "2026-11-22"}.get(schema.get("format", ""), "text")
        case "integer":
            return int(schema.get("minimum", 1))
        case "number":
            return schema.get("minimum", 1.0)
        case "boolean":
            return True
    return None


def moved(schema: Document, name: str, schemas: Document) -> Document:
    """Put a workflow's schema among others, and return a reference to it.

    Its definitions become components too, and what points within it points there.

    Args:
        schema: As the workflow has it.
        name: What it is called there.
        schemas: Where it is put.
    """
    names: dict[str, str] = {}
    for key in ("$defs", "definitions"):
        for each in schema.get(key, {}) if isinstance(schema.get(key), dict) else ():
            names[f"#/{key}/{_escaped(each)}"] = _free(f"{name}.{_NO_NAME.sub('_', each)}", schemas, names.values())
    own = _rewritten({key: value for key, value in schema.items() if key not in ("$schema", "$id")}, name, names)
    for key in ("$defs", "definitions"):
        for each, definition in own.pop(key, {}).items() if isinstance(own.get(key), dict) else ():
            schemas[names[f"#/{key}/{_escaped(each)}"]] = definition
    schemas[name] = own
    return {"$ref": REF + name}


def _rewritten(schema: Any, name: str, names: Mapping[str, str]) -> Any:
    """Return a schema whose references within itself are references to components. What are values stay as they are."""
    if not isinstance(schema, dict):
        return schema
    rewritten: Document = {}
    for key, value in schema.items():
        if key in ("$ref", "$dynamicRef") and isinstance(value, str):
            rewritten["$ref"] = _pointed(value, name, names)
        elif key in _OF_NAMES and isinstance(value, dict):
            rewritten[key] = {each: _rewritten(one, name, names) for each, one in value.items()}
        elif key in _OF_SCHEMAS and isinstance(value, list):
            rewritten[key] = [_rewritten(one, name, names) for one in value]
        elif key in _OF_SCHEMA:
            rewritten[key] = _rewritten(value, name, names)
        elif key not in ("$anchor", "$dynamicAnchor"):
            rewritten[key] = value
    return rewritten


def _pointed(ref: str, name: str, names: Mapping[str, str]) -> str:
    pointer = unquote(ref)
    if pointer == "#":
        return REF + name
    for old, new in names.items():
        if pointer == old or pointer.startswith(old + "/"):
            return REF + new + pointer[len(old) :]
    return REF + name + pointer[1:] if pointer.startswith("#/") else ref


def _resolved(ref: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for part in unquote(ref).removeprefix("#").split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _free(name: str, schemas: Mapping[str, Any], taken: Iterable[str]) -> str:
    while name in schemas or name in taken:
        name += "_"
    return name


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


# What is the same in every suite.


def _own_schemas() -> Document:
    schemas: Document = {}
    for message in (Run, Event, Workflow, Executor, Gap):
        _add(message.DESCRIPTOR, schemas)
    blob = {
        "type": "object",
        "description": "A value that is kept apart, or is not JSON.",
        "properties": {
            "url": {"type": "string", "description": "Where it can be read."},
            "base64": {"type": "string", "contentEncoding": "base64"},
            "size": {"type": "integer"},
            "media_type": {"type": "string"},
        },
        "required": ["size", "media_type"],
    }
    run = schemas["Run"]["properties"]
    run["input"] = {"description": "The input; where it is told."}
    run["output"] = {"description": "The output of a run that has succeeded; where it is told."}
    run["input_blob"] = run["output_blob"] = {"$ref": REF + "Blob"}
    event = schemas["Event"]
    event["properties"]["time"] = event["properties"].pop("create_time")
    event["properties"]["kind"] = {
        "type": "string",
        "description": "Names the member that says what happened. One that is unknown is to be skipped.",
    }
    event["required"] = ["offset", "time", "attempt", "component_id"]
    workflow = schemas["Workflow"]
    workflow["properties"] |= {
        name: {"type": "object", "description": "JSON Schema 2020-12; an empty one takes anything."}
        for name in ("input_schema", "output_schema")
    }
    schemas["Executor"]["properties"]["workflows"] = {"type": "array", "items": {"type": "string"}}
    schemas["Payload"] = {
        "type": "object",
        "description": "A value: as it is, kept apart, in bytes, or only its size where it is long or hidden.",
        "properties": {
            "value": {},
            "blob": {"type": "string", "description": "Where it can be read."},
            "media_type": {"type": "string"},
            "base64": {"type": "string", "contentEncoding": "base64"},
            "size": {"type": "integer"},
        },
    }
    schemas["Blob"] = blob
    schemas["Problem"] = {
        "type": "object",
        "description": "RFC 9457.",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "reason": {"type": "string", "description": "A stable word for programs."},
            "violations": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"field": {"type": "string"}, "description": {"type": "string"}},
                    "required": ["field", "description"],
                },
            },
            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
            "run_id": {"type": "string"},
            "error": {"$ref": REF + "RunError"},
        },
        "required": ["type", "title", "status", "detail", "reason"],
    }
    return schemas


def _add(descriptor: Descriptor, schemas: Document) -> None:
    """Add the schema of a message, and of those in it."""
    if descriptor.name in schemas or descriptor.full_name.startswith("google."):
        return
    schemas[descriptor.name] = schema_of_message(descriptor, REF)
    for field in descriptor.fields:
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            _add(field.message_type, schemas)


_HEADERS: Document = {
    "Location": {"schema": {"type": "string"}, "description": "Where the run is."},
    "Onward-Run-Id": {"schema": {"type": "string"}, "description": "The run."},
    "Idempotency-Replayed": {
        "schema": {"const": "true"},
        "description": "An earlier request with the same Idempotency-Key did this.",
    },
}

_TITLES = {
    "400": "The request or the input is malformed; `violations` lists everything that is wrong.",
    "401": "No valid API key.",
    "403": "The API key is not for this.",
    "404": "There is no such thing here.",
    "406": "No form that is accepted.",
    "408": "The body came too slowly.",
    "409": "The run's state does not allow this, or the request's id was used for something else.",
    "410": "Events after the position are gone, or the log was rebuilt.",
    "413": "Too large.",
    "415": "The body is not JSON.",
    "416": "The position is after the newest event, or the range behind the end.",
    "421": "Not a name of this Gateway.",
    "422": "The run has failed or was cancelled; `error` says why.",
    "429": "A limit was reached; Retry-After says when to try again.",
    "500": "A bug, with an id that is in the server's log too.",
    "501": "Not served yet.",
    "503": "Not now; Retry-After says when. Repeat it with the same Idempotency-Key: it may have been done.",
}

_ALWAYS = ("401", "403", "421", "500", "503")


def _problem(status: str) -> Document:
    return {
        "description": _TITLES[status],
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": REF + "Problem"}}},
    }


def _responses(good: Mapping[str, Any], *bad: str) -> Document:
    return {**good, **{status: _problem(status) for status in sorted({*bad, *_ALWAYS})}}


def _json(description: str, schema: Mapping[str, Any], *headers: str, example: Any = None) -> Document:
    content: Document = {"schema": schema}
    if example is not None:
        content["example"] = example
    response: Document = {"description": description, "content": {media.JSON: content}}
    if headers:
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    return response


def _query(name: str, schema: Mapping[str, Any], description: str) -> Document:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _header(name: str, schema: Mapping[str, Any], description: str) -> Document:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _path(name: str, schema: Mapping[str, Any], description: str) -> Document:
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": description}


_RUN = _path("run_id", _RUN_ID, "The run.")
_IDEMPOTENCY = _header(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "pattern": f"^{IDEMPOTENCY_KEY}$"},
    "A repeat with the same one does nothing, and is answered as the first. A UUID is best.",
)
_WAIT = _header("Prefer", {"type": "string", "examples": ["wait=10"]}, "How long to wait, in seconds.")
_LABELS = _query(
    "label",
    {"type": "array", "maxItems": 32, "items": {"type": "string", "pattern": "^[a-z0-9_.-]{1,64}:[ -~]{0,200}$"}},
    "KEY:VALUE.",
)
_NAME = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[ -~]+$"}
_TOKEN = {"type": "string", "minLength": 1}
_START = [
    _query("run_id", _RUN_ID, "The id to give the run; by default the server chooses."),
    _LABELS,
    _query(
        "run_timeout_s",
        {"type": "number", "exclusiveMinimum": 0, "maximum": 315_576_000_000, "multipleOf": 0.001},
        "Bounds the whole run, in seconds.",
    ),
    _query("schedule_time", {"type": "string", "format": "date-time"}, "Earliest start."),
    _query("priority", {"type": "integer", "minimum": -100, "maximum": 100}, "Higher goes first."),
    _query("fairness_key", _NAME, "The tenant that queued work is shared between."),
    _query("deployment", _NAME, "The build to run; by default the one that takes new runs."),
    _IDEMPOTENCY,
]
_POSITION = [
    _query("after", _TOKEN, "Offset or cursor of the last event that is known already; 0 is the start."),
    _query("last", {"type": "integer", "minimum": 0, "maximum": 999_999_999}, "Only the newest so many."),
    _query("log_id", _NAME, "Fail if the log is not this one any more."),
    _query("on_gap", {"enum": ["fail", "skip"]}, "What to do where events after the position are gone."),
    _query("view", {"enum": ["raw", "settled"]}, "settled leaves out what was rolled back before the read began."),
]


def _workflow_paths(workflow: Workflow, schemas: Document) -> Document:
    schema = schema_of(workflow.input_schema)
    example = example_of(schema, schema)
    taken = moved(schema, _free(f"{workflow.name}.input", schemas, ()), schemas)
    given = moved(schema_of(workflow.output_schema), _free(f"{workflow.name}.output", schemas, ()), schemas)
    content: Document = {"schema": taken}
    if isinstance(example, dict) and _takes(schema, example):
        content["example"] = example
    body = {"required": bool(schema.get("required")), "content": {media.JSON: content}}
    about = {"tags": [workflow.name], "requestBody": body}
    failures = ("400", "404", "408", "409", "413", "415", "429")
    accepted = _json(
        "Accepted: it goes on.",
        {"$ref": REF + "Run"},
        *("Location", "Onward-Run-Id", "Idempotency-Replayed"),
    )
    output = _json("The output.", given, "Location", "Onward-Run-Id", "Idempotency-Replayed")
    base = f"/v1/workflows/{workflow.name}"
    return {
        f"{base}/runs": {
            "post": {
                "operationId": f"start_{workflow.name}",
                "summary": f"Start {workflow.name} and return at once",
                "description": workflow.description,
                "parameters": _START,
                **about,
                "responses": _responses({"202": accepted}, *failures),
            }
        },
        f"{base}/invoke": {
            "post": {
                "operationId": f"invoke_{workflow.name}",
                "summary": f"Run {workflow.name} and wait for its output",
                "description": workflow.description,
                "parameters": [*_START, _WAIT],
                **about,
                "responses": _responses({"200": output, "202": accepted}, "422", *failures),
            }
        },
    }


def _takes(schema: Document, value: Any) -> bool:
    try:
        return jsonschema_rs.Draft202012Validator(schema, offline=True).is_valid(value)
    except ValueError:  # no schema that can be checked, or nested too deep
        return False


def _run_paths() -> Document:
    run = _json("The run.", {"$ref": REF + "Run"}, "Onward-Run-Id")
    changed = _json("The run as it is now.", {"$ref": REF + "Run"}, "Location", "Onward-Run-Id")
    page = {
        "type": "object",
        "properties": {
            "runs": {"type": "array", "items": {"$ref": REF + "Run"}},
            "next_page_token": {"type": "string", "description": "Missing at the end."},
        },
        "required": ["runs"],
    }
    states = [name.removeprefix("RUN_STATE_") for name, number in RunState.items() if number]
    return {
        "/v1/runs": {
            "get": _operation(
                "list_runs",
                "runs",
                "List runs, newest first",
                [
                    _query("workflow", {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,128}$"}, "Only of this one."),
                    _query("state", {"type": "array", "items": {"enum": states}}, "Only in one of these."),
                    _LABELS,
                    _query("parent_run_id", _RUN_ID, "Only children of this run."),
                    _query("page_size", {"type": "integer", "minimum": 0, "maximum": 1_000}, "At most; 50 by default."),
                    _query("page_token", _TOKEN, "next_page_token of the page before."),
                ],
                {"200": _json("A page.", page)},
                "400",
            )
        },
        "/v1/runs/{run_id}": {
            "get": _operation(
                "get_run",
                "runs",
                "Return a run, at once or at its end",
                [_RUN, _WAIT, _query("wait_s", {"type": "number", "minimum": 0, "maximum": 60}, "How long to wait.")],
                {"200": run, "304": {"description": "As it was: a run that has ended does not change."}},
                *("400", "404"),
            )
        },
        "/v1/runs/{run_id}/output": {
            "get": _operation(
                "get_output",
                "runs",
                "Return a run's output; before its end, its text as it is made",
                [_RUN, _WAIT],
                {
                    "200": {
                        "description": "The output as it is. As text/plain: the text that the workflow's body puts "
                        "out, while it does; broken off where it turns out void or the run fails.",
                        "content": {
                            media.JSON: {},
                            media.TEXT: {"schema": {"type": "string"}},
                            "application/octet-stream": {},
                        },
                    },
                    "202": changed,
                },
                *("400", "404", "406", "422", "429"),
            )
        },
        "/v1/runs/{run_id}/events": {"get": _events()},
        "/v1/runs/{run_id}/blobs/{name}": {
            "get": _operation(
                "read_blob",
                "runs",
                "Return a value that is kept apart, or a range of its bytes",
                [_RUN, _path("name", {"type": "string", "minLength": 1}, "As the run or event says.")],
                {
                    "200": {"description": "The value.", "content": {"application/octet-stream": {}}},
                    "206": {"description": "A part of it.", "content": {"application/octet-stream": {}}},
                    "304": {"description": "A blob never changes."},
                },
                *("400", "404", "416"),
            )
        },
        "/v1/runs/{run_id}/cancel": _command("cancel", "Ask for a run's end", changed, "reason"),
        "/v1/runs/{run_id}/resume": _command("resume", "Continue a paused run", changed, "deployment"),
        "/v1/runs/{run_id}/fork": _command(
            "fork",
            "Start a run with what another one had before a component",
            changed,
            *("component_id", "deployment", "run_id"),
        ),
        "/v1/runs/{run_id}/retry": _command(
            "retry", "Start a run that goes on from where another one failed", changed, "deployment", "run_id"
        ),
        "/v1/runs/{run_id}/signals/{name}": {
            "post": {
                **_operation(
                    "signal_run",
                    "runs",
                    "Send a value into a run",
                    [_RUN, _path("name", {"type": "string", "minLength": 1}, "What the run waits for."), _IDEMPOTENCY],
                    {
                        "202": _json(
                            "It stands in the log.",
                            {
                                "type": "object",
                                "properties": {"offset": {"type": "integer"}, "replayed": {"type": "boolean"}},
                                "required": ["offset", "replayed"],
                            },
                            "Onward-Run-Id",
                        )
                    },
                    *("400", "404", "408", "409", "413", "415"),
                ),
                "requestBody": {"required": False, "content": {media.JSON: {"schema": {}}}},
            }
        },
        "/v1/workflows": {
            "get": _operation(
                "list_workflows",
                "suite",
                "List what can be started",
                [],
                {"200": _json("All of them.", _listed("workflows", "Workflow"))},
                "400",
            )
        },
        "/v1/executors": {
            "get": _operation(
                "list_executors",
                "suite",
                "List who runs workflows",
                [],
                {"200": _json("All that are there.", _listed("executors", "Executor"))},
                "400",
            )
        },
        "/healthz": {
            "get": {
                "operationId": "health",
                "tags": ["suite"],
                "summary": "Tell whether this Gateway is ready",
                "security": [],
                "responses": {
                    "200": _json("It is.", {"type": "object"}),
                    "421": _problem("421"),
                    "503": _json("It is not.", {"type": "object"}),
                },
            }
        },
    }


def _events() -> Document:
    page = {
        "type": "object",
        "properties": {
            "events": {"type": "array", "items": {"$ref": REF + "Event"}},
            "next_cursor": {"type": "string"},
            "log": {"$ref": REF + "RunLog"},
            "after_offset": {"type": "integer"},
            "through_offset": {"type": "integer"},
        },
        "required": ["events", "next_cursor", "log", "after_offset", "through_offset"],
    }
    return _operation(
        "read_events",
        "runs",
        "Read a run's log: a page, or all of it and what is still to come",
        [
            _RUN,
            *_POSITION,
            _query("page_size", {"type": "integer", "minimum": 0, "maximum": 1_000}, "Of a JSON page; 100 by default."),
            _query("heartbeat_s", {"type": "number", "minimum": 1, "maximum": 60}, "Of a stream: its longest silence."),
            _header("Last-Event-ID", {"type": "string"}, "The id of the last event: wins over after."),
        ],
        {
            "200": {
                "description": "By Accept. text/event-stream: each event's id is its cursor; named events are opened, "
                "bookmark, gap, handoff, problem and completed. application/x-ndjson: the same, a line each.",
                "content": {
                    media.JSON: {"schema": page},
                    media.SSE: {"schema": {"type": "string"}},
                    media.NDJSON: {"schema": {"type": "string"}},
                },
            },
            "204": {"description": "The client was told already that the log is complete."},
        },
        *("400", "404", "406", "410", "416", "429"),
    )


def _command(verb: str, summary: str, response: Document, *members: str) -> Document:
    properties = {name: {"type": "string"} for name in members}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    parameters = [_RUN, _IDEMPOTENCY] if verb in ("fork", "retry") else [_RUN]
    failures = ("400", "404", "408", "409", "413", "415")
    operation = _operation(f"{verb}_run", "runs", summary, parameters, {"202": response}, *failures)
    return {"post": {**operation, "requestBody": {"required": False, "content": {media.JSON: {"schema": schema}}}}}


def _operation(
    name: str,
    tag: str,
    summary: str,
    parameters: Sequence[Mapping[str, Any]],
    good: Mapping[str, Any],
    *bad: str,
) -> Document:
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "parameters": list(parameters),
        "responses": _responses(good, *bad),
    }


def _listed(name: str, of: str) -> Document:
    return {
        "type": "object",
        "properties": {name: {"type": "array", "items": {"$ref": REF + of}}},
        "required": [name],
    }
