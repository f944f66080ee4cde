"""How services tell figures of themselves: by OpenTelemetry's metrics. Where nobody exports them they cost nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, Observation

Labelled = tuple[float, Mapping[str, str]]
"""A figure, and of what it is one."""


def meter() -> Meter:
    """Return what makes the instruments of this process."""
    return metrics.get_meter_provider().get_meter("onward")


@contextlib.contextmanager
def gauge(name: str, unit: str, description: str, read: Callable[[], Iterable[Labelled]]) -> Iterator[None]:
    """Have a figure read whenever it is exported, until the block ends.

    Args:
        name: What it is called.
        unit: In UCUM's words.
        description: What it tells.
        read: Gives it; called on the exporter's thread.
    """
    going = True

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, labels) for value, labels in read()] if going else []

    meter().create_observable_gauge(name, [observe], unit, description)
    try:
        yield
    finally:
        going = False
