"""How an exception of user code becomes what the log keeps and what callers inside a run see."""

from __future__ import annotations

import os
import traceback
from asyncio import CancelledError
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from onward.errors import ComponentError, WaitTimeout
from onward.retry import NotRetryable, asked, type_name
from onward.secrets import masked, masked_bytes
from onward.text import cut, well_formed
from onward.v1.run_pb2 import Payload, RunError

MESSAGE_CHARS_MAX = 8 * 1024
TRACEBACK_CHARS_MAX = 16 * 1024
DETAILS_BYTES_MAX = 16 * 1024

WORKFLOW_FAILED = "WORKFLOW_FAILED"

WAIT_TIMEOUT = "WAIT_TIMEOUT"

CAUSED_BY = "caused_by"
"""Where a ComponentError that came up through other components keeps the one it began with."""


class Leaves(BaseException):
    """Leaves user code on this package's own account. No `except Exception` is in its way."""


PASSING = (Exception, SystemExit, CancelledError, GeneratorExit, Leaves, BaseExceptionGroup)
"""What goes up from user code as it is."""


def contained(error: BaseException, name: str) -> RuntimeError:
    """Return an error for what is none: KeyboardInterrupt, which asyncio takes for its own, a panic of native code."""
    return RuntimeError(f"{name} raised {error!r}, which is no Exception")


_HERE = f"{Path(__file__).parent}{os.sep}"


def told(message: str) -> str:
    """Return a message as the log keeps it: without secrets, and not too long for an event."""
    return cut(masked(message), MESSAGE_CHARS_MAX)


def run_error(error: BaseException, reason: str, component_id: str = "") -> RunError:
    """Return `error` as the log keeps it. What came up through a component keeps its type, message and origin."""
    details: Any
    if isinstance(error, ComponentError):
        kind, message, may_succeed, details = error.type, error.message, error.retryable, {CAUSED_BY: _origin(error)}
    else:
        kind, message, may_succeed = type_name(type(error)), _text(error), _retryable(error)
        details = asked(error, "details")
    return RunError(
        reason=reason,
        message=told(message),
        type=kind,
        component_id=component_id,
        traceback=_traceback(error),
        retryable=may_succeed,
        details=_details(details),
    )


def component_error(name: str, error: RunError) -> ComponentError:
    """Return what the caller sees, made from nothing but what the log keeps: so it is the same on replay."""
    kind = WaitTimeout if error.reason == WAIT_TIMEOUT else ComponentError
    return kind(
        component_id=error.component_id,
        name=name,
        reason=error.reason,
        type=error.type,
        message=error.message,
        retryable=error.retryable,
        details=from_json(error.details.data) if error.HasField("details") else None,
    )


def workflow_error(error: BaseException, reason: str) -> RunError:
    """Return what ended a run: `reason`, or for a component's error that nobody caught COMPONENT_FAILED and origin."""
    cause = error
    while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    if not isinstance(cause, ComponentError):
        return run_error(error, reason)
    origin = _origin(cause)
    made = run_error(cause, "COMPONENT_FAILED" if reason == WORKFLOW_FAILED else reason, origin["component_id"])
    made.message = cut(f"{origin['name']}: {cause.message}", MESSAGE_CHARS_MAX)
    made.ClearField("details")
    details = _details(origin.get("details"))
    if details is not None:
        made.details.CopyFrom(details)
    return made


def _origin(error: ComponentError) -> dict[str, Any]:
    """Return the component in which it began."""
    if isinstance(error.details, dict) and isinstance(origin := error.details.get(CAUSED_BY), dict):
        return origin
    origin = {"component_id": error.component_id, "name": error.name, "reason": error.reason}
    return origin if error.details is None else {**origin, "details": error.details}


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - whatever a user's __str__ raises
        return f"(the error has no text: its __str__ raised {type(failure).__name__})"


def _retryable(error: BaseException) -> bool:
    """Tell whether the same call may succeed later: what the error says of itself, else whether it is the network's."""
    said = asked(error, "retryable")
    if isinstance(said, bool):
        return said
    return isinstance(error, (TimeoutError, ConnectionError)) and not isinstance(error, NotRetryable)


def _details(details: Any) -> Payload | None:
    if details is None:
        return None
    try:
        data = to_json(details)
    except (PydanticSerializationError, ValueError, RecursionError):
        return None
    data = masked_bytes(data)
    return Payload(data=data, size=len(data)) if len(data) <= DETAILS_BYTES_MAX else None


def _traceback(error: BaseException) -> str:
    """Return the traceback without the frames that are Onward's own; its end where it is long."""
    made = traceback.TracebackException.from_exception(error, limit=-50)
    _drop_own_frames(made)
    return well_formed(masked("".join(made.format()))[-TRACEBACK_CHARS_MAX:])


def _drop_own_frames(made: traceback.TracebackException) -> None:
    made.stack = traceback.StackSummary.from_list([one for one in made.stack if not one.filename.startswith(_HERE)])
    for below in (made.__cause__, made.__context__, *(made.exceptions or ())):
        if below is not None:
            _drop_own_frames(below)
