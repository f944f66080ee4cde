"""What nobody asks for: expired leases, passed deadlines, delayed starts, retention, who is registered, who is gone."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from onward.v1.run_pb2 import Run
from onward_runlog import registry
from onward_runlog.errors import StoreUnavailable
from onward_runlog.runs import Lease, Runs, Swept
from onward_runlog.store import Store
from onward_scheduler.adopting import Adopting
from onward_scheduler.dispatching import Dispatcher

logger = logging.getLogger(__name__)

SWEEP_S = 1.0
"""Longest time between two sweeps; timers that are due earlier bring the next one forward."""

SWEEP_MIN_S = 0.02


class Sweeper:
    """Sweeps all partitions. Every Scheduler does: what it decides is atomic and idempotent, so two do no harm.

    Args:
        store: The store.
        runs: The transitions.
        dispatcher: Is told what is queued.
        adopting: Is told which queues nobody serves.
        lease_ttl_s: Time of a lease, in seconds.
        on_swept: Called with how many runs wait, by partition and queue.
    """

    def __init__(
        self,
        store: Store,
        runs: Runs,
        dispatcher: Dispatcher,
        adopting: Adopting,
        *,
        lease_ttl_s: float,
        on_swept: Callable[[Mapping[str, Mapping[str, int]]], None] = lambda _: None,
    ) -> None:
        self._on_swept = on_swept
        self._store = store
        self._runs = runs
        self._dispatcher = dispatcher
        self._adopting = adopting
        self._lease_ttl_s = lease_ttl_s
        # A Scheduler that just came, or was without the store, gives executors one lease to renew before it judges.
        self._judge_from = time.monotonic() + lease_ttl_s
        self._lost = store.connection.lost

    async def sweep_for_ever(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                pause_s = await self._sweep()
            except StoreUnavailable:
                pause_s = SWEEP_S
            except Exception:
                logger.exception("a sweep failed")
                pause_s = SWEEP_S
            await asyncio.sleep(pause_s)

    async def _sweep(self) -> float:
        began = time.monotonic()
        swept = await self._runs.sweep()
        now = time.monotonic()
        if self._store.connection.lost != self._lost or now - began > self._lease_ttl_s / 4:
            self._lost = self._store.connection.lost
            self._judge_from = now + self._lease_ttl_s
        pause_s = min(SWEEP_S, self._lease_ttl_s / 4) * random.uniform(0.8, 1.0)
        self._dispatcher.note_alone({queue for partition in swept.values() for queue in partition.queued})
        decided = await asyncio.gather(
            *(self._decide(partition, judges=now >= self._judge_from) for partition in swept.values())
        )
        for (base, partition), well in zip(swept.items(), decided, strict=True):
            for queue in partition.queued:
                self._dispatcher.note_queued(base, queue)
            if well and partition.next_timer_s is not None:
                pause_s = min(pause_s, max(SWEEP_MIN_S, partition.next_timer_s))
        executors = await registry.executors(self._store)
        for executor in executors:
            self._dispatcher.fleet.meet(executor)
        self._dispatcher.fleet.forget_missing({executor.executor_id for executor in executors})
        queued = {base: partition.queued for base, partition in swept.items()}
        self._on_swept(queued)
        await self._adopting.look_after(
            queued,
            {executor.deployment for executor in executors},
            seeing_since=self._judge_from - self._lease_ttl_s,
        )
        return pause_s

    async def _decide(self, partition: Swept, *, judges: bool) -> bool:
        """Take back and end what is due, all at once, and tell whether that went well."""
        due = [_alone(partial(self._expire, lease), lease.run_id) for lease in partition.expired if judges]
        due += [_alone(partial(self._expel, namespace, run_id), run_id) for namespace, run_id in partition.passed]
        return all(await asyncio.gather(*due))

    async def _expire(self, lease: Lease) -> None:
        reason = f"executor {lease.holder} let its lease run out"
        if await self._runs.lose(lease.namespace, lease.run_id, lease.attempt, "expired", reason=reason):
            logger.warning("run %s was lost: %s", lease.run_id, reason)
            if link := self._dispatcher.fleet.link(lease.holder):
                self._dispatcher.fleet.rest(link, self._lease_ttl_s)

    async def _expel(self, namespace: str, run_id: str) -> None:
        holder = await self._runs.expel(namespace, run_id)
        if holder is not None:
            logger.info("run %s has reached its timeout", run_id)
            self._dispatcher.cancel(Run(namespace=namespace, run_id=run_id), holder)


async def _alone(decide: Callable[[], Awaitable[None]], run_id: str) -> bool:
    """Decide on a run, and tell whether that went well. One that is broken, since somebody else wrote to its log, is in
    no other's way.
    """
    try:
        await decide()
    except StoreUnavailable:
        raise
    except Exception:
        logger.exception("run %s cannot be taken back or ended", run_id)
        return False
    return True
