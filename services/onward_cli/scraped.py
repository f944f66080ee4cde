"""Where dev mode's processes serve their figures when Prometheus asks for them: each on a port of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping

HOST, PORT = "OTEL_EXPORTER_PROMETHEUS_HOST", "OTEL_EXPORTER_PROMETHEUS_PORT"


def port(number: int, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variable that gives a process its port: so many above that of the first, whose number is 0."""
    return {PORT: str(int(env.get(PORT) or 9464) + number)} if _wanted(env) else {}


def address(number: int, env: Mapping[str, str] = os.environ) -> str:
    """Return the URL of a process's figures; empty where nobody asks for them."""
    return f"http://{env.get(HOST) or 'localhost'}:{port(number, env)[PORT]}/metrics" if _wanted(env) else ""


def _wanted(env: Mapping[str, str]) -> bool:
    return "prometheus" in (name.strip() for name in env.get("OTEL_METRICS_EXPORTER", "").split(","))
