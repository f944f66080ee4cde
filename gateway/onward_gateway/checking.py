"""Whether a request is well formed: everything that is wrong with it is told at once, before anything is accepted."""

from __future__ import annotations

import json
import logging
import re
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.gateway_service_pb2 import (
    CancelRunRequest,
    ForkRunRequest,
    GapPolicy,
    GetRunRequest,
    InvokeWorkflowRequest,
    ListRunEventsRequest,
    ListRunsRequest,
    Position,
    ReadBlobRequest,
    ResumeRunRequest,
    SignalRunRequest,
    StartRunRequest,
    SubscribeRunRequest,
    View,
)
from onward.v1.run_pb2 import Payload, RunState
from onward_serving.bounds import LABELS_MAX, check_labels, check_size
from onward_serving.errors import Refused
from onward_serving.schemas import bounded, check_schema
from onward_serving.schemas import is_json as is_json

logger = logging.getLogger(__name__)

INPUT_BYTES_MAX = 3 * 1024 * 1024
SIGNAL_BYTES_MAX = 768 * 1024
"""A signal's value stands in an event, which is at most 1 MiB."""
NAME_BYTES_MAX = 128
"""Names of signals, deployments and fairness keys."""
REASON_BYTES_MAX = 4_096
PRIORITY_MAX = 100
BLOB_START_MAX = 2**53
"""Behind the end of any value, where there is nothing to read. A store cannot count much further."""
PAGE_SIZE_MAX = 1_000
RUNS_PAGE_SIZE = 50
EVENTS_PAGE_SIZE = 100
GET_WAIT_MAX_S = 60.0
HEARTBEAT_S = 10.0
HEARTBEAT_MIN_S = 1.0
HEARTBEAT_MAX_S = 60.0

RESERVED = "onward."
"""Signals whose names begin so are sent by the suite alone: they tell a run what only the suite knows."""

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_WORKFLOW = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)
_REQUEST_ID = re.compile(r"[\x20-\x7e]{0,64}", re.ASCII)
_SECONDS_MAX = 315_576_000_000  # 10,000 years, the longest a Duration may be
_DATES_S = range(-62_135_596_800, 253_402_300_800)  # years 1 to 9999, what a Timestamp may be


class Checks:
    """Collects what is wrong with a request."""

    def __init__(self) -> None:
        self._violations: list[tuple[str, str]] = []

    def that(self, holds: bool, field: str, otherwise: str) -> None:
        """Note a violation unless it `holds`."""
        if not holds:
            self._violations.append((field, otherwise))

    def run_id(self, value: str, field: str = "run_id") -> None:
        """Check a run's id that is required."""
        self.that(bool(_RUN_ID.fullmatch(value)), field, "required: 1 to 64 of A-Z a-z 0-9 _ -")

    def request_id(self, value: str, field: str = "request_id") -> None:
        """Check an optional request_id."""
        self.that(bool(_REQUEST_ID.fullmatch(value)), field, "up to 64 printable ASCII characters")

    def name(self, value: str, field: str) -> None:
        """Check an optional name that is somebody else's to choose."""
        self.that(value.isprintable(), field, "printable characters only")
        self.that(len(value.encode()) <= NAME_BYTES_MAX, field, f"at most {NAME_BYTES_MAX} bytes")

    def duration(self, value: Duration, field: str, *, least_s: float = 0.0, most_s: float = _SECONDS_MAX) -> None:
        """Check a duration that is set."""
        nanos = value.seconds * 1_000_000_000 + value.nanos
        sound = abs(value.nanos) < 1_000_000_000 and value.seconds * value.nanos >= 0
        within = round(least_s * 1e9) <= nanos <= round(most_s * 1e9)
        self.that(sound and within, field, f"from {least_s:.12g} s to {most_s:.12g} s")

    def timestamp(self, value: Timestamp, field: str) -> None:
        """Check a time."""
        self.that(value.seconds in _DATES_S and 0 <= value.nanos < 1_000_000_000, field, "a time from year 1 to 9999")

    def done(
        self,
        reason: ErrorReason.ValueType = ErrorReason.ERROR_REASON_REQUEST_INVALID,
        message: str = "the request is malformed",
    ) -> None:
        """Raises:
        Refused: With everything that was noted, as far as one error holds it.
        """
        if not self._violations:
            return
        told = bounded(self._violations)
        field, why = told[0]
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            reason,
            f"{message}: {field}: {why}" if field else f"{message}: {why}",
            violations=told,
        )


def check_start(request: StartRunRequest, prefix: str = "") -> None:
    """Check everything but the input.

    Raises:
        Refused: REQUEST_INVALID, or TOO_LARGE.
    """
    checks = Checks()
    checks.that(
        bool(_WORKFLOW.fullmatch(request.workflow)), f"{prefix}workflow", "required: 1 to 128 of A-Z a-z 0-9 _ . -"
    )
    if request.run_id:
        checks.run_id(request.run_id, f"{prefix}run_id")
    checks.request_id(request.request_id, f"{prefix}request_id")
    checks.that(abs(request.priority) <= PRIORITY_MAX, f"{prefix}priority", f"from -{PRIORITY_MAX} to {PRIORITY_MAX}")
    checks.name(request.fairness_key, f"{prefix}fairness_key")
    checks.name(request.deployment, f"{prefix}deployment")
    checks.that("" not in request.labels, f"{prefix}labels", "a label's key is not empty")
    if request.HasField("run_timeout"):
        checks.duration(request.run_timeout, f"{prefix}run_timeout", least_s=1e-9)
    if request.HasField("schedule_time"):
        checks.timestamp(request.schedule_time, f"{prefix}schedule_time")
    _check_inline(checks, request.input, f"{prefix}input")
    checks.done()
    check_labels(request.labels)
    check_size("the input in bytes", len(request.input.data), INPUT_BYTES_MAX)


def check_invoke(request: InvokeWorkflowRequest) -> None:
    """Check everything but the input; raises as `check_start`."""
    check_start(request.start, "start.")
    if request.HasField("wait"):
        checks = Checks()
        checks.duration(request.wait, "wait")
        checks.done()


def check_get(request: GetRunRequest) -> float:
    """Return how long to wait, in seconds.

    Raises:
        Refused: REQUEST_INVALID.
    """
    checks = Checks()
    checks.run_id(request.run_id)
    checks.duration(request.wait, "wait", most_s=GET_WAIT_MAX_S)
    checks.done()
    return seconds(request.wait)


def check_list(request: ListRunsRequest) -> int:
    """Return the page's size.

    Raises:
        Refused: REQUEST_INVALID.
    """
    checks = Checks()
    if request.workflow:
        checks.that(bool(_WORKFLOW.fullmatch(request.workflow)), "workflow", "1 to 128 of A-Z a-z 0-9 _ . -")
    if request.parent_run_id:
        checks.run_id(request.parent_run_id, "parent_run_id")
    known = set(RunState.values()) - {RunState.RUN_STATE_UNSPECIFIED}
    checks.that(known.issuperset(request.states), "states", "RUN_STATE_QUEUED to RUN_STATE_CANCELLED")
    checks.that(len(request.labels) <= LABELS_MAX, "labels", f"at most {LABELS_MAX}, as a run has no more")
    size = _page_size(checks, request.page_size, RUNS_PAGE_SIZE)
    checks.done()
    return size


def page_token_invalid(why: str) -> Refused:
    """Return the refusal of a page token."""
    return Refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_REQUEST_INVALID,
        f"the page token is not valid here: {why}",
        violations=[("page_token", why)],
    )


def check_cancel(request: CancelRunRequest) -> None:
    """Raises:
    Refused: REQUEST_INVALID or TOO_LARGE.
    """
    checks = Checks()
    checks.run_id(request.run_id)
    checks.done()
    check_size("reason in bytes", len(request.reason.encode()), REASON_BYTES_MAX)


def check_signal(request: SignalRunRequest) -> None:
    """Raises:
    Refused: REQUEST_INVALID, INPUT_INVALID or TOO_LARGE.
    """
    checks = Checks()
    checks.run_id(request.run_id)
    checks.request_id(request.request_id)
    checks.that(bool(request.name), "name", "required")
    checks.that(not request.name.startswith(RESERVED), "name", f"names that begin with {RESERVED!r} are Onward's own")
    checks.name(request.name, "name")
    _check_inline(checks, request.value, "value")
    checks.done()
    check_size("the value in bytes", len(request.value.data), SIGNAL_BYTES_MAX)
    if request.value.HasField("data") and is_json(request.value.media_type):
        _parsed(request.value.data)


def check_resume(request: ResumeRunRequest) -> None:
    """Raises:
    Refused: REQUEST_INVALID.
    """
    checks = Checks()
    checks.run_id(request.run_id)
    checks.name(request.deployment, "deployment")
    checks.done()


def check_fork(request: ForkRunRequest) -> None:
    """Raises:
    Refused: REQUEST_INVALID.
    """
    checks = Checks()
    checks.run_id(request.run_id)
    if request.new_run_id:
        checks.run_id(request.new_run_id, "new_run_id")
    checks.request_id(request.request_id)
    checks.name(request.component_id, "component_id")
    checks.name(request.deployment, "deployment")
    checks.that(not (request.from_failure and request.component_id), "component_id", "empty with from_failure")
    checks.done()


def check_blob(request: ReadBlobRequest) -> None:
    """Raises:
    Refused: REQUEST_INVALID.
    """
    checks = Checks()
    checks.run_id(request.run_id)
    checks.that(bool(request.blob_uri), "blob_uri", "required")
    checks.that(len(request.blob_uri) <= NAME_BYTES_MAX, "blob_uri", f"at most {NAME_BYTES_MAX} characters")
    checks.that(0 <= request.start <= BLOB_START_MAX, "start", f"from 0 to {BLOB_START_MAX}")
    checks.done()


def check_subscribe(request: SubscribeRunRequest) -> float:
    """Return the longest silence before a Bookmark, in seconds.

    Raises:
        Refused: REQUEST_INVALID.
    """
    checks = Checks()
    checks.run_id(request.run_id)
    _check_position(checks, request.start)
    _check_view(checks, request.view)
    if request.HasField("heartbeat"):
        checks.duration(request.heartbeat, "heartbeat", least_s=HEARTBEAT_MIN_S, most_s=HEARTBEAT_MAX_S)
    checks.done()
    return seconds(request.heartbeat) if request.HasField("heartbeat") else HEARTBEAT_S


def check_events(request: ListRunEventsRequest) -> int:
    """Return the page's size.

    Raises:
        Refused: REQUEST_INVALID.
    """
    checks = Checks()
    checks.run_id(request.run_id)
    _check_position(checks, request.start)
    _check_view(checks, request.view)
    size = _page_size(checks, request.page_size, EVENTS_PAGE_SIZE)
    checks.done()
    return size


def checked_input(value: Payload, schema: Payload) -> Payload:
    """Return an input as it is kept: none is an empty object, and its size is set.

    Args:
        schema: The workflow's; empty means anything.

    Raises:
        Refused: INPUT_INVALID, with every violation, as far as the input is not too large for that.
    """
    data = value.data
    if is_json(value.media_type):
        data = data or b"{}"
        instance = _parsed(data)
        if schema.data:
            check_schema(instance, data, schema.data)
    elif schema.data:
        _refuse_input(f"the workflow takes application/json, not {value.media_type}")
    return Payload(media_type=value.media_type, data=data, size=len(data))


def seconds(duration: Duration) -> float:
    """Return a duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def _check_inline(checks: Checks, value: Payload, field: str) -> None:
    checks.that(value.WhichOneof("value") != "blob_uri", field, "a request carries its values inline, in data")
    checks.that(value.media_type.isprintable(), f"{field}.media_type", "printable characters only")
    checks.that(len(value.media_type) <= NAME_BYTES_MAX, f"{field}.media_type", f"at most {NAME_BYTES_MAX} characters")


def _check_position(checks: Checks, position: Position) -> None:
    checks.that(position.after_offset >= 0, "start.after_offset", "not negative")
    checks.that(position.last >= 0, "start.last", "not negative")
    checks.that(position.on_gap in GapPolicy.values(), "start.on_gap", "GAP_POLICY_FAIL or GAP_POLICY_SKIP")
    checks.that(
        position.log_id.isascii() and position.log_id.isprintable(), "start.log_id", "printable ASCII characters"
    )
    checks.that(len(position.log_id) <= NAME_BYTES_MAX, "start.log_id", f"at most {NAME_BYTES_MAX} characters")


def _check_view(checks: Checks, view: View.ValueType) -> None:
    checks.that(view in View.values(), "view", "VIEW_RAW or VIEW_SETTLED")


def _page_size(checks: Checks, asked: int, default: int) -> int:
    checks.that(0 <= asked <= PAGE_SIZE_MAX, "page_size", f"from 1 to {PAGE_SIZE_MAX}; 0 means {default}")
    return asked or default


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data.decode(), parse_constant=_no_constant)  # decoded here: json.loads takes lone surrogates
    except RecursionError:
        _refuse_input("nested too deep")
    except ValueError as error:
        _refuse_input(f"not JSON: {error}")


def _refuse_input(why: str) -> NoReturn:
    raise Refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_INPUT_INVALID,
        f"the input is invalid: {why}",
        violations=[("", why)],
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
