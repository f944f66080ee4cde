"""Whether a value satisfies a JSON Schema. Everything that is wrong with it is told at once, unless it is long."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import grpc
import jsonschema_rs

from onward.v1.error_reason_pb2 import ErrorReason
from onward_serving.errors import Refused

VIOLATIONS_BYTES_MAX = 3_584
"""Told to a caller. An error travels in trailing metadata, of which clients take 8 KiB: these as base64, beside the
message (onward_serving.errors)."""

VIOLATION_FRAME_BYTES = 8
"""What a violation takes beside its two texts, at most."""

VIOLATION_CHARACTERS_MAX = 300

LISTED_PARTS_MAX = 6_000
LISTED_BYTES_MAX = 256 * 1024
"""Of a value with more parts, or that is longer, one violation is told at most. All are made before the first is given,
and may be as many as there are parts: of 3 MiB a million, which take a GiB and stop a server for many seconds."""

_JSON_TYPE = re.compile(r"application/([a-z0-9.+-]+\+)?json\s*(;.*)?", re.ASCII | re.IGNORECASE)


def is_json(media_type: str) -> bool:
    """Say whether a media type is JSON; an empty one is."""
    return not media_type or bool(_JSON_TYPE.fullmatch(media_type))


def check_schema(instance: Any, data: bytes, schema: bytes, message: str = "the input is invalid") -> None:
    """Refuse a value that does not satisfy a schema.

    Args:
        instance: The value.
        data: Its JSON.
        schema: What it is to satisfy.
        message: What the refusal begins with.

    Raises:
        Refused: INPUT_INVALID, with every violation, as far as the value is not too large for that.
    """
    validator = _validator(schema)
    try:
        if validator.is_valid(instance):
            return
        if _is_small(data):
            violations = [_violation(error) for error in validator.iter_errors(instance)]
        elif b'"anyOf"' in schema or b'"oneOf"' in schema:
            # The first violation brings all of every branch along.
            violations = [("", "it does not satisfy the schema, and is too large for its violations to be listed")]
        else:
            validator.validate(instance)
            return
    except jsonschema_rs.ValidationError as error:
        violations = [_violation(error)]
    except ValueError as error:  # nested too deep
        violations = [("", str(error))]
    told = bounded(violations)
    field, why = told[0]
    raise Refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_INPUT_INVALID,
        f"{message}: {field}: {why}" if field else f"{message}: {why}",
        violations=told,
    )


def _is_small(data: bytes) -> bool:
    parts = data.count(b",") + data.count(b"[") + data.count(b"{")  # at most: strings hold them too
    return parts <= LISTED_PARTS_MAX and len(data) <= LISTED_BYTES_MAX


def bounded(violations: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return as many violations as one error holds, each cut where it is long."""
    told: list[tuple[str, str]] = []
    size = 0
    for field, why in violations:
        if len(why) > VIOLATION_CHARACTERS_MAX:
            why = why[: VIOLATION_CHARACTERS_MAX // 2] + " … " + why[-VIOLATION_CHARACTERS_MAX // 2 :]
        field = field if len(field) <= VIOLATION_CHARACTERS_MAX else field[:VIOLATION_CHARACTERS_MAX] + "…"
        size += len(field.encode()) + len(why.encode()) + VIOLATION_FRAME_BYTES
        if size > VIOLATIONS_BYTES_MAX and told:
            told.append(("", f"and {len(violations) - len(told)} more"))
            break
        told.append((field, why))
    return told


@lru_cache(maxsize=1_024)
def _validator(schema: bytes) -> jsonschema_rs.Draft202012Validator:
    # Offline: a schema is a deployment's, and must not make a server fetch things.
    return jsonschema_rs.Draft202012Validator(json.loads(schema), offline=True)


def _violation(error: jsonschema_rs.ValidationError) -> tuple[str, str]:
    return _pointer(error.instance_path), error.message


def _pointer(path: list[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
