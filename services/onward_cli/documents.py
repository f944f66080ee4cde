"""The JSON that `--output json` prints: the contract's messages by the names of their fields there.

Differences to the messages: a payload is its value, an enum's value has no prefix, times are RFC 3339 in UTC, durations
are seconds. A field that can be unset and is, is left out. `onward get` adds what a run has called.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from onward.payload import Blob, decode
from onward.v1.run_pb2 import Payload
from onward.views import View


def document(message: Message) -> dict[str, Any]:
    """Return a message as JSON has it."""
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        fields[field.name] = _field(field, getattr(message, field.name))
    return fields


def value_document(value: Any) -> Any:
    """Return a decoded value as JSON has it: one that is kept apart by its name, bytes in base64."""
    if isinstance(value, Blob):
        return {"blob_uri": value.uri, "media_type": value.media_type, "size": value.size}
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def components(view: View) -> list[dict[str, object]]:
    """Return the components that a run has called, in the order in which they began."""
    return [
        {
            "id": each.id,
            "name": each.name,
            "parent_id": each.parent_id,
            "state": each.state,
            "tries": each.tries,
        }
        for each in view.components.values()
    ]


def dump(value: Any, *, indent: int | None = None) -> str:
    """Return JSON text."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _field(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [_value(field, each) for each in value]
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    match value:
        case Payload():
            return value_document(decode(value))
        case Timestamp():
            return _time(value.ToDatetime(UTC))
        case Duration():
            return value.ToNanoseconds() / 1e9
        case Message():
            return document(value)
        case bytes():
            return base64.b64encode(value).decode()
    if field.enum_type is not None:
        return _enum_name(field.enum_type.values_by_number, value)
    return value


def _enum_name(values: Mapping[int, Any], number: int) -> str:
    """The name without what all names of the enum begin with."""
    if number not in values:
        return str(number)
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    return str(values[number].name.removeprefix(prefix))


def _time(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
