"""What becomes of runs that wait for a deployment which nobody serves any more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping

from onward.v1.run_pb2 import Run, RunState
from onward_runlog import keys
from onward_runlog.deployments import Deployments
from onward_runlog.runs import Runs

logger = logging.getLogger(__name__)

WARN_AFTER_S = 10.0
"""How long a deployment that runs wait for may have no executor until that is told, once."""

ABANDON_AFTER_S = 3600.0
"""How long a cancelled run waits for an executor of its deployment to clean up in. Then it is ended as it is."""

LOOKED_AT_MAX = 100
"""Runs of one queue that are looked at in one sweep."""


class Adopting:
    """Moves runs whose deployment is gone to one that lives, if it is to; says which wait, in any case.

    It is gone when it has had no executor for a while, as far as this Scheduler has seen. What is decided is atomic and
    idempotent, so several Schedulers do no harm.

    Args:
        runs: The transitions.
        deployments: Who serves what.
        after_s: The while, in seconds; None leaves runs to the deployment that they are pinned to.
        abandon_after_s: How long a cancelled run waits that nobody adopts, in seconds.
    """

    def __init__(
        self, runs: Runs, deployments: Deployments, *, after_s: float | None, abandon_after_s: float = ABANDON_AFTER_S
    ) -> None:
        self._runs = runs
        self._deployments = deployments
        self._after_s = after_s
        self._abandon_after_s = abandon_after_s
        self._seen_at: dict[str, float] = {}
        self._told: set[str] = set()
        self._passed: dict[tuple[str, str], int] = {}
        """How many runs at the head of a queue were looked at before, and stay: the others have their turn."""

    async def look_after(
        self, queued: Mapping[str, Mapping[str, int]], staffed: set[str], *, seeing_since: float
    ) -> None:
        """Decide on every run that waits for nobody.

        Args:
            queued: How many runs wait in each queue of each partition.
            staffed: The deployments that have a living executor.
            seeing_since: time.monotonic() from which on this Scheduler has seen who is there, without a gap.

        Raises:
            StoreUnavailable: It is decided another time.
        """
        now = time.monotonic()
        self._seen_at.update(dict.fromkeys(staffed, now))
        self._told -= staffed
        lengths: Counter[str] = Counter()
        orphaned = []
        for base, queues in queued.items():
            for queue, length in queues.items():
                deployment = queue.removesuffix(keys.ALONE)
                if deployment not in staffed:
                    lengths[deployment] += length
                    orphaned.append((base, queue, deployment))
        gone_s = {each: now - max(seeing_since, self._seen_at.get(each, seeing_since)) for each in lengths}
        for deployment, length in lengths.items():
            if gone_s[deployment] >= WARN_AFTER_S and deployment not in self._told:
                self._told.add(deployment)
                logger.warning("deployment %s has no executor; runs that wait for one: %d", deployment, length)
        await asyncio.gather(
            *(self._decide(base, queue, deployment, gone_s[deployment]) for base, queue, deployment in orphaned)
        )

    async def _decide(self, base: str, queue: str, deployment: str, gone_s: float) -> None:
        adopts = self._after_s is not None and gone_s >= self._after_s
        abandons = gone_s >= self._abandon_after_s
        if not adopts and not abandons:
            return
        start = self._passed.pop((base, queue), 0)
        runs = await self._runs.in_line(base, queue, start=start, limit=LOOKED_AT_MAX)
        heirs = {workflow: await self._heir(workflow) for workflow in {run.workflow for run in runs} if adopts}
        stay = 0
        for run in runs:
            if heir := heirs.get(run.workflow):
                reason = f"deployment {deployment} has no executor: it goes on in {heir}"
                await self._runs.adopt(run.namespace, run.run_id, deployment, heir, reason=reason)
            elif not (abandons and await self._end(run)):
                stay += 1
        if len(runs) == LOOKED_AT_MAX:
            self._passed[base, queue] = start + stay

    async def _heir(self, workflow: str) -> str:
        """The newest deployment that lives and serves a workflow; empty where there is none."""
        served = await self._deployments.choose(workflow)
        return served.deployment if served is not None and served.staffed else ""

    async def _end(self, run: Run) -> bool:
        """End a run that is cancelled: who was to clean up did not come."""
        if run.state != RunState.RUN_STATE_CANCELLING:
            return False
        reason = f"no executor of deployment {run.deployment} came to clean up"
        ended, _ = await self._runs.cancel(run.namespace, run.run_id, reason)
        return ended.state == RunState.RUN_STATE_CANCELLED
