"""What went wrong, as RFC 9457 has it. The only table of HTTP statuses."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from starlette.responses import Response

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.run_pb2 import Run, RunState
from onward_gateway.http.documents import document_of, dump
from onward_runlog.errors import RunLogError
from onward_serving.errors import Refused, refusal_of

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_STATUS: dict[ErrorReason.ValueType, tuple[int, str]] = {
    ErrorReason.ERROR_REASON_RUN_NOT_FOUND: (404, "There is no such run"),
    ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND: (404, "There is no such workflow"),
    ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND: (404, "There is no such deployment"),
    ErrorReason.ERROR_REASON_BLOB_NOT_FOUND: (404, "There is no such blob"),
    ErrorReason.ERROR_REASON_INPUT_INVALID: (400, "The input is invalid"),
    ErrorReason.ERROR_REASON_CURSOR_INVALID: (400, "The cursor is invalid"),
    ErrorReason.ERROR_REASON_REQUEST_INVALID: (400, "The request is malformed"),
    ErrorReason.ERROR_REASON_TOO_LARGE: (413, "Too large"),
    ErrorReason.ERROR_REASON_EVENTS_TRIMMED: (410, "Events after the position are gone"),
    ErrorReason.ERROR_REASON_LOG_REBUILT: (410, "The log was rebuilt"),
    ErrorReason.ERROR_REASON_OFFSET_AHEAD: (416, "The position is after the newest event"),
    ErrorReason.ERROR_REASON_REQUEST_ID_REUSED: (409, "The request's id was used for something else"),
    ErrorReason.ERROR_REASON_RUN_STATE: (409, "The run's state does not allow this"),
    ErrorReason.ERROR_REASON_LIMIT_REACHED: (429, "A limit was reached"),
    ErrorReason.ERROR_REASON_DRAINING: (503, "This Gateway is shutting down"),
    ErrorReason.ERROR_REASON_STORE_UNAVAILABLE: (503, "The store does not answer"),
    ErrorReason.ERROR_REASON_SCHEDULER_UNAVAILABLE: (503, "No Scheduler answers"),
    ErrorReason.ERROR_REASON_READER_STALLED: (503, "The reader has stopped reading"),
    ErrorReason.ERROR_REASON_INTERNAL: (500, "Internal error"),
}

_STATUS_OF_CODE: dict[grpc.StatusCode, tuple[int, str]] = {
    grpc.StatusCode.UNAUTHENTICATED: (401, "No valid API key"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "Not allowed"),
    grpc.StatusCode.INVALID_ARGUMENT: (400, "The request is malformed"),
    grpc.StatusCode.NOT_FOUND: (404, "Not found"),
    grpc.StatusCode.UNIMPLEMENTED: (501, "Not served yet"),
    grpc.StatusCode.UNAVAILABLE: (503, "Not available"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "No answer in time"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "A limit was reached"),
}
"""For what has no reason of its own here."""


@dataclass
class Problem(Exception):
    """A request that HTTP refuses, with everything that its caller is told.

    Attributes:
        status: Of the response.
        reason: Why, for programs: an ErrorReason without its prefix, a run's RunError.reason, or a word of HTTP's own.
        title: Why, in words that are the same each time.
        detail: Why, in words about this request.
        violations: Field and description of everything that is wrong.
        metadata: What the reason carries.
        retry_s: Seconds after which another try makes sense; None where it does not.
        more: Further members.
        headers: Further headers.
    """

    status: int
    reason: str
    title: str
    detail: str
    violations: Sequence[tuple[str, str]] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_s: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.detail

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (429, 503)

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        document: dict[str, Any] = {
            "type": f"urn:onward:{self.reason}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
        }
        if self.violations:
            document["violations"] = [{"field": name, "description": why} for name, why in self.violations]
        if self.metadata:
            document["metadata"] = dict(self.metadata)
        return {**document, **self.more}

    def response(self) -> Response:
        """Return the response that tells it."""
        headers = {"cache-control": "no-store", **self.headers}
        if self.retry_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_s)))
        if self.status == 401:
            headers["www-authenticate"] = 'Bearer realm="onward"'
        return Response(dump(self.document()), self.status, headers, MEDIA_TYPE)


def problem_of(error: Exception) -> Problem:
    """Return how an error is told to a caller. A bug gets an id that stands in the log too."""
    match error:
        case Problem():
            return error
        case Refused():
            return _problem(error)
        case RunLogError():
            try:
                return _problem(refusal_of(error))
            except RunLogError:
                return _bug(error)
        case grpc.aio.AioRpcError():
            return _problem(_refusal_behind(error))
    return _bug(error)


def failed(run: Run) -> Problem:
    """Return how it is told that a run which somebody waited for has not succeeded."""
    cancelled = run.state == RunState.RUN_STATE_CANCELLED
    word = "CANCELLED" if cancelled else run.error.reason or "RUN_FAILED"
    return Problem(
        422,
        word,
        "The run was cancelled" if cancelled else "The run failed",
        run.error.message or f"run {run.run_id} ended without an output",
        more={"run_id": run.run_id, "error": document_of(run.error, run.run_id)},
    )


def _problem(refused: Refused) -> Problem:
    known = _STATUS.get(refused.reason) or _STATUS_OF_CODE.get(refused.code)
    if known is None:
        return _bug(refused)
    status, title = known
    word = ErrorReason.Name(refused.reason).removeprefix("ERROR_REASON_")
    return Problem(
        status,
        word if refused.reason else refused.code.name,
        title,
        refused.message,
        refused.violations,
        refused.metadata,
        refused.retry_s,
    )


def _bug(error: Exception) -> Problem:
    bug = secrets.token_hex(6)
    logger.error("internal error %s", bug, exc_info=error)
    return Problem(
        500,
        "INTERNAL",
        "Internal error",
        f"internal error {bug}: the server's log has it under this id",
        metadata={"id": bug},
    )


def _refusal_behind(error: grpc.aio.AioRpcError) -> Refused:
    """Return the refusal of a server behind this one."""
    refused = Refused(error.code(), ErrorReason.ERROR_REASON_UNSPECIFIED, error.details() or "")
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except (ValueError, DecodeError):
        status = None
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info) and info.reason in ErrorReason.keys():  # noqa: SIM118 - an enum is no dictionary
            refused.reason = ErrorReason.Value(info.reason)
            refused.metadata = dict(info.metadata)
        elif detail.Unpack(request):
            refused.violations = [(each.field, each.description) for each in request.field_violations]
        elif detail.Unpack(retry):
            refused.retry_s = retry.retry_delay.ToNanoseconds() / 1e9
    return refused
