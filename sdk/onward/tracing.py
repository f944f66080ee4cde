"""Runs, attempts and components as OpenTelemetry spans. Without a tracer provider none of it costs anything.

    caller's span → run → attempt → component → component …

A run's span lasts from acceptance to its end, across processes, and nobody holds it open: its ids are made from the
run itself, so that every attempt can name it as parent, and whoever closes the log emits it once. `onward.telemetry`
sets up the provider.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import ContextVar, copy_context
from hashlib import blake2b
from threading import Lock
from time import time_ns
from typing import Any, Self

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes, AttributeValue

from onward.v1.run_pb2 import RUN_STATE_FAILED, Run, RunError, RunState

logger = logging.getLogger(__name__)

NEXT_IDS: ContextVar[tuple[int, int] | None] = ContextVar("onward_next_ids", default=None)
"""Trace id and span id that the next span gets, where `onward.telemetry.RunIdGenerator` makes ids."""

_W3C = TraceContextTextMapPropagator()


def tracer() -> Tracer | None:
    """Return the tracer of this process, None where nobody would see a span."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    return provider.get_tracer("onward")


def current_trace_parent() -> str:
    """Return the running span as a W3C traceparent; empty where there is none."""
    if not trace.get_current_span().get_span_context().is_valid:
        return ""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent", "")


def trace_parent_of(span: Span | None) -> str:
    """Return a span as a W3C traceparent; empty where there is none."""
    if span is None or not span.get_span_context().is_valid:
        return ""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, context=_below(span))
    return carrier.get("traceparent", "")


def run_span_context(run: Run, trace_parent: str = "") -> SpanContext:
    """Return what names the run's span: in the caller's trace where there is one, else in a trace of its own."""
    parent = _parse(trace_parent)
    digest = blake2b(f"{run.namespace}\0{run.run_id}\0{run.log.log_id}".encode(), digest_size=24).digest()
    return SpanContext(
        trace_id=parent.trace_id if parent.is_valid else int.from_bytes(digest[:16], "big") or 1,
        span_id=int.from_bytes(digest[16:], "big") or 1,
        is_remote=True,
        trace_flags=parent.trace_flags if parent.is_valid else TraceFlags(TraceFlags.SAMPLED),
    )


def emit_run_span(
    run: Run, state: RunState.ValueType, *, trace_parent: str = "", error: RunError | None = None
) -> None:
    """Emit the span of a run that ended now. To be called once, by whoever closed its log.

    Args:
        run: The run; create_time is where the span begins.
        state: Its terminal state.
        trace_parent: The caller's span as a W3C traceparent; empty when there is none.
        error: What ended it, in RUN_STATE_FAILED.
    """
    maker = tracer()
    if maker is None:
        return
    context = run_span_context(run, trace_parent)
    parent = _parse(trace_parent)
    token = NEXT_IDS.set((context.trace_id, context.span_id))
    try:
        span = maker.start_span(
            f"run {run.workflow}",
            context=_below(NonRecordingSpan(parent)) if parent.is_valid else Context(),
            kind=SpanKind.CONSUMER,
            start_time=_nanos(run.create_time) if run.HasField("create_time") else None,
            attributes={**_names(run), "onward.state": RunState.Name(state).removeprefix("RUN_STATE_")},
        )
    finally:
        NEXT_IDS.reset(token)
    end(span, error if state == RUN_STATE_FAILED else None)


def start_attempt_span(maker: Tracer, run: Run, attempt: int, trace_parent: str) -> Span:
    """Return the span of an attempt, below the run's."""
    parent = NonRecordingSpan(run_span_context(run, trace_parent))
    return maker.start_span(
        f"attempt {attempt}", context=_below(parent), attributes={**_names(run), "onward.attempt": attempt}
    )


class ComponentSpan(Span):
    """The span of an instance, below that of the instance that called it. It begins now and is made later.

    To make one takes as long as most else that is done before a component's code runs, and hardly any code looks at
    its span. So it is made for the first who does; otherwise once it has ended, while the log takes its result.
    Samplers and processors find the context that they would have found at once, and cannot harm the run: where they
    raise, it goes on without this span.

    Attributes:
        above: The span of who called it, or of the attempt.
        made: The span itself; None before anybody has looked at it.
    """

    __slots__ = ("_began", "_component_id", "_context", "_kind", "_maker", "_name", "above", "made")

    def __init__(
        self, maker: Tracer, name: str, component_id: str, parent: Span | None, kind: SpanKind = SpanKind.INTERNAL
    ) -> None:
        self._maker = maker
        self._name = name
        self._component_id = component_id
        self.above = parent
        self._kind = kind
        self._began = time_ns()
        self._context = copy_context()
        self.made: Span | None = None

    def _span(self) -> Span:
        """Return the span itself."""
        if self.made is None:
            unmade = [self]
            while isinstance(above := unmade[-1].above, ComponentSpan) and above.made is None:
                unmade.append(above)
            for span in reversed(unmade):  # From the top, one by one: they may be hundreds.
                span._make()
        assert self.made is not None
        return self.made

    def _make(self) -> None:
        parent = self.above.made if isinstance(self.above, ComponentSpan) else self.above
        below = None if parent is None else _below(parent)
        try:
            # A copy: two threads may look at the same time, and a context is entered once at a time.
            made = self._context.copy().run(self._start, below)
        except Exception as error:  # noqa: BLE001 - whatever a processor raises
            _complain(error)
            made = NonRecordingSpan(trace.INVALID_SPAN_CONTEXT if parent is None else parent.get_span_context())
        # No lock while others' code runs, which may wait for who waits here. Of two that were made one is let go.
        with _swapping:
            if self.made is None:
                self.made = made

    def _start(self, context: Context | None) -> Span:
        return self._maker.start_span(
            self._name,
            context=context,
            kind=self._kind,
            attributes={"onward.component_id": self._component_id},
            start_time=self._began,
        )

    def __getattr__(self, name: str) -> Any:
        """Return what the SDK's spans have beyond the API: name, attributes, status, …"""
        if name.startswith("__"):  # What Python asks for is this object's.
            raise AttributeError(name)
        return getattr(self._span(), name)

    def __copy__(self) -> Self:
        return self  # Two would be made where one is meant.

    def end(self, end_time: int | None = None) -> None:
        made = self._span()
        try:
            self._context.copy().run(made.end, end_time)
        except Exception as error:  # noqa: BLE001 - whatever a processor raises
            _complain(error)

    def get_span_context(self) -> SpanContext:
        return self._span().get_span_context()

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self._span().set_attributes(attributes)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self._span().set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        self._span().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        self._span().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self._span().update_name(name)

    def is_recording(self) -> bool:
        return self._span().is_recording()

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._span().set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        self._span().record_exception(exception, attributes, timestamp, escaped)


_swapping = Lock()

_complained: set[type[BaseException]] = set()


def _complain(error: Exception) -> None:
    """Say once what a sampler or a span processor raises: it may be so with each of a million spans."""
    if type(error) not in _complained:
        _complained.add(type(error))
        logger.error("a sampler or a span processor raised: spans are missing from here on", exc_info=error)


def retrying(span: Span, try_number: int, error: RunError) -> None:
    """Note on an instance's span that a try failed."""
    span.add_event(
        "retrying", {"onward.try": try_number, "exception.type": error.type, "exception.message": error.message}
    )


def end(span: Span, error: RunError | None = None, *, cancelled: bool = False) -> None:
    """End a span, well unless it is told otherwise."""
    if span.is_recording():
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error.message))
            span.set_attributes({"error.type": error.type or error.reason, "onward.reason": error.reason})
        elif cancelled:
            span.set_attribute("onward.cancelled", True)
    span.end()


def _below(span: Span) -> Context:
    # An empty context, not the current one: the baggage and the span of another run may be in that.
    return trace.set_span_in_context(span, Context())


def _names(run: Run) -> dict[str, Any]:
    return {"onward.run_id": run.run_id, "onward.namespace": run.namespace, "onward.workflow": run.workflow}


def _nanos(time: Timestamp) -> int:
    return time.seconds * 1_000_000_000 + time.nanos


def _parse(trace_parent: str) -> SpanContext:
    if not trace_parent:
        return trace.INVALID_SPAN_CONTEXT
    return trace.get_current_span(_W3C.extract({"traceparent": trace_parent}, Context())).get_span_context()
