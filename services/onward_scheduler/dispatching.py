"""Hands runs to executors: at once where there is room, else when there is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from onward.v1.executor_service_pb2 import CancelRequest, ExecuteRequest, NotifyRequest
from onward.v1.gateway_service_pb2 import Workflow
from onward.v1.run_pb2 import Run
from onward_runlog import keys, registry
from onward_runlog.errors import StoreUnavailable
from onward_runlog.runs import Holder, Runs, Taken
from onward_runlog.staging import Staged
from onward_runlog.store import Store
from onward_runlog.subscription import messages
from onward_scheduler.fleet import Fleet, Link
from onward_serving.tls import Peers

logger = logging.getLogger(__name__)

T = TypeVar("T")

EXECUTE_TIMEOUT_S = 5.0
"""How long an executor may take to take a run. After that the outcome is unknown and the attempt is given up."""


class Dispatcher:
    """Knows which partitions hold queued runs of which deployment, and claims as long as there is room.

    Args:
        store: The store.
        runs: The transitions.
        peers: How executors know who hands them runs.
        lease_ttl_s: Time of a lease, in seconds.
        cancel_grace_s: How long user code may clean up, in seconds.
        on_given: Called with each run that an executor has taken.
    """

    def __init__(
        self,
        store: Store,
        runs: Runs,
        peers: Peers,
        *,
        lease_ttl_s: float,
        cancel_grace_s: float,
        on_given: Callable[[Taken], None] = lambda _: None,
    ) -> None:
        self._on_given = on_given
        self._store = store
        self._runs = runs
        self._lease_ttl_s = lease_ttl_s
        self._cancel_grace_s = cancel_grace_s
        self._queued: dict[str, dict[str, None]] = {}
        self._wanted = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.fleet = Fleet(on_room=self._on_room, on_death=self._on_death, peers=peers)

    @contextlib.asynccontextmanager
    async def dispatching(self) -> AsyncIterator[Dispatcher]:
        """Dispatch until the block ends; hand-overs under way are finished first."""
        async with self.fleet.watching():
            task = asyncio.create_task(self._serve(), name="dispatcher")
            try:
                yield self
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                while self._tasks:  # what is claimed or submitted now is handed over after that
                    await asyncio.gather(*self._tasks, return_exceptions=True)

    async def submit(
        self,
        run: Run,
        *,
        trace_parent: str,
        made_of: bytes = b"",
        staged: Staged | None = None,
        hooks: Workflow | None = None,
        timeout_s: float = 0.0,
    ) -> tuple[Run, bool]:
        """Record a run and hand it out at once if there is room and nobody waits before it.

        A caller that goes away meanwhile changes nothing: a run that was given to an executor is handed to it.

        Returns:
            The run, and whether it was known already. Arguments and errors as Runs.submit.
        """
        return await asyncio.shield(self._tracked(self._submit(run, trace_parent, made_of, staged, hooks, timeout_s)))

    async def _submit(
        self,
        run: Run,
        trace_parent: str,
        made_of: bytes,
        staged: Staged | None,
        hooks: Workflow | None,
        timeout_s: float,
    ) -> tuple[Run, bool]:
        link = self.fleet.reserve(run.deployment)
        try:
            kept, replayed, taken = await self._runs.submit(
                run,
                trace_parent=trace_parent,
                holder=link.executor_id if link else "",
                ttl_s=self._lease_ttl_s,
                made_of=made_of,
                staged=staged,
                hooks=hooks,
                timeout_s=timeout_s,
            )
        except BaseException:
            if link is not None:
                link.offered -= 1
            raise
        if link is not None and taken is not None:
            self._spawn(self._hand_over(link, taken))
        elif link is not None:
            link.offered -= 1
        return kept, replayed

    async def listen(self, url: str, bases: Sequence[str]) -> None:
        """Learn of queued runs from whoever queued them, until cancelled. Hints get lost: sweeps find the same."""
        channels = {keys.queued_channel(base): base for base in bases}
        async for message in messages(url, list(channels)):
            if message is not None:
                self.note_queued(channels[message.channel], message.data.decode())

    def note_queued(self, base: str, queue: str) -> None:
        """Learn that runs wait in a queue of a partition: a deployment's, or its other one (see keys.alone)."""
        self._queued.setdefault(queue, {})[base] = None
        self._wanted.set()

    def note_alone(self, queues: set[str]) -> None:
        """Learn of all queues there are, and keep no executor free for runs that another Scheduler has handed out."""
        for queue in [name for name in self._queued if name.endswith(keys.ALONE) and name not in queues]:
            del self._queued[queue]
            self.fleet.keep_none(queue.removesuffix(keys.ALONE))

    def cancel(self, run: Run, holder: Holder) -> None:
        """Tell the holder of a run that its cancellation was asked for. A hint: its next append says the same."""
        if link := self.fleet.link(holder.executor_id):
            grace = Duration()
            grace.FromMilliseconds(int(self._cancel_grace_s * 1000))
            request = CancelRequest(run_id=run.run_id, namespace=run.namespace, attempt=holder.attempt, grace=grace)
            self._spawn(_tell(link.stub.Cancel(request, timeout=EXECUTE_TIMEOUT_S)))

    def notify(self, namespace: str, run_id: str, holder: Holder, last_offset: int) -> None:
        """Tell the holder of a run that somebody else wrote to its log. A hint, too."""
        if link := self.fleet.link(holder.executor_id):
            request = NotifyRequest(namespace=namespace, run_id=run_id, attempt=holder.attempt, last_offset=last_offset)
            self._spawn(_tell(link.stub.Notify(request, timeout=EXECUTE_TIMEOUT_S)))

    def _on_room(self, deployment: str) -> None:
        if deployment in self._queued or keys.alone(deployment) in self._queued:
            self._wanted.set()

    async def _on_death(self, executor_id: str) -> None:
        try:
            await registry.unregister(self._store, executor_id)
            leases = await self._runs.held_by(executor_id)
            reason = f"executor {executor_id} died"
            # All at once, so that the store syncs once for all of them.
            taken_back = await asyncio.gather(
                *(self._runs.lose(each.namespace, each.run_id, each.attempt, "lost", reason=reason) for each in leases),
                return_exceptions=True,
            )
            for lease, outcome in zip(leases, taken_back, strict=True):
                if isinstance(outcome, Exception):
                    logger.error("run %s is left to its lease: %s", lease.run_id, outcome)
        except StoreUnavailable as error:
            logger.warning("the runs of executor %s are left to their leases: %s", executor_id, error)

    async def _serve(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            # Those that have to be alone first, or no executor would ever be idle.
            for queue in sorted(self._queued, key=lambda name: not name.endswith(keys.ALONE)):
                try:
                    if queue.endswith(keys.ALONE):
                        await self._claim_alone(queue, queue.removesuffix(keys.ALONE))
                    else:
                        await self._claim(queue)
                except StoreUnavailable as error:
                    logger.warning("cannot claim runs: %s", error)  # the next sweep names the queue again
                except Exception:
                    logger.exception("cannot claim runs")

    async def _claim(self, deployment: str) -> None:
        """Claim in rounds over the partitions, so that priority and fairness are near over all of them."""
        while bases := list(self._queued.get(deployment, ())):
            claims = []
            for base in bases:
                link = self.fleet.reserve(deployment)
                if link is None:
                    break
                # Out of the line before it is asked: whatever is queued there from now on puts it back.
                del self._queued[deployment][base]
                claims.append(self._tracked(self._claim_one(base, deployment, link)))
            if not claims:
                return
            await asyncio.shield(asyncio.gather(*claims))
        self._queued.pop(deployment, None)

    async def _claim_alone(self, queue: str, deployment: str) -> None:
        """Claim one by one for executors that hold nothing, and keep one free where there is none."""
        while bases := list(self._queued.get(queue, ())):
            link = self.fleet.reserve_alone(deployment)
            if link is None:
                return
            del self._queued[queue][bases[0]]
            await asyncio.shield(self._tracked(self._claim_one(bases[0], queue, link)))
        self._queued.pop(queue, None)
        self.fleet.keep_none(deployment)

    async def _claim_one(self, base: str, queue: str, link: Link) -> None:
        """Claim one run and have it handed over. Not to be cancelled: it may be the executor's by then."""
        try:
            taken = await self._runs.claim(base, queue, holder=link.executor_id, ttl_s=self._lease_ttl_s, limit=1)
        except BaseException:
            link.offered -= 1
            raise
        if taken:
            link.executor.alone = taken[0].alone
            self.note_queued(base, queue)  # there may be more
            self._spawn(self._hand_over(link, taken[0]))
        else:
            link.offered -= 1

    async def _hand_over(self, link: Link, taken: Taken) -> None:
        ttl, grace = Duration(), Duration()
        ttl.FromMilliseconds(int(self._lease_ttl_s * 1000))
        grace.FromMilliseconds(int(self._cancel_grace_s * 1000))
        request = ExecuteRequest(
            run=taken.run,
            attempt=taken.attempt,
            log_key=taken.log_key,
            cause=taken.cause,
            lease_ttl=ttl,
            trace_parent=taken.trace_parent,
            alone=taken.alone,
            cancel_grace=grace,
        )
        if taken.run.HasField("deadline"):
            request.deadline.CopyFrom(taken.run.deadline)
        try:
            response = await link.stub.Execute(request, timeout=EXECUTE_TIMEOUT_S)
            link.executor.running = response.running
            self._on_given(taken)
            return
        except grpc.aio.AioRpcError as error:
            logger.info("executor %s did not take run %s: %s", link.executor_id, taken.run.run_id, error.code())
            link.executor.alone = False  # as far as this run goes; else its Watch says so
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                link.executor.running = link.executor.slots  # until it says otherwise
            else:
                self.fleet.rest(link)
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    link.present = False  # until its Watch says something again
        finally:
            link.offered -= 1
        try:
            await self._runs.lose(taken.run.namespace, taken.run.run_id, taken.attempt, "refused")
        except StoreUnavailable:
            logger.warning("run %s is left to its lease", taken.run.run_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(self._tracked(work))

    def _tracked(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _tell(call: grpc.aio.UnaryUnaryCall[Any, Any]) -> None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        logger.info("an executor did not take a hint: %s", error.code())
