"""The executors: who is there, how full, and who has died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from onward.v1.executor_service_pb2 import Executor, WatchRequest, WatchResponse
from onward.v1.executor_service_pb2_grpc import ExecutorServiceStub
from onward_serving.tls import Peers, TlsInvalid

if TYPE_CHECKING:
    from onward.v1.executor_service_pb2_grpc import ExecutorServiceAsyncStub

logger = logging.getLogger(__name__)

RECONNECT_S = 1.0
"""How long a new connection to an executor may take before its silence is left to the lease."""

AGAIN_S = 0.1
"""Pause before an executor that lives, though its Watch ended, is watched again."""

PENALTY_S = 1.0
"""How long an executor that refused or did not answer gets no run."""


@dataclass(eq=False)
class Link:
    """An executor as this Scheduler knows it.

    Attributes:
        executor: Who it is; `running` as it last said.
        offered: Runs offered to it that it has not answered for.
        present: Whether its Watch stream is open, and has said something since a run was offered in vain.
        rest_until: Loop time until which it gets no run.
        kept: Whether it gets no run until it holds none: then it takes one that has to be alone.
    """

    executor: Executor
    channel: grpc.aio.Channel
    stub: ExecutorServiceAsyncStub
    offered: int = 0
    present: bool = False
    rest_until: float = 0.0
    kept: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def executor_id(self) -> str:
        """Its id."""
        return self.executor.executor_id

    @property
    def free(self) -> int:
        """How many more runs it can be offered."""
        if self.kept or self.executor.alone or not self.awake:
            return 0
        return self.executor.slots - self.executor.running - self.offered

    @property
    def idle(self) -> bool:
        """Whether it holds no run, and can be offered one."""
        return self.awake and not self.executor.running and not self.offered

    @property
    def awake(self) -> bool:
        """Whether it takes runs at all."""
        return self.present and not self.executor.draining and self.rest_until <= asyncio.get_running_loop().time()


class Fleet:
    """Watches every registered executor.

    Args:
        on_room: Called when an executor may have room for another run of its deployment.
        on_death: Awaited with the id of an executor that is proven dead.
        peers: How executors know who watches them.
    """

    def __init__(
        self, *, on_room: Callable[[str], None], on_death: Callable[[str], Awaitable[None]], peers: Peers
    ) -> None:
        self._peers = peers
        self._on_room = on_room
        self._on_death = on_death
        self._links: dict[str, Link] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[Fleet]:
        """Watch until the block ends."""
        try:
            yield self
        finally:
            links = list(self._links.values())
            self._links.clear()
            tasks = [link.task for link in links if link.task is not None] + list(self._ending)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for link in links:
                await link.channel.close()

    def meet(self, executor: Executor) -> None:
        """Begin to watch an executor that is not watched yet."""
        if executor.executor_id in self._links:
            return
        try:
            channel = self._peers.channel(executor.address)
        except TlsInvalid as error:  # renewed by halves, perhaps: it is met again a second later
            logger.warning("executor %s cannot be watched: %s", executor.executor_id, error)
            return
        link = Link(Executor(), channel, ExecutorServiceStub(channel))
        link.executor.CopyFrom(executor)
        self._links[executor.executor_id] = link
        link.task = asyncio.create_task(self._watch(link), name=f"watch {executor.executor_id}")

    def forget_missing(self, registered: set[str]) -> None:
        """Let go of executors whose registration has run out and whose stream is closed."""
        for executor_id, link in list(self._links.items()):
            if executor_id not in registered and not link.present:
                self._part(link)

    def link(self, executor_id: str) -> Link | None:
        """Return an executor by id."""
        return self._links.get(executor_id)

    def links(self) -> list[Link]:
        """Return all executors."""
        return list(self._links.values())

    def reserve(self, deployment: str) -> Link | None:
        """Count one run as offered to the executor of a deployment with the most room; None if all are full."""
        best: Link | None = None
        for link in self._links.values():
            if link.executor.deployment == deployment and link.free > 0 and (best is None or link.free > best.free):
                best = link
        if best is not None:
            best.offered += 1
        return best

    def reserve_alone(self, deployment: str) -> Link | None:
        """Count one run as offered to an executor of a deployment that holds none.

        Where there is none, one gets nothing more until it is idle, and None is returned. All Schedulers keep the same
        one free, so that it becomes idle though each of them hands out runs.
        """
        links = [link for link in self._links.values() if link.executor.deployment == deployment and link.awake]
        for link in links:
            link.kept = False
        idle = [link for link in links if link.idle]
        if idle:
            chosen = min(idle, key=lambda link: link.executor_id)
            chosen.offered += 1
            return chosen
        sharing = [link for link in links if not link.executor.alone]
        if sharing:
            min(sharing, key=lambda link: link.executor_id).kept = True
        return None

    def keep_none(self, deployment: str) -> None:
        """Nothing has to be alone any more: every executor of a deployment gets runs."""
        for link in self._links.values():
            if link.kept and link.executor.deployment == deployment:
                link.kept = False
                self._on_room(deployment)

    def rest(self, link: Link, pause_s: float = PENALTY_S) -> None:
        """Give no run for `pause_s` seconds to an executor that did not take one, or let a lease run out."""
        loop = asyncio.get_running_loop()
        link.rest_until = loop.time() + pause_s
        loop.call_later(pause_s + 0.01, self._on_room, link.executor.deployment)

    async def _watch(self, link: Link) -> None:
        """Follow one executor until it is proven dead or ends. A break that proves nothing is left to the lease."""
        while True:
            try:
                await self._follow(link)
                ended = link.executor.draining
            except grpc.aio.AioRpcError:
                ended = False
            link.present = False
            if ended or await self._is_dead(link):
                break
            await asyncio.sleep(AGAIN_S)
        if self._links.get(link.executor_id) is link:
            # A task of its own: the end of this one must not cut short what the death of the executor calls for.
            task = asyncio.create_task(self._mourn(link.executor_id), name=f"mourn {link.executor_id}")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            self._part(link)

    async def _mourn(self, executor_id: str) -> None:
        await self._on_death(executor_id)

    async def _follow(self, link: Link) -> None:
        call = link.stub.Watch(WatchRequest(), wait_for_ready=False)
        try:
            async for response in call:
                if response.executor.executor_id != link.executor_id:
                    return
                link.executor.running = response.executor.running
                link.executor.slots = response.executor.slots
                link.executor.draining = response.executor.draining
                link.executor.alone = response.executor.alone
                link.present = True
                if link.free > 0 or link.idle:
                    self._on_room(link.executor.deployment)
        finally:
            call.cancel()

    async def _is_dead(self, link: Link) -> bool:
        """Ask again after a break: a refused connection or another executor_id at the address proves death."""
        deadline = asyncio.get_running_loop().time() + RECONNECT_S
        while True:
            call = link.stub.Watch(WatchRequest(), wait_for_ready=False, timeout=RECONNECT_S)
            try:
                first = await call.read()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    return False
                if "refused" in (error.debug_error_string() or "").lower():
                    level = logging.INFO if link.executor.draining else logging.WARNING
                    logger.log(level, "executor %s is gone: its address refuses connections", link.executor_id)
                    return True
                if asyncio.get_running_loop().time() > deadline:
                    await asyncio.sleep(RECONNECT_S)
                    return False
                await asyncio.sleep(0.05)
            else:
                if not isinstance(first, WatchResponse):
                    return False
                if first.executor.executor_id != link.executor_id:
                    logger.warning("executor %s is gone: another one is at its address", link.executor_id)
                    return True
                return False
            finally:
                call.cancel()

    def _part(self, link: Link) -> None:
        self._links.pop(link.executor_id, None)
        task = asyncio.create_task(self._close(link), name=f"close {link.executor_id}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _close(self, link: Link) -> None:
        if link.task is not None and link.task is not asyncio.current_task():
            link.task.cancel()
            await asyncio.gather(link.task, return_exceptions=True)
        await link.channel.close()
