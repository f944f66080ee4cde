"""What a Scheduler tells of itself in figures. The README of services/deploy lists them for operators."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping

from onward.v1.event_pb2 import AttemptCause
from onward_runlog import keys
from onward_runlog.runs import Taken
from onward_scheduler.fleet import Fleet
from onward_serving.metering import Labelled, gauge, meter

WAITS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0)


class Metering:
    """Counts what happens, and reads what is."""

    def __init__(self) -> None:
        self._lengths: Counter[str] = Counter()
        self._attempts = meter().create_counter("onward.attempts", "{attempt}", "Runs given to executors.")
        self._lost = meter().create_counter("onward.runs.lost", "{run}", "Runs taken from executors.")
        self._waits = meter().create_histogram(
            "onward.queue.wait",
            "s",
            "From when a run might begin until an executor was given it first.",
            explicit_bucket_boundaries_advisory=WAITS_S,
        )

    @contextlib.contextmanager
    def reading(self, fleet: Fleet) -> Iterator[None]:
        """Have the gauges read until the block ends."""
        with (
            gauge("onward.queue.length", "{run}", "Runs in line for a deployment.", self._queues),
            gauge("onward.slots", "{slot}", "Room for runs in executors.", lambda: _slots(fleet)),
        ):
            yield

    def given(self, taken: Taken) -> None:
        """A run goes to an executor."""
        cause = AttemptCause.Name(taken.cause).removeprefix("ATTEMPT_CAUSE_").lower()
        self._attempts.add(1, {"deployment": taken.run.deployment, "cause": cause})
        if taken.cause == AttemptCause.ATTEMPT_CAUSE_STARTED:
            from_ns = max(taken.run.create_time.ToNanoseconds(), taken.run.schedule_time.ToNanoseconds())
            waited_s = max(0.0, (time.time_ns() - from_ns) / 1e9)
            self._waits.record(waited_s, {"deployment": taken.run.deployment})

    def lost(self, why: str) -> None:
        """A run was taken from its executor."""
        self._lost.add(1, {"why": why})

    def swept(self, queued: Mapping[str, Mapping[str, int]]) -> None:
        """So many runs wait in the queues of each partition."""
        lengths: Counter[str] = Counter(dict.fromkeys(self._lengths, 0))  # one that is empty now is told, too
        for queues in queued.values():
            for queue, length in queues.items():
                lengths[queue.removesuffix(keys.ALONE)] += length
        self._lengths = lengths

    def _queues(self) -> list[Labelled]:
        return [(length, {"deployment": deployment}) for deployment, length in list(self._lengths.items())]


def _slots(fleet: Fleet) -> list[Labelled]:
    used: Counter[str] = Counter()
    free: Counter[str] = Counter()
    for link in fleet.links():
        if link.present:
            executor = link.executor
            used[executor.deployment] += executor.running
            free[executor.deployment] += 0 if executor.draining else max(0, executor.slots - executor.running)
    return [
        (count, {"deployment": deployment, "state": state})
        for state, counts in (("used", used), ("free", free))
        for deployment, count in counts.items()
    ]
