"""What rows 9 to 12 run: the user code of executors that are killed, stopped and made deaf."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from onward import component, workflow


class Nowhere(SpanExporter):
    """Takes spans and drops them: what is measured is what they cost the run, not where they go."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(Nowhere()))
trace.set_tracer_provider(provider)


@component
async def words(count: int, pause_s: float) -> AsyncIterator[str]:
    """Yield words at a pace, or as fast as it goes."""
    for number in range(count):
        if pause_s or number % 20 == 0:
            await asyncio.sleep(pause_s)
        yield f"word {number}, "


@workflow
async def talk(count: int, pause_s: float) -> str:
    """Stream words."""
    return await words(count, pause_s)


@workflow
async def book(chapters: int, count: int) -> int:
    """Have a component stream words, again and again; keep nothing."""
    length = 0
    for _ in range(chapters):
        length += len(await words(count, 0))
    return length


@component
async def block(seconds: float) -> str:
    """Block the event loop, as user code must not."""
    time.sleep(seconds)  # noqa: ASYNC251 - the point of it
    return ""


@workflow
async def deaf(seconds: float) -> str:
    """Make the executor deaf, once everybody knows that it has begun."""
    await words(3, 0.05)
    return await block(seconds)


async def bare(number: int) -> int:
    """Do next to nothing."""
    return number + 1


tiny = component(bare).named("tiny")


@component
async def hold(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return ""


@workflow
async def many(count: int, seconds: float) -> int:
    """Finish many components, and wait in a last one."""
    for number in range(count):
        await tiny(number)
    await hold(seconds)
    return count


@workflow
async def cost(count: int) -> list[float]:
    """Return how long a bare call takes, and one of a component, in seconds."""
    began = time.perf_counter()
    for number in range(count):
        await bare(number)
    between = time.perf_counter()
    for number in range(count):
        await tiny(number)
    ended = time.perf_counter()
    return [(between - began) / count, (ended - between) / count]
