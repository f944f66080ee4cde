"""The OpenTelemetry provider of a process, as the OTEL_ variables ask for it. For composition roots, not libraries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from onward.tracing import NEXT_IDS


class RunIdGenerator(RandomIdGenerator):
    """Makes random ids, but for a run's span, whose ids are made from the run."""

    def generate_trace_id(self) -> int:
        ids = NEXT_IDS.get()
        return super().generate_trace_id() if ids is None else ids[0]

    def generate_span_id(self) -> int:
        ids = NEXT_IDS.get()
        return super().generate_span_id() if ids is None else ids[1]


def configure_from_env(service_name: str, env: Mapping[str, str] = os.environ) -> TracerProvider | None:
    """Set the process's tracer provider with the exporters that OTEL_TRACES_EXPORTER names, and return it.

    Shut it down at the end: that sends what is left.

    Args:
        service_name: What the process is called unless OTEL_SERVICE_NAME says otherwise.
        env: Where to look. Unset or "none" sets nothing and returns None. "console" is built in; others ("otlp") are
            packages of their own.

    Raises:
        ValueError: No installed package has an exporter of that name.
    """
    names = [name.strip() for name in env.get("OTEL_TRACES_EXPORTER", "").split(",")]
    exporters = [_exporter(name) for name in names if name not in ("", "none")]
    if not exporters:
        return None
    named = Resource.create({"service.name": env.get("OTEL_SERVICE_NAME") or service_name})
    provider = TracerProvider(resource=named, id_generator=RunIdGenerator())
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


def _exporter(name: str) -> SpanExporter:
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        raise ValueError(
            f"OTEL_TRACES_EXPORTER={name}: no such exporter is installed (pip install opentelemetry-exporter-{name})"
        )
    exporter: SpanExporter = found[0].load()()
    return exporter
