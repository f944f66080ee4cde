"""Opens, wires and closes an executor."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc

from onward.loading import load
from onward.v1.executor_service_pb2 import DESCRIPTOR, Executor
from onward.v1.executor_service_pb2_grpc import add_ExecutorServiceServicer_to_server
from onward_executor.holding import Holding
from onward_executor.metering import Metering
from onward_executor.registration import register_for_ever
from onward_executor.servicer import ExecutorServicer
from onward_executor.settings import Settings
from onward_runlog.breakers import RedisBreakers
from onward_runlog.budgets import RedisBudgets
from onward_runlog.errors import StoreUnavailable
from onward_runlog.permits import RedisPermits
from onward_runlog.registry import unregister
from onward_runlog.store import open_store
from onward_runlog.writer import LogWriter
from onward_serving.server import Serving, serving

SERVICE = DESCRIPTOR.services_by_name["ExecutorService"].full_name

EVERYWHERE = ("0.0.0.0", "[::]")  # noqa: S104 - what to tell from addresses that others can use
"""Hosts to listen on that are no address to reach."""

LEASE_TTL_S = 5.0
"""Until a Scheduler says otherwise."""

END_S = 2.0
"""What is left to calls under way once every run has ended or was handed over."""


@dataclass(frozen=True)
class Running:
    """An executor that serves.

    Attributes:
        server: Where it listens.
        executor: Who it is.
        stop: Set when it was asked to drain.
    """

    server: Serving
    executor: Executor
    stop: asyncio.Event


@contextlib.asynccontextmanager
async def opened(settings: Settings, stop: asyncio.Event) -> AsyncIterator[Running]:
    """Serve until the block ends; then drain: finish what is held within the grace, hand over the rest, and close.

    Args:
        stop: Set by this executor when it was told to drain and holds nothing any more.

    Raises:
        OSError: The address is taken.
        StoreUnfit: The store may lose what it acknowledges.
        TlsInvalid: A certificate or its key cannot be used.
        onward.loading errors: The user's code cannot be loaded.
    """
    served = load(settings.target)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(settings.redis_url, allow_unfit=settings.allow_unfit_store))
        metering = Metering()
        writer = await stack.enter_async_context(LogWriter(store, on_commit=metering.committed).opened())
        budgets = await stack.enter_async_context(RedisBudgets(store, on_wait=metering.waits).opened())
        breakers = await stack.enter_async_context(RedisBreakers(store, on_wait=metering.waits_out).opened())
        executor = Executor(
            executor_id=f"{socket.gethostname()}-{secrets.token_hex(4)}",
            deployment=settings.deployment or served.name,
            workflows=[workflow.to_proto() for workflow in served.workflows.values()],
            slots=settings.slots,
        )
        permits = await stack.enter_async_context(RedisPermits(store).opened())
        holding = Holding(
            store, writer, permits, budgets, breakers, served.workflows, executor, lease_ttl_s=LEASE_TTL_S
        )
        await stack.enter_async_context(holding.heartbeat.beating())
        stack.enter_context(metering.reading(holding, executor.deployment))
        grace_s = settings.drain_grace_s
        drains: set[asyncio.Task[None]] = set()

        async def drain(wanted_s: float) -> None:
            nonlocal grace_s
            await retire()
            await holding.emptied(wanted_s)
            grace_s = 0.0
            stop.set()

        servicer = ExecutorServicer(holding, lambda wanted_s: drains.add(asyncio.create_task(drain(wanted_s))))

        def add(server: grpc.aio.Server) -> None:
            add_ExecutorServiceServicer_to_server(servicer, server)

        server = await stack.enter_async_context(
            serving(add, settings.listen, services=[SERVICE], grace_s=END_S, credentials=settings.peers.server())
        )
        executor.address = settings.advertise or _reachable(server)
        known = asyncio.Event()

        def registered(ttl_s: float) -> None:
            holding.heartbeat.set_ttl(ttl_s)
            known.set()

        registering = asyncio.create_task(
            register_for_ever(executor, settings.schedulers, settings.peers, registered=registered),
            name="registration",
        )

        async def retire() -> None:
            """Take nothing new, and be known no longer to whoever looks for an executor."""
            holding.stop_taking()
            await server.set_ready(False)
            registering.cancel()
            await asyncio.gather(registering, return_exceptions=True)
            with contextlib.suppress(StoreUnavailable):
                await unregister(store, executor.executor_id)

        try:
            stopping = asyncio.create_task(stop.wait())
            ready = asyncio.create_task(known.wait())
            await asyncio.wait({stopping, ready}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            ready.cancel()
            await server.set_ready(True)
            yield Running(server, executor, stop)
        finally:
            for task in drains:
                task.cancel()
            await retire()
            await holding.emptied(grace_s)
            await holding.hand_over()


def _reachable(server: Serving) -> str:
    """Return where others reach a server: by this host's name where it listens on every address."""
    host = server.address.rpartition(":")[0]
    return f"{socket.gethostname()}:{server.port}" if host in EVERYWHERE else server.address
