"""A component's span is made late: samplers, processors, users and the run itself see nothing of that."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from copy import copy

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import onward
from onward import component, workflow
from onward.engine import Attempt
from onward.instance import CURRENT
from onward.memory import MemoryPermits, MemoryRun
from onward.telemetry import RunIdGenerator
from onward.turns import SETTLE_TURNS, Turns
from onward.v1.event_pb2 import ATTEMPT_CAUSE_STARTED
from onward.v1.run_pb2 import RUN_STATE_SUCCEEDED, Run, RunLog
from onward.workflows import Workflow

Provided = Callable[[SpanProcessor], InMemorySpanExporter]


@pytest.fixture
def provided(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provided]:
    made: list[TracerProvider] = []

    def provide(processor: SpanProcessor) -> InMemorySpanExporter:
        exporter = InMemorySpanExporter()
        provider = TracerProvider(id_generator=RunIdGenerator())
        provider.add_span_processor(processor)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
        made.append(provider)
        return exporter

    yield provide
    for provider in made:
        provider.shutdown()


async def execute(flow: Workflow[..., object, object], permits: MemoryPermits | None = None) -> None:
    """Run it, and make sure that it succeeds."""
    log = MemoryRun().begin()
    run = Run(run_id="r", namespace="n", workflow=flow.name, log=RunLog(log_id="l"))
    attempt = Attempt(
        flow,
        run=run,
        log=log,
        attempt=1,
        cause=ATTEMPT_CAUSE_STARTED,
        executor_id="e",
        deployment="d",
        permits=permits,
    )
    async with asyncio.timeout(10):
        await attempt.run()
    assert attempt.state == RUN_STATE_SUCCEEDED, log.run.events[-1]


@component
async def step(number: int) -> int:
    await asyncio.sleep(0.001)
    return number


@workflow
async def three() -> list[int]:
    return list(await asyncio.gather(step(1), step(2), step(3)))


class Raises(SpanProcessor):
    def __init__(self, place: str) -> None:
        self._place = place

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if span.name == "step" and self._place == "start":
            raise RuntimeError("a processor's fault")

    def on_end(self, span: ReadableSpan) -> None:
        if span.name == "step" and self._place == "end":
            raise RuntimeError("a processor's fault")


@pytest.mark.parametrize("place", ["start", "end"])
async def test_a_processor_that_raises_costs_spans_and_not_the_run(
    provided: Provided, place: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one line of log."""
    monkeypatch.setattr("onward.tracing._complained", set())
    exporter = provided(Raises(place))
    await execute(three)
    assert "attempt 1" in {span.name for span in exporter.get_finished_spans()}
    assert [record.name for record in caplog.records] == ["onward.tracing"]


async def test_nor_does_it_cost_a_permit(provided: Provided) -> None:
    """That it was waited for is noted in the span when it was had."""
    provided(Raises("start"))
    permits = MemoryPermits()

    @workflow
    async def limited() -> list[int]:
        one = step.concurrency(1)
        return list(await asyncio.gather(one(1), one(2), one(3)))

    await execute(limited, permits)
    assert not +permits._held  # noqa: SLF001


async def test_a_processor_reads_the_span_above(provided: Provided) -> None:
    class Inherits(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            above = trace.get_current_span(parent_context)
            if span.name == "step":
                assert isinstance(above, ReadableSpan)
                assert above.attributes is not None
                span.set_attribute("session", above.attributes["session"])

    exporter = provided(Inherits())

    @component
    async def calls() -> int:
        trace.get_current_span().set_attribute("session", "s")
        return await step(1)

    @workflow
    async def flow() -> int:
        return await calls()

    await execute(flow)
    [made] = [span for span in exporter.get_finished_spans() if span.name == "step"]
    assert made.attributes is not None
    assert made.attributes["session"] == "s"


async def test_users_read_what_the_sdk_has_beyond_the_api(provided: Provided) -> None:
    provided(SpanProcessor())

    @component
    async def reads() -> str:
        return str(trace.get_current_span().name)  # type: ignore[attr-defined]

    @workflow
    async def flow() -> None:
        assert await reads() == "reads"

    await execute(flow)


async def test_a_span_can_be_copied(provided: Provided) -> None:
    """As frameworks do with what they find in a context; a copy is the same span."""
    provided(SpanProcessor())

    @component
    async def copies() -> None:
        span = trace.get_current_span()
        assert copy(span).get_span_context() == span.get_span_context()

    @workflow
    async def flow() -> None:
        await copies()

    await execute(flow)


TENANT: ContextVar[str] = ContextVar("tenant", default="")


async def test_a_processor_finds_the_context_of_the_call(provided: Provided) -> None:
    """At the start and at the end: sessions, the tenant of a log line."""
    ended: dict[str, str] = {}

    class Tenants(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            span.set_attribute("tenant", TENANT.get())

        def on_end(self, span: ReadableSpan) -> None:
            ended[span.name] = TENANT.get()

    exporter = provided(Tenants())

    async def of(tenant: str) -> int:
        TENANT.set(tenant)
        return await step.named(f"of {tenant}")(1)

    @workflow
    async def flow() -> list[int]:
        return list(await asyncio.gather(of("a"), of("b"), of("c")))

    await execute(flow)
    spans = [span for span in exporter.get_finished_spans() if span.name.startswith("of ")]
    expected = {"of a": "a", "of b": "b", "of c": "c"}
    assert {span.name: (span.attributes or {})["tenant"] for span in spans} == expected
    assert {name: ended[name] for name in expected} == expected


async def test_a_processor_may_log_lines_that_carry_the_span(provided: Provided) -> None:
    """As opentelemetry-instrumentation-logging has them: the one above while a span begins, as ever."""
    made: list[str] = []
    log = logging.getLogger("tests.processor")

    class Logs(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            made.append(span.name)
            log.warning("started %s", span.name)

    provided(Logs())
    factory = logging.getLogRecordFactory()

    def with_span(*args: object, **kwargs: object) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        record.span_id = trace.get_current_span().get_span_context().span_id
        return record

    @component
    async def speaks() -> int:
        log.warning("here")
        return 1

    @workflow
    async def flow() -> int:
        return await speaks()

    logging.setLogRecordFactory(with_span)
    try:
        await execute(flow)
    finally:
        logging.setLogRecordFactory(factory)
    assert made.count("speaks") == 1


async def test_hundreds_of_components_below_each_other_have_spans(provided: Provided) -> None:
    """Each as deep as its run, though all are made at the end."""
    exporter = provided(SpanProcessor())

    @component
    async def deeper(left: int) -> int:
        return 0 if left == 0 else 1 + await asyncio.create_task(deeper(left - 1))

    @workflow
    async def flow() -> int:
        return await deeper(400)

    await execute(flow)
    assert len([span for span in exporter.get_finished_spans() if span.name == "deeper"]) == 401


async def test_a_run_that_never_rests_keeps_few_of_them(provided: Provided) -> None:
    exporter = provided(SpanProcessor())

    @workflow
    async def flow() -> int:
        for _ in range(1_000):
            onward.random()
            await asyncio.sleep(0)
        return len(exporter.get_finished_spans())

    seen: list[int] = []

    @workflow
    async def looks() -> None:
        assert CURRENT.get() is not None
        seen.append(await flow.fn())

    await execute(looks)
    assert seen[0] > 900


async def test_what_nobody_waits_for_is_done_however_much_more_comes() -> None:
    turns, given, done = Turns(), 0, 0

    def count() -> None:
        nonlocal done
        done += 1

    for _ in range(100 * SETTLE_TURNS):
        turns.when_at_rest(count)
        given += 1
        await asyncio.sleep(0)
    assert given - done <= 2 * SETTLE_TURNS


def test_a_thread_may_log_while_a_span_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a lock of its handler, which the processor's own line waits for, while the handler looks at its span."""
    in_handler, in_processor = threading.Event(), threading.Event()
    log = logging.getLogger("tests.deadlock")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # logging holds its lock here
            if record.msg == "at work":
                in_handler.set()
                in_processor.wait(5)
                time.sleep(0.02)  # until the processor waits for the lock; nothing tells that
                trace.get_current_span().get_span_context()

    class Logs(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            if span.name == "looks":
                in_handler.wait(5)
                in_processor.set()
                log.warning("started")

    provider = TracerProvider()
    provider.add_span_processor(Logs())
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(log, "propagate", False)
    handler = Handler()
    log.addHandler(handler)

    @component
    def in_thread() -> int:
        log.warning("at work")
        return 1

    @component
    async def looks() -> int:
        return 1

    @workflow
    async def flow() -> list[int]:
        return list(await asyncio.gather(in_thread(), looks()))

    running = threading.Thread(target=lambda: asyncio.run(execute(flow)), daemon=True)
    try:
        running.start()
        running.join(10)
        assert not running.is_alive(), "both wait for each other"
        assert in_handler.is_set()
        assert in_processor.is_set()
    finally:
        log.removeHandler(handler)
        provider.shutdown()
