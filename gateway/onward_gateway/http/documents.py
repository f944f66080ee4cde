"""The contract's messages as JSON.

The names are those of the fields, an enum's value has no prefix, times are RFC 3339 in UTC, durations are seconds in a
field whose name ends in `_s`. What is unset is left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic_core import to_json

from onward.v1.event_pb2 import Event
from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import Workflow
from onward.v1.run_pb2 import Payload, Run
from onward_gateway.checking import is_json

BLOB_PREFIX = "blob:"

Document = dict[str, Any]

_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
"""Of the years 1 to 9999, which is what RFC 3339 has."""

_ALWAYS = frozenset(
    {
        "onward.v1.ComponentStarted.name",
        "onward.v1.ComponentStarted.parent_id",
        "onward.v1.Published.name",
        "onward.v1.StatusUpdated.message",
    }
)
"""Texts that say something also where they are empty."""

_LEFT_OUT = frozenset(
    {
        "onward.v1.ComponentStarted.input_digest",  # of no use without the store's secret
        "onward.v1.Run.input",  # these are told as what they hold
        "onward.v1.Run.output",
        "onward.v1.Workflow.input_schema",
        "onward.v1.Workflow.output_schema",
    }
)

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_encode_ascii = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def dump(document: Any) -> bytes:
    """Return JSON text of one line.

    Raises:
        ValueError: It holds an infinity, which JSON cannot say.
    """
    try:
        data = to_json(document)
        if b"Infinity" not in data and b"NaN" not in data:
            return data
    except ValueError:
        pass  # It is too deep for the fast one, or holds half of a surrogate pair.
    try:
        return _encode(document).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only say escaped
        return _encode_ascii(document).encode()


def run_document(run: Run) -> Document:
    """Return a run."""
    document = _document(run, run.run_id)
    document["labels"] = dict(run.labels)
    for name in ("input", "output"):
        payload: Payload = getattr(run, name)
        if not run.HasField(name) or payload.WhichOneof("value") is None:
            continue
        plain, value = _json_value(payload)
        if plain:
            document[name] = value
        else:
            document[f"{name}_blob"] = _apart(payload, run.run_id)
    return document


def event_document(event: Event, run_id: str) -> Document:
    """Return an event: what all have, its `kind`, and under the name of that kind what it says."""
    document: Document = {
        "offset": event.offset,
        "time": _time(event.create_time),
        "attempt": event.attempt,
        "component_id": event.component_id,
    }
    kind = event.WhichOneof("kind")
    if kind is not None:  # else it is newer than this Gateway
        document["kind"] = kind
        document[kind] = _document(getattr(event, kind), run_id)
    return document


def workflow_document(workflow: Workflow) -> Document:
    """Return a workflow; a schema that takes anything is an empty one."""
    document = _document(workflow, "")
    for name in ("input_schema", "output_schema"):
        document[name] = schema_of(getattr(workflow, name))
    document.setdefault("description", "")
    document.setdefault("deployments", [])
    return document


def executor_document(executor: Executor, workflows: list[str]) -> Document:
    """Return an executor, with the names of what it serves."""
    return {**_document(executor, ""), "workflows": workflows}


def document_of(message: Message, run_id: str = "") -> Document:
    """Return any other message.

    Args:
        message: What to tell.
        run_id: The run whose blobs it may name.
    """
    return _document(message, run_id)


def schema_of(payload: Payload) -> Document:
    """Return a JSON Schema; an empty one where there is none, or one that is no schema."""
    plain, schema = _json_value(payload) if payload.data else (False, None)
    return schema if plain and isinstance(schema, dict) else {}


def schema_of_message(descriptor: Descriptor, ref: str) -> Document:
    """Return a JSON Schema of what `document_of` makes of a message.

    Args:
        descriptor: Of the message.
        ref: What stands before the name of another message in a reference to its schema.
    """
    properties: Document = {}
    required = []
    for name, wanted, key, _ in _plan(descriptor):
        properties[key] = _schema(descriptor.fields_by_name[name], ref)
        if wanted is None:
            required.append(key)
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def blob_url(run_id: str, blob_uri: str) -> str:
    """Return the path at which a value that is kept apart can be read."""
    return f"/v1/runs/{run_id}/blobs/{quote(blob_uri.removeprefix(BLOB_PREFIX), safe='')}"


def _document(message: Message, run_id: str) -> Document:
    document: Document = {}
    for name, wanted, key, convert in _plan(message.DESCRIPTOR):
        if wanted is not None and not wanted(message):
            continue
        document[key] = convert(getattr(message, name), run_id)
    return document


Converter = Callable[[Any, str], Any]


@lru_cache(maxsize=256)
def _plan(descriptor: Descriptor) -> list[tuple[str, Callable[[Message], bool] | None, str, Converter]]:
    """Return for each field its name, whether it is told, its key and how. Made once for each kind of message."""
    plan = []
    for field in descriptor.fields:
        if field.full_name in _LEFT_OUT:
            continue
        name = field.name
        key = f"{name}_s" if field.message_type is not None and field.message_type is Duration.DESCRIPTOR else name
        plan.append((name, _wanted(field), key, _converter(field)))
    return plan


def _wanted(field: FieldDescriptor) -> Callable[[Message], bool] | None:
    name = field.name
    if field.has_presence:
        return lambda message: message.HasField(name)
    if field.full_name in _ALWAYS:
        return None
    if field.is_repeated or field.enum_type is not None or field.type in (field.TYPE_STRING, field.TYPE_BYTES):
        return lambda message: bool(getattr(message, name))
    return None  # a number that is 0 and a truth that is false are told


def _converter(field: FieldDescriptor) -> Converter:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return lambda value, _: dict(value)
    one = _converter_of_one(field)
    if field.is_repeated:
        return lambda value, run_id: [one(each, run_id) for each in value]
    return one


def _converter_of_one(field: FieldDescriptor) -> Converter:
    if field.message_type is Timestamp.DESCRIPTOR:
        return lambda value, _: _time(value)
    if field.message_type is Duration.DESCRIPTOR:
        return lambda value, _: value.ToNanoseconds() / 1e9
    if field.message_type is Payload.DESCRIPTOR:
        return _payload
    if field.message_type is not None:
        return _document
    if field.enum_type is not None:
        names = _names(field)
        return lambda value, _: names.get(value, str(value))
    if field.type == field.TYPE_BYTES:
        return lambda value, _: base64.b64encode(value).decode()
    return lambda value, _: value


def _schema(field: FieldDescriptor, ref: str) -> Document:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    schema: Document
    if kind is Timestamp.DESCRIPTOR:
        schema = {"type": "string", "format": "date-time"}
    elif kind is Duration.DESCRIPTOR:
        schema = {"type": "number", "description": "Seconds."}
    elif kind is not None:
        schema = {"$ref": ref + kind.name}
    elif field.enum_type is not None:
        names = [name for number, name in _names(field).items() if number]
        schema = {"type": "string", "description": f"{', '.join(names)}; more may be added.", "examples": names[:1]}
    elif field.type == field.TYPE_BYTES:
        schema = {"type": "string", "contentEncoding": "base64"}
    elif field.type == field.TYPE_STRING:
        schema = {"type": "string"}
    elif field.type == field.TYPE_BOOL:
        schema = {"type": "boolean"}
    else:
        schema = {"type": "integer"}
    return {"type": "array", "items": schema} if field.is_repeated else schema


def _names(field: FieldDescriptor) -> Mapping[int, str]:
    """Return the names of an enum's values without what all of them begin with."""
    assert field.enum_type is not None
    values = field.enum_type.values_by_number
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    return {number: value.name.removeprefix(prefix) for number, value in values.items()}


def _payload(payload: Payload, run_id: str) -> Any:
    kind = payload.WhichOneof("value")
    if kind is None:  # cut, or hidden
        return {"size": payload.size}
    if kind == "data":
        plain, value = _json_value(payload)
        if plain:
            return {"value": value}
        return {"media_type": payload.media_type, "base64": base64.b64encode(payload.data).decode()}
    return {"blob": blob_url(run_id, payload.blob_uri), "size": payload.size}


def _apart(payload: Payload, run_id: str) -> Document:
    document: Document = {"size": payload.size, "media_type": payload.media_type or "application/json"}
    if payload.WhichOneof("value") == "blob_uri":
        return {"url": blob_url(run_id, payload.blob_uri), **document}
    return {"base64": base64.b64encode(payload.data).decode(), **document}


def _json_value(payload: Payload) -> tuple[bool, Any]:
    """Return whether a payload's data is JSON that JSON can say again, and its value."""
    if payload.WhichOneof("value") != "data" or not is_json(payload.media_type):
        return False, None
    try:
        return True, json.loads(payload.data, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return False, None


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError("larger than a number here can be")
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _time(time: Timestamp) -> str:
    return f"{_second(time.seconds)}.{time.nanos // 1000:06d}Z"


@lru_cache(maxsize=1_024)
def _second(seconds: int) -> str:
    # A deadline may be far behind the end of the calendar.
    bounded = min(max(seconds, _FIRST_SECOND), _LAST_SECOND)
    return datetime.fromtimestamp(bounded, UTC).replace(tzinfo=None).isoformat()
