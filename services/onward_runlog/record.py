"""A run's record in Redis, read as a Run message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from onward.v1.run_pb2 import Payload, Run, RunError, RunState, Usage

LISTED = (
    "run", "state", "attempt", "holder", "deployment", "log_id", "last", "start", "end", "expire", "error", "usage",
    "waiting", "wake", "continued",
)  # fmt: skip
"""Fields of the record that a Run without input and output is made from."""

FULL = (*LISTED, "input", "output")
"""Fields that a whole Run is made from."""

TERMINAL = frozenset({RunState.RUN_STATE_SUCCEEDED, RunState.RUN_STATE_FAILED, RunState.RUN_STATE_CANCELLED})
"""The states after which nothing follows."""


def timestamp(milliseconds: int) -> Timestamp:
    """Return a time of the store's clock as a message."""
    return Timestamp(seconds=milliseconds // 1000, nanos=milliseconds % 1000 * 1_000_000)


def pairs(flat: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return the dict of HGETALL's flat reply."""
    fields = iter(flat)
    return dict(zip(fields, fields, strict=True))


def usage_text(usage: Usage) -> str:
    """Return a usage as the store adds it up."""
    return (
        f"{usage.input_tokens} {usage.output_tokens} {usage.cached_input_tokens} {usage.cost_usd_micros} {usage.calls}"
    )


def _usage(text: bytes) -> Usage:
    input_tokens, output_tokens, cached_input_tokens, cost_usd_micros, calls = map(int, text.split())
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_input_tokens=cached_input_tokens,
        cost_usd_micros=cost_usd_micros,
        calls=calls,
    )


def run_from(record: Mapping[bytes, bytes | None]) -> Run:
    """Return the Run of a record or of the part of it that was read; input and output are set where they were read."""
    run = Run.FromString(record[b"run"] or b"")
    run.state = RunState.ValueType(int(record[b"state"] or 0))
    run.attempt = int(record[b"attempt"] or 0)
    run.executor_id = (record[b"holder"] or b"").decode()
    run.deployment = (record[b"deployment"] or b"").decode()
    run.log.log_id = (record[b"log_id"] or b"").decode()
    run.log.first_offset = 1
    run.log.last_offset = int(record[b"last"] or 0)
    run.log.closed = run.state in TERMINAL
    for field, name in ((run.start_time, b"start"), (run.end_time, b"end"), (run.expire_time, b"expire")):
        value = record.get(name)
        if value:
            field.CopyFrom(timestamp(int(value)))
    if used := record.get(b"usage"):
        run.usage.CopyFrom(_usage(used))
    if run.state == RunState.RUN_STATE_WAITING:
        run.waiting_for = (record.get(b"waiting") or b"").decode()
        if value := record.get(b"wake"):
            run.wake_time.CopyFrom(timestamp(int(value)))
    run.continued_as_run_id = (record.get(b"continued") or b"").decode()
    if (error := record.get(b"error")) and run.state in (RunState.RUN_STATE_FAILED, RunState.RUN_STATE_PAUSED):
        run.error.CopyFrom(RunError.FromString(error))
    if (value := record.get(b"input")) is not None:
        run.input.CopyFrom(Payload.FromString(value))
    if (value := record.get(b"output")) is not None and run.state == RunState.RUN_STATE_SUCCEEDED:
        run.output.CopyFrom(Payload.FromString(value))
    return run
