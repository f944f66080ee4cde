"""Runs, attempts and components as spans, read in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from time import time_ns

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from onward import component, tracing, workflow
from onward.engine import Attempt
from onward.memory import MemoryRun
from onward.telemetry import RunIdGenerator, configure_from_env
from onward.v1.event_pb2 import ATTEMPT_CAUSE_EXECUTOR_LOST, ATTEMPT_CAUSE_STARTED
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, Payload, Run, RunLog
from onward.workflows import Workflow

TRACE_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(id_generator=RunIdGenerator())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # The global one can be set once in a process; this is what its setter does.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def a_run(workflow: str) -> Run:
    run = Run(run_id="r", namespace="n", workflow=workflow, log=RunLog(log_id="l"))
    run.create_time.FromSeconds(1_700_000_000)
    return run


async def execute(
    flow: Workflow[..., object, object], memory: MemoryRun, *, trace_parent: str = "", dies_after: int = 0
) -> None:
    log = memory.begin(dies_after=dies_after)
    await Attempt(
        flow,
        run=a_run(flow.name),
        log=log,
        attempt=log.attempt,
        cause=ATTEMPT_CAUSE_STARTED if log.attempt == 1 else ATTEMPT_CAUSE_EXECUTOR_LOST,
        executor_id="e",
        deployment="d",
        trace_parent=trace_parent,
    ).run()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def parent_of(span: ReadableSpan) -> int:
    return span.parent.span_id if span.parent is not None else 0


@component
async def inner() -> int:
    with trace.get_tracer_provider().get_tracer("users").start_as_current_span("http call"):
        return 1


@component
async def outer() -> int:
    return await inner()


@component
async def stream() -> AsyncIterator[int]:
    yield await inner.named("below")()


@workflow
async def flow() -> list[int]:
    return [await outer(), *[item async for item in stream()]]


async def test_a_run_is_a_tree_of_spans(spans: InMemorySpanExporter) -> None:
    """Caller, run, attempt, component, component, and what user code traces itself."""
    await execute(flow, MemoryRun(), trace_parent=TRACE_PARENT)
    told = by_name(spans)
    assert {span.context.trace_id for span in told.values() if span.context} == {0x0AF7651916CD43DD8448EB211C80319C}
    assert parent_of(told["run flow"]) == 0xB7AD6B7169203331
    for child, parent in [
        ("attempt 1", "run flow"),
        ("outer", "attempt 1"),
        ("inner", "outer"),
        ("stream", "attempt 1"),
        ("below", "stream"),
    ]:
        context = told[parent].context
        assert context is not None
        assert parent_of(told[child]) == context.span_id, child
    users = [span for span in spans.get_finished_spans() if span.name == "http call"]
    assert {parent_of(span) for span in users} == {
        span.context.span_id for span in (told["inner"], told["below"]) if span.context
    }
    assert told["run flow"].start_time == 1_700_000_000_000_000_000
    attributes = told["run flow"].attributes
    assert attributes is not None
    assert (attributes["onward.run_id"], attributes["onward.state"]) == ("r", "SUCCEEDED")


async def test_a_span_lasts_as_long_as_its_component(spans: InMemorySpanExporter) -> None:
    """It is made later, and still says when; everything is out before the attempt's own span ends."""
    times: list[int] = []

    @component
    async def unseen() -> None:
        times.append(time_ns())

    @workflow
    async def calls() -> None:
        for _ in range(3):
            await unseen()
            times.append(time_ns())

    before = time_ns()
    await execute(calls, MemoryRun())
    made = spans.get_finished_spans()
    assert [span.name for span in made] == ["run calls", "unseen", "unseen", "unseen", "attempt 1"]
    for span in made[1:4]:
        began, ended = span.start_time, span.end_time
        assert began is not None
        assert ended is not None
        inside, after = times[:2]
        assert before <= began <= inside <= ended <= after
        before, times = after, times[2:]


async def test_a_components_code_can_say_more_in_its_span(spans: InMemorySpanExporter) -> None:
    """On the event loop as in a thread; and what it made there is its own, whoever looks again."""

    def say(more: str) -> str:
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attributes({"users.more": more})
        span.set_attribute("users.one", 1)
        span.add_event("seen", {"at": 1})
        span.add_link(trace.SpanContext(1, 2, is_remote=True))
        span.update_name(f"renamed {more}")
        span.record_exception(ValueError("handled"))
        span.set_status(StatusCode.OK)
        return f"{trace.get_current_span().get_span_context().span_id:x}"

    @component
    async def on_loop() -> str:
        return say("loop")

    @component
    def in_thread() -> str:
        return say("thread")

    @workflow
    async def both() -> list[str]:
        return [await on_loop(), await in_thread()]

    memory = MemoryRun()
    await execute(both, memory)
    told = by_name(spans)
    made = [told["renamed loop"], told["renamed thread"]]
    for span in made:
        assert span.attributes is not None
        assert span.attributes["users.one"] == 1
        assert span.attributes["onward.component_id"]
        assert [event.name for event in span.events] == ["seen", "exception"]
        assert [link.context.span_id for link in span.links] == [2]
        assert span.status.status_code is StatusCode.OK
    output = memory.events[-1].run_state_changed.output.data
    assert output == b'["' + b'","'.join(f"{span.context.span_id:x}".encode() for span in made if span.context) + b'"]'


async def test_every_attempt_is_below_the_one_span_of_the_run(spans: InMemorySpanExporter) -> None:
    """Nobody holds it open: its ids are made from the run, and it is emitted once."""
    memory = MemoryRun()
    await execute(flow, memory, dies_after=3)
    await execute(flow, memory)
    finished = spans.get_finished_spans()
    (run,) = [span for span in finished if span.name == "run flow"]
    assert run.parent is None
    assert run.context is not None
    assert {parent_of(span) for span in finished if span.name.startswith("attempt")} == {run.context.span_id}
    assert run.context.span_id == tracing.run_span_context(a_run("flow")).span_id


async def test_errors_are_the_status_of_their_spans(spans: InMemorySpanExporter) -> None:
    """Of the component, of the attempt and of the run; a try that failed is an event."""

    @component.retry(2, 0)
    async def fail() -> None:
        raise ConnectionError("refused")

    @workflow
    async def failing() -> None:
        await fail()

    await execute(failing, MemoryRun())
    told = by_name(spans)
    for name in ("fail", "attempt 1", "run failing"):
        assert told[name].status.status_code is StatusCode.ERROR, name
    assert told["fail"].status.description == "refused"
    assert [event.name for event in told["fail"].events] == ["retrying"]


async def test_what_is_cancelled_is_no_error(spans: InMemorySpanExporter) -> None:
    """It says so in an attribute."""

    @component
    async def wait() -> None:
        await asyncio.Event().wait()

    @workflow
    async def waiting() -> None:
        try:
            async with asyncio.timeout(0.001):
                await wait()
        except TimeoutError:
            pass

    await execute(waiting, MemoryRun())
    span = by_name(spans)["wait"]
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes is not None
    assert span.attributes["onward.cancelled"] is True


def test_whoever_closes_a_log_emits_the_runs_span(spans: InMemorySpanExporter) -> None:
    """A Scheduler that cancels a queued run, without the engine."""
    tracing.emit_run_span(a_run("flow"), RUN_STATE_CANCELLED, trace_parent=TRACE_PARENT)
    (span,) = spans.get_finished_spans()
    assert span.context is not None
    assert span.context.span_id == tracing.run_span_context(a_run("flow"), TRACE_PARENT).span_id
    assert parent_of(span) == 0xB7AD6B7169203331


def test_a_callers_span_can_be_handed_on(spans: InMemorySpanExporter) -> None:
    """As a W3C traceparent; empty where nothing is traced."""
    assert tracing.current_trace_parent() == ""
    with trace.get_tracer_provider().get_tracer("test").start_as_current_span("caller") as span:
        context = span.get_span_context()
        assert tracing.current_trace_parent().startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-0")


def test_a_caller_who_is_not_sampled_is_not_traced(spans: InMemorySpanExporter) -> None:
    """Its decision holds for the run."""
    tracing.emit_run_span(a_run("flow"), RUN_STATE_CANCELLED, trace_parent=TRACE_PARENT[:-1] + "0")
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize("trace_parent", ["", "garbage", "00-0-0-01"])
def test_a_run_without_a_caller_has_a_trace_of_its_own(trace_parent: str) -> None:
    """Made from the run: two runs have two, one run has one."""
    one = tracing.run_span_context(a_run("flow"), trace_parent)
    other = Run(run_id="other", namespace="n", log=RunLog(log_id="l"))
    assert one.is_valid
    assert one == tracing.run_span_context(a_run("flow"), trace_parent)
    assert one.trace_id != tracing.run_span_context(other, trace_parent).trace_id


async def test_without_a_provider_there_are_no_spans() -> None:
    """And a run runs."""
    assert tracing.tracer() is None
    memory = MemoryRun()
    await execute(flow, memory)
    assert memory.events[-1].run_state_changed.output == Payload(data=b"[1,1]", size=5)


def test_the_environment_says_where_spans_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nowhere by default; an exporter that is not installed is a clear error."""
    made: list[TracerProvider] = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    assert configure_from_env("test", {}) is None
    assert configure_from_env("test", {"OTEL_TRACES_EXPORTER": "none"}) is None
    assert made == []
    with pytest.raises(ValueError, match="opentelemetry-exporter-pigeon"):
        configure_from_env("test", {"OTEL_TRACES_EXPORTER": "pigeon"})
    provider = configure_from_env("test", {"OTEL_TRACES_EXPORTER": "console"})
    assert provider is not None
    assert made == [provider]
    assert provider.resource.attributes["service.name"] == "test"
    provider.shutdown()
