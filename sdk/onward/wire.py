"""gRPC status as Onward's errors. The only such table in the SDK."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

from onward import errors

_BY_REASON: dict[str, type[errors.RequestError]] = {
    "RUN_NOT_FOUND": errors.RunNotFound,
    "WORKFLOW_NOT_FOUND": errors.WorkflowNotFound,
    "DEPLOYMENT_NOT_FOUND": errors.NotFound,
    "BLOB_NOT_FOUND": errors.NotFound,
    "INPUT_INVALID": errors.InvalidInput,
    "REQUEST_INVALID": errors.InvalidRequest,
    "CURSOR_INVALID": errors.InvalidRequest,
    "TOO_LARGE": errors.InvalidRequest,
    "EVENTS_TRIMMED": errors.PositionLost,
    "OFFSET_AHEAD": errors.PositionLost,
    "LOG_REBUILT": errors.PositionLost,
    "REQUEST_ID_REUSED": errors.RequestReused,
    "RUN_STATE": errors.WrongState,
    "FORBIDDEN": errors.Denied,
    "LIMIT_REACHED": errors.LimitReached,
    "DRAINING": errors.Unavailable,
    "STORE_UNAVAILABLE": errors.Unavailable,
    "SCHEDULER_UNAVAILABLE": errors.Unavailable,
    "READER_STALLED": errors.Unavailable,
    "INTERNAL": errors.InternalError,
}

# For what has no reason: proxies and gRPC itself give none, and a reason may be newer than this program.
_BY_CODE: dict[grpc.StatusCode, type[errors.RequestError]] = {
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: errors.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: errors.PositionLost,
    grpc.StatusCode.FAILED_PRECONDITION: errors.WrongState,
    grpc.StatusCode.ALREADY_EXISTS: errors.RequestReused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.LimitReached,
    grpc.StatusCode.UNAUTHENTICATED: errors.Denied,
    grpc.StatusCode.PERMISSION_DENIED: errors.Denied,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
    grpc.StatusCode.CANCELLED: errors.Unavailable,
}


_NOT_BELIEVED = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed", "WRONG_VERSION_NUMBER")
"""What gRPC says of a certificate that is from nobody known, of one for another name, and of a server that has none."""


def error_of(failure: grpc.aio.AioRpcError) -> errors.RequestError:
    """Return the error that a failed call means."""
    info, bad_request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in _details(failure):
        for known in (info, bad_request, retry):
            detail.Unpack(known)
    reason = info.reason.removeprefix("ERROR_REASON_")
    told = failure.details() or failure.code().name
    if failure.code() is grpc.StatusCode.UNAVAILABLE and any(each in told for each in _NOT_BELIEVED):
        return errors.Untrusted(
            f"the Gateway is not believed to be one; ONWARD_CA names authorities to believe: {told}"
        )
    kind = _BY_REASON.get(reason) or _BY_CODE.get(failure.code(), errors.InternalError)
    return kind(
        told,
        reason=reason,
        metadata=info.metadata,
        violations=[f"{each.field}: {each.description}" for each in bad_request.field_violations],
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds(),
    )


def _details(failure: grpc.aio.AioRpcError) -> list[Any]:
    try:
        status = rpc_status.from_call(failure)  # type: ignore[arg-type]  # it asks for nothing that this one lacks
    except ValueError:  # details that contradict the status
        return []
    return list(status.details) if status is not None else []
