"""Whether a value satisfies a JSON Schema. Everything that is wrong with it is told at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import grpc
import jsonschema_rs

from onward.v1.error_reason_pb2 import ErrorReason
from onward_serving.errors import Refused

VIOLATIONS_BYTES_MAX = 4_096
"""Told to a caller. An error travels in trailing metadata, of which clients take 8 KiB."""

VIOLATION_CHARACTERS_MAX = 300

_JSON_TYPE = re.compile(r"application/([a-z0-9.+-]+\+)?json\s*(;.*)?", re.ASCII | re.IGNORECASE)


def is_json(media_type: str) -> bool:
    """Say whether a media type is JSON; an empty one is."""
    return not media_type or bool(_JSON_TYPE.fullmatch(media_type))


def check_schema(instance: Any, schema: bytes, message: str = "the input is invalid") -> None:
    """Raises:
    Refused: INPUT_INVALID, with every violation.
    """
    errors = _validator(schema)
    try:
        violations = [(_pointer(error.instance_path), error.message) for error in errors(instance)]
    except ValueError as error:  # nested too deep
        violations = [("", str(error))]
    if not violations:
        return
    told = bounded(violations)
    field, why = told[0]
    raise Refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_INPUT_INVALID,
        f"{message}: {field}: {why}" if field else f"{message}: {why}",
        violations=told,
    )


def bounded(violations: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return as many violations as one error holds, each cut where it is long."""
    told: list[tuple[str, str]] = []
    size = 0
    for field, why in violations:
        if len(why) > VIOLATION_CHARACTERS_MAX:
            why = why[: VIOLATION_CHARACTERS_MAX // 2] + " … " + why[-VIOLATION_CHARACTERS_MAX // 2 :]
        field = field if len(field) <= VIOLATION_CHARACTERS_MAX else field[:VIOLATION_CHARACTERS_MAX] + "…"
        size += len(field.encode()) + len(why.encode())
        if size > VIOLATIONS_BYTES_MAX and told:
            told.append(("", f"and {len(violations) - len(told)} more"))
            break
        told.append((field, why))
    return told


@lru_cache(maxsize=1_024)
def _validator(schema: bytes) -> Callable[[Any], Any]:
    # Offline: a schema is a deployment's, and must not make a server fetch things.
    return jsonschema_rs.Draft202012Validator(json.loads(schema), offline=True).iter_errors


def _pointer(path: list[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
