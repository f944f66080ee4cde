"""The OpenTelemetry providers of a process, as the OTEL_ variables ask for it. For composition roots, not libraries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
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
        ValueError: No installed package has an exporter of that name, or its port is taken.
    """
    exporters = _exporters("OTEL_TRACES_EXPORTER", "opentelemetry_traces_exporter", env)
    if not exporters:
        return None
    provider = TracerProvider(resource=_resource(service_name, env), id_generator=RunIdGenerator())
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


def configure_metrics_from_env(service_name: str, env: Mapping[str, str] = os.environ) -> MeterProvider | None:
    """The same for metrics and OTEL_METRICS_EXPORTER: sent every minute, or as OTEL_METRIC_EXPORT_INTERVAL says.

    Raises:
        ValueError: No installed package has an exporter of that name, or its port is taken.
    """
    exporters = _exporters("OTEL_METRICS_EXPORTER", "opentelemetry_metrics_exporter", env)
    if not exporters:
        return None
    # One that is scraped, such as that of Prometheus, is a reader itself.
    readers = [one if isinstance(one, MetricReader) else PeriodicExportingMetricReader(one) for one in exporters]
    provider = MeterProvider(readers, _resource(service_name, env))
    metrics.set_meter_provider(provider)
    return provider


def _resource(service_name: str, env: Mapping[str, str]) -> Resource:
    return Resource.create({"service.name": env.get("OTEL_SERVICE_NAME") or service_name})


def _exporters(variable: str, group: str, env: Mapping[str, str]) -> list[Any]:
    names = [name.strip() for name in env.get(variable, "").split(",")]
    return [_exporter(variable, group, name) for name in names if name not in ("", "none")]


def _exporter(variable: str, group: str, name: str) -> Any:
    found = list(entry_points(group=group, name=name))
    if not found:
        raise ValueError(
            f"{variable}={name}: no such exporter is installed (pip install opentelemetry-exporter-{name})"
        )
    try:
        return found[0].load()()
    except OSError as error:
        raise ValueError(f"{variable}={name}: {error} (each process that is scraped has a port of its own)") from error
