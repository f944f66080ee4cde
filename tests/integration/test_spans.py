"""A run as spans, across all that it passes through: here in one process, so that they can be read in memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from onward import Client
from onward.telemetry import RunIdGenerator
from onward.v1.run_pb2 import RUN_STATE_QUEUED
from onward_executor import app as executor_app
from onward_executor.settings import Settings as ExecutorSettings
from onward_gateway import app as gateway_app
from onward_gateway.settings import Settings as GatewaySettings
from onward_scheduler import app as scheduler_app
from onward_scheduler.settings import Settings as SchedulerSettings

CODE = """
import asyncio

from onward import component, workflow

@component
async def leaf() -> str:
    return "tea"

@component
async def branch() -> str:
    return await leaf()

@workflow
async def tree() -> str:
    return await branch()

@component.concurrency(1)
async def guarded() -> None:
    await asyncio.sleep(0.1)

@workflow
async def turns() -> None:
    await asyncio.gather(guarded(), guarded())
"""


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """The process's provider while a test runs: the real one can be set once, and would stay."""
    provider = TracerProvider(id_generator=RunIdGenerator())
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield provider
    provider.shutdown()


@pytest.fixture
def spans(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of workflows; loading it leaves nothing in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "spanned.py"
    file.write_text(CODE)
    yield file
    sys.modules.pop(file.stem, None)


@contextlib.asynccontextmanager
async def executing(code: Path, redis_url: str, scheduler: str) -> AsyncIterator[None]:
    settings = ExecutorSettings(target=str(code), redis_url=redis_url, schedulers=(scheduler,), listen="127.0.0.1:0")
    async with executor_app.opened(settings, asyncio.Event()):
        yield


@contextlib.asynccontextmanager
async def doors(redis_url: str) -> AsyncIterator[tuple[str, str]]:
    """A Gateway's address and a Scheduler's."""
    async with (
        scheduler_app.opened(SchedulerSettings(redis_url=redis_url, listen="127.0.0.1:0")) as scheduler,
        gateway_app.opened(
            GatewaySettings(
                redis_url=redis_url, schedulers=(scheduler.address,), grpc="127.0.0.1:0", http="127.0.0.1:0"
            )
        ) as gateway,
    ):
        yield gateway.grpc, scheduler.address


def line(spans: Mapping[str, ReadableSpan], name: str) -> list[str]:
    """The names of a span and of those above it."""
    names = {span.context.span_id: each for each, span in spans.items() if span.context is not None}
    above = spans[name].parent
    return [name, *(line(spans, names[above.span_id]) if above is not None else [])]


async def test_a_run_is_one_trace_from_its_caller_to_its_components(
    redis_url: str, code: Path, provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """Also when it had to wait in the queue for an executor; and a run without a caller's span has its own trace."""
    async with doors(redis_url) as (gateway, scheduler), Client(gateway) as client:
        async with executing(code, redis_url, scheduler):
            alone = await client.start("tree")
            assert await alone.result() == "tea"
        told = {span.name: span for span in spans.get_finished_spans()}
        assert line(told, "leaf") == ["leaf", "branch", "attempt 1", "run tree"]
        spans.clear()

        with provider.get_tracer("caller").start_as_current_span("request"):
            queued = await client.start("tree")
        assert (await queued.get()).state == RUN_STATE_QUEUED
        async with executing(code, redis_url, scheduler):
            assert await queued.result() == "tea"
        told = {span.name: span for span in spans.get_finished_spans()}
        assert line(told, "leaf") == ["leaf", "branch", "attempt 1", "run tree", "request"]
        assert len({span.context.trace_id for span in told.values() if span.context is not None}) == 1
        run = told["run tree"]
        assert run.attributes is not None
        assert (run.attributes["onward.run_id"], run.attributes["onward.state"]) == (queued.run_id, "SUCCEEDED")
        attempt = told["attempt 1"]
        assert run.start_time is not None
        assert attempt.start_time is not None
        assert run.start_time < attempt.start_time, "a run's span begins when it is accepted"


async def test_a_wait_for_a_permit_is_in_the_span_of_who_waited(
    redis_url: str, code: Path, spans: InMemorySpanExporter
) -> None:
    """With how long it was."""
    async with (
        doors(redis_url) as (gateway, scheduler),
        Client(gateway) as client,
        executing(code, redis_url, scheduler),
    ):
        await (await client.start("turns")).result()
    first, second = [span.events for span in spans.get_finished_spans() if span.name == "guarded"]
    waits = [event.attributes for event in (*first, *second) if event.name == "permit" and event.attributes]
    assert any(wait["onward.limit"] == 1 and 0.05 < float(str(wait["onward.waited_s"])) < 30 for wait in waits)


async def test_a_run_that_ends_without_an_executor_has_a_span_too(
    redis_url: str, code: Path, provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """One cancelled in the queue, and one that reaches its timeout there."""
    async with doors(redis_url) as (gateway, scheduler), Client(gateway) as client:
        async with executing(code, redis_url, scheduler):
            pass
        with provider.get_tracer("caller").start_as_current_span("request"):
            cancelled = await client.start("tree")
            late = await client.start("tree", run_timeout=0.05)
        await cancelled.cancel()
        async for _ in late.follow():
            pass
        told = {str(span.attributes["onward.run_id"]): span for span in spans.get_finished_spans() if span.attributes}
        states = {run_id: span.attributes["onward.state"] for run_id, span in told.items() if span.attributes}
        assert states == {cancelled.run_id: "CANCELLED", late.run_id: "FAILED"}


async def test_a_server_names_an_exporter_that_is_not_installed() -> None:
    """And ends, before it waits for anything."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "onward_cli", "scheduler", "--redis=unix:///nobody.sock"),
        env={**os.environ, "OTEL_TRACES_EXPORTER": "pigeon"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await server.communicate()
    assert server.returncode == 1
    assert told.startswith(b"onward: OTEL_TRACES_EXPORTER=pigeon: no such exporter is installed")
    assert told.count(b"\n") == 1
