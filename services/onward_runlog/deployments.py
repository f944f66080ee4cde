"""Which deployment serves which workflow, and which of them takes new runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import ListWorkflowsResponse, Workflow
from onward.v1.run_pb2 import Run, RunState
from onward_runlog import keys
from onward_runlog.errors import StoreUnavailable
from onward_runlog.record import pairs
from onward_runlog.store import Store
from onward_runlog.subscription import messages

logger = logging.getLogger(__name__)

STALE_S = 2.0
"""What was read is believed for this long, unless a message says that the registry changed."""


@dataclass(frozen=True, slots=True)
class Served:
    """A workflow as one deployment serves it.

    Attributes:
        deployment: Its name.
        workflow: What it serves.
        staffed: Whether it has a living executor.
    """

    deployment: str
    workflow: Workflow
    staffed: bool


class Deployments:
    """The registry as it was last read. Reads only.

    New runs of a workflow go to the newest deployment that serves it and has a living executor; where none lives, to
    the newest that serves it: a workflow stays known while its deployment is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._served: dict[str, list[Served]] = {}
        self._staffed: set[str] = set()
        self._read_at = float("-inf")
        self._changes = 0
        """How often the registry was said to have changed."""
        self._reading: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[Deployments]:
        """Keep up with changes until the block ends."""
        task = asyncio.create_task(self._follow(), name="deployments")
        try:
            yield self
        finally:
            tasks = [task, self._reading] if self._reading is not None else [task]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def choose(self, workflow: str, deployment: str = "") -> Served | None:
        """Return who takes a new run of a workflow, or None. An unknown name is looked up again before it is refused.

        Args:
            workflow: Its name.
            deployment: The deployment that is asked for; empty leaves the choice here.

        Raises:
            StoreUnavailable: The registry cannot be read and was never read.
        """
        if time.monotonic() - self._read_at > STALE_S:
            await self._refresh()
        served = self._find(workflow, deployment)
        if served is None:
            await self._read()
            served = self._find(workflow, deployment)
        return served

    async def explain(self, runs: Iterable[Run]) -> None:
        """Say of runs that stand in line for a deployment without a living executor that they wait for one.

        Raises:
            StoreUnavailable: The registry cannot be read and was never read.
        """
        now_ns = time.time_ns()
        waiting = [
            run
            for run in runs
            if run.state in (RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_CANCELLING)
            and not run.executor_id
            and run.schedule_time.ToNanoseconds() <= now_ns
        ]
        if not waiting:
            return
        if time.monotonic() - self._read_at > STALE_S:
            await self._refresh()
        for run in waiting:
            if run.deployment not in self._staffed:
                run.waiting_for = f"an executor of deployment {run.deployment}"

    async def all(self) -> list[Workflow]:
        """Return every workflow as the deployment that takes new runs serves it, by name, with all that serve it.

        Raises:
            StoreUnavailable: The registry cannot be read.
        """
        await self._read()
        workflows = []
        for _, each in sorted(self._served.items()):
            workflow = Workflow()
            workflow.CopyFrom(each[0].workflow)
            workflow.deployments[:] = [served.deployment for served in each]
            workflows.append(workflow)
        return workflows

    def _find(self, workflow: str, deployment: str) -> Served | None:
        for served in self._served.get(workflow, ()):
            if not deployment or served.deployment == deployment:
                return served
        return None

    async def _refresh(self) -> None:
        try:
            await self._read()
        except StoreUnavailable:
            if not self._served:
                raise

    async def _follow(self) -> None:
        async for _ in messages(self._store.url, [keys.wake_channel(keys.REGISTRY)]):
            self._read_at = float("-inf")
            self._changes += 1

    async def _read(self) -> None:
        """Read the registry; callers at the same time share one read."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_once())
            self._reading.add_done_callback(self._has_read)
        await asyncio.shield(self._reading)

    def _has_read(self, reading: asyncio.Task[None]) -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()  # seen, also where everybody who waited for it has gone

    async def _read_once(self) -> None:
        read_at, changes = time.monotonic(), self._changes
        base = keys.REGISTRY
        calls = [
            self._store.command("HGETALL", f"{base}:workflows"),
            self._store.command("HGETALL", f"{base}:deployments"),
            self._store.command("HGETALL", f"{base}:executors"),
            self._store.command("ZRANGE", f"{base}:alive", 0, -1, "WITHSCORES"),
            self._store.command("TIME"),
        ]
        workflows, seen, executors, alive, now = await asyncio.gather(*calls)
        now_ms = int(now[0]) * 1000
        living = {executor_id for executor_id, expiry in pairs(alive).items() if float(expiry) > now_ms}
        staffed = {
            Executor.FromString(data).deployment
            for executor_id, data in pairs(executors).items()
            if executor_id in living
        }
        first_seen = pairs(seen)
        order = sorted(
            pairs(workflows).items(),
            key=lambda item: (item[0].decode() in staffed, int(first_seen.get(item[0], 0)), item[0]),
            reverse=True,
        )
        served: dict[str, list[Served]] = {}
        for name, data in order:
            for workflow in ListWorkflowsResponse.FromString(data).workflows:
                served.setdefault(workflow.name, []).append(Served(name.decode(), workflow, name.decode() in staffed))
        self._served = served
        self._staffed = staffed
        self._read_at = read_at if changes == self._changes else float("-inf")
