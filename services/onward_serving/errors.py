"""Domain errors as gRPC status. The only such table, for all servers."""

from __future__ import annotations

import contextlib
import logging
import secrets
import typing as t
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from onward.v1.error_reason_pb2 import ErrorReason
from onward_runlog import errors as runlog

logger = logging.getLogger(__name__)

DOMAIN = "onward"
"""ErrorInfo.domain of every error."""

MESSAGE_SENT_MAX = 1_024
"""Bytes of a message as it is sent. Clients take 8 KiB of trailing metadata, in which it stands twice."""


@dataclass
class Refused(Exception):
    """A request that is refused, with everything that its caller is told.

    Attributes:
        code: Status code.
        reason: Why, for programs.
        message: Why, for a person, and what to do.
        metadata: What the reason carries.
        violations: Field and description of everything that is wrong with the request.
        retry_s: Seconds after which another try makes sense; None where it does not.
    """

    code: grpc.StatusCode
    reason: ErrorReason.ValueType
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[tuple[str, str]] = ()
    retry_s: float | None = None

    def __str__(self) -> str:
        return self.message

    def to_status(self) -> status_pb2.Status:
        """Return the google.rpc.Status that carries all of it."""
        details = [
            error_details_pb2.ErrorInfo(
                reason=ErrorReason.Name(self.reason), domain=DOMAIN, metadata=dict(self.metadata)
            )
        ]
        if self.violations:
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(field=name, description=description)
                        for name, description in self.violations
                    ]
                )
            )
        if self.retry_s is not None:
            delay = Duration()
            delay.FromNanoseconds(int(self.retry_s * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=code_pb2.Code.Value(self.code.name), message=_short(self.message))
        for detail in details:
            packed = Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status


def _short(message: str) -> str:
    """Return a message, cut at MESSAGE_SENT_MAX: gRPC sends three bytes for each that is not plain ASCII."""
    room = MESSAGE_SENT_MAX
    for place, letter in enumerate(message):
        room -= 1 if " " <= letter <= "~" and letter != "%" else 3 * len(letter.encode())
        if room < 0:
            return message[:place] + "…"
    return message


def draining() -> Refused:
    """Return the refusal of an instance that is about to end."""
    return Refused(
        grpc.StatusCode.UNAVAILABLE,
        ErrorReason.ERROR_REASON_DRAINING,
        "this instance is shutting down; another one answers",
        retry_s=0.2,
    )


def refusal_of(error: runlog.RunLogError) -> Refused:
    """Return how an error of the run log is told to a caller."""
    code, reason = grpc.StatusCode, ErrorReason
    match error:
        case runlog.RunNotFound():
            return Refused(code.NOT_FOUND, reason.ERROR_REASON_RUN_NOT_FOUND, str(error), {"run_id": error.run_id})
        case runlog.RequestReused():
            return Refused(
                code.ALREADY_EXISTS, reason.ERROR_REASON_REQUEST_ID_REUSED, str(error), {"run_id": error.run_id}
            )
        case runlog.ComponentNotFound():
            return Refused(
                code.INVALID_ARGUMENT,
                reason.ERROR_REASON_REQUEST_INVALID,
                str(error),
                violations=[("component_id", str(error))],
            )
        case runlog.QueueFull():
            return Refused(code.RESOURCE_EXHAUSTED, reason.ERROR_REASON_LIMIT_REACHED, str(error), retry_s=5.0)
        case runlog.WrongState():
            return Refused(code.FAILED_PRECONDITION, reason.ERROR_REASON_RUN_STATE, str(error), {"state": error.state})
        case runlog.CursorInvalid():
            return Refused(code.INVALID_ARGUMENT, reason.ERROR_REASON_CURSOR_INVALID, str(error))
        case runlog.EventsTrimmed():
            metadata = {"first_offset": str(error.first_offset)}
            return Refused(code.OUT_OF_RANGE, reason.ERROR_REASON_EVENTS_TRIMMED, str(error), metadata)
        case runlog.OffsetAhead():
            metadata = {"last_offset": str(error.last_offset)}
            return Refused(code.OUT_OF_RANGE, reason.ERROR_REASON_OFFSET_AHEAD, str(error), metadata)
        case runlog.LogRebuilt():
            metadata = {"log_id": error.log_id}
            return Refused(code.FAILED_PRECONDITION, reason.ERROR_REASON_LOG_REBUILT, str(error), metadata)
        case runlog.BlobNotFound():
            return Refused(code.NOT_FOUND, reason.ERROR_REASON_BLOB_NOT_FOUND, str(error), {"blob_uri": error.blob_uri})
        case runlog.StoreUnavailable():
            message = f"{error}: whether a write was applied is unknown, repeat it with the same request_id"
            return Refused(code.UNAVAILABLE, reason.ERROR_REASON_STORE_UNAVAILABLE, message, retry_s=1.0)
        case _:
            raise error


@contextlib.asynccontextmanager
async def rpc_errors(context: grpc.aio.ServicerContext[t.Any, t.Any]) -> AsyncIterator[None]:
    """End the RPC with the status of whatever the block raises.

    A bug becomes INTERNAL with an id that stands in the log too. Cancellation and a status that is already set pass.
    """
    try:
        yield
    except Refused as refused:
        await _abort(context, refused)
    except runlog.RunLogError as error:
        await _abort(context, refusal_of(error))
    except grpc.aio.AbortError:
        raise
    except grpc.aio.AioRpcError as error:
        await _pass_on(context, error)
    except Exception:
        bug = secrets.token_hex(6)
        logger.exception("internal error %s", bug)
        message = f"internal error {bug}: the server's log has it under this id"
        await _abort(
            context, Refused(grpc.StatusCode.INTERNAL, ErrorReason.ERROR_REASON_INTERNAL, message, {"id": bug})
        )


async def _abort(context: grpc.aio.ServicerContext[t.Any, t.Any], refused: Refused) -> t.NoReturn:
    status = rpc_status.to_status(refused.to_status())
    context.set_trailing_metadata(status.trailing_metadata)
    await context.abort(status.code, status.details)
    raise AssertionError("abort returned")


async def _pass_on(context: grpc.aio.ServicerContext[t.Any, t.Any], error: grpc.aio.AioRpcError) -> t.NoReturn:
    """Give the caller the status of a server behind this one, details included."""
    details = [(key, value) for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    context.set_trailing_metadata(details)
    await context.abort(error.code(), error.details() or "")
    raise AssertionError("abort returned")
