"""Payload: a value on the wire, and what a Python program sees of it.

Clients and readers of a log use this; it knows JSON and bytes, no user types.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic_core import to_json

from onward.v1.run_pb2 import Payload

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Blob:
    """A value too large to stand in the log; `Client.read_blob` reads it.

    Attributes:
        uri: Opaque name.
        media_type: IANA media type of the value.
        size: Its length in bytes.
    """

    uri: str
    media_type: str
    size: int


def encode(value: object) -> Payload:
    """Return `value` as JSON. Dataclasses, pydantic models, datetimes and sets become what pydantic makes of them.

    Bytes become base64url: that is what workflows and signals whose type is bytes are made of.

    Raises:
        ValueError: The value has no JSON form.
    """
    data = to_json(value, bytes_mode="base64")
    return Payload(media_type=JSON, data=data, size=len(data))


def decode(payload: Payload) -> Any:
    """Return the value: JSON decoded, text as str, anything else as bytes.

    None where there is none, a `Blob` where it is kept apart. Never fails: broken JSON or text comes back as its bytes.
    """
    match payload.WhichOneof("value"):
        case "data":
            return decode_bytes(payload.media_type, payload.data)
        case "blob_uri":
            return Blob(payload.blob_uri, payload.media_type or JSON, payload.size)
        case _:
            return None


def decode_bytes(media_type: str, data: bytes) -> Any:
    """`decode` for a value whose bytes are at hand, e.g. read from a blob."""
    essence = media_type.partition(";")[0].strip().lower() or JSON
    try:
        if essence == JSON or essence.endswith("+json"):
            return parse_json(data)
        if essence.startswith("text/"):
            return data.decode()
    except ValueError:
        pass
    return data


def parse_json(data: bytes) -> Any:
    """Parse strict JSON.

    Raises:
        ValueError: It is not JSON, holds NaN or an infinity, or is nested too deep for this process.
    """
    try:
        return json.loads(data, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
