"""What an executor tells of itself in figures. The README of services/deploy lists them for operators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from onward_executor.holding import Holding
from onward_serving.metering import gauge, meter

COMMITS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)

WAITS_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0)


class Metering:
    """Counts what happens, and reads what is."""

    def __init__(self) -> None:
        self._commits = meter().create_histogram(
            "onward.append.duration",
            "s",
            "From sending a batch of events until the store has acknowledged it.",
            explicit_bucket_boundaries_advisory=COMMITS_S,
        )
        self._waits = meter().create_histogram(
            "onward.budget.wait",
            "s",
            "How long a model call was told to wait for its turn.",
            explicit_bucket_boundaries_advisory=WAITS_S,
        )
        self._outages = meter().create_histogram(
            "onward.outage.wait",
            "s",
            "How long a model call was told to wait for a provider that is down or coming back.",
            explicit_bucket_boundaries_advisory=WAITS_S,
        )

    @contextlib.contextmanager
    def reading(self, holding: Holding, deployment: str) -> Iterator[None]:
        """Have the gauges read until the block ends."""
        labels = {"deployment": deployment}
        with gauge("onward.runs.held", "{run}", "Runs in flight here.", lambda: [(holding.running, labels)]):
            yield

    def committed(self, duration_s: float) -> None:
        """A batch of events is in the log."""
        self._commits.record(duration_s)

    def waits(self, delay_s: float) -> None:
        """A model call has to wait for its budget."""
        self._waits.record(delay_s)

    def waits_out(self, delay_s: float) -> None:
        """A model call has to wait for a provider to answer again."""
        self._outages.record(delay_s)
