"""Opens, wires and closes a Gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc

from onward_gateway.http import http_door
from onward_gateway.paging import Pages
from onward_gateway.servicer import SERVICE, GatewayServicer, Work, add_to
from onward_gateway.settings import Settings
from onward_gateway.starting import Starting
from onward_gateway.submitting import schedulers
from onward_gateway.waiting import Waiting
from onward_runlog.deployments import Deployments
from onward_runlog.feed import Feed
from onward_runlog.listing import Listing
from onward_runlog.reader import Reader
from onward_runlog.settled import Settling
from onward_runlog.store import open_store
from onward_serving.server import Serving, serving

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a Gateway listens.

    Attributes:
        grpc: HOST:PORT.
        http: HOST:PORT.
    """

    grpc: str
    http: str


@contextlib.asynccontextmanager
async def opened(settings: Settings, *, listening: Callable[[Doors], None] = lambda _: None) -> AsyncIterator[Doors]:
    """Serve until the block ends; then hand over every stream, finish what is under way, and close.

    The block begins when the store is there. Until then both doors are open and say that they are not ready.

    Args:
        listening: Called with the doors when they are open.

    Raises:
        OSError: An address is taken.
        StoreUnfit: The store may lose what it acknowledged.
    """
    servicer = GatewayServicer(settings)

    def add(server: grpc.aio.Server) -> None:
        add_to(server, servicer)

    async with (
        contextlib.AsyncExitStack() as below,  # what the servicer works with: closed when no call is left
        http_door(settings.http, lambda: servicer.ready, grace_s=settings.shutdown_grace_s) as http,
        serving(add, settings.grpc, services=[SERVICE], grace_s=settings.shutdown_grace_s) as server,
    ):
        doors = Doors(server.address, http)
        listening(doors)
        servicer.open(await below.enter_async_context(_work(settings)))
        await server.set_ready(True)
        try:
            yield doors
        finally:
            await _drain(server, servicer)


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    announce: Callable[..., None],
    *,
    listening: Callable[[Doors], None] = lambda _: None,
) -> None:
    """Serve until `stop` is set, also while the store is not there yet; raises as `opened`.

    Args:
        announce: Called with the addresses of the doors, `grpc` and `http`, when requests are answered.
        listening: As for `opened`.
    """
    patience = asyncio.timeout(None)

    def give_up(_: object) -> None:
        patience.reschedule(0)

    stopped = asyncio.create_task(stop.wait())
    stopped.add_done_callback(give_up)
    try:
        async with patience, opened(settings, listening=listening) as doors:
            stopped.remove_done_callback(give_up)
            announce(grpc=doors.grpc, http=doors.http)
            await stopped
    except TimeoutError:
        if not stop.is_set():
            raise
        logger.info("stopped before the store was there")
    finally:
        stopped.remove_done_callback(give_up)
        stopped.cancel()


@contextlib.asynccontextmanager
async def _work(settings: Settings) -> AsyncIterator[Work]:
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        store = await enter(open_store(settings.redis_url, read_only=True, allow_unfit=settings.allow_unfit_store))
        reader = Reader(store)
        settling = Settling(reader)
        feed = await enter(Feed(store, reader).following())
        deployments = await enter(Deployments(store).following())
        submitting = await enter(schedulers(settings.schedulers, settings.namespace))
        yield Work(
            reader=reader,
            feed=feed,
            settling=settling,
            listing=Listing(store),
            deployments=deployments,
            schedulers=submitting,
            starting=Starting(reader, deployments, submitting, settings.namespace),
            waiting=Waiting(reader, feed),
            pages=Pages(store, reader, settling),
        )


async def _drain(server: Serving, servicer: GatewayServicer) -> None:
    await server.set_ready(False)
    servicer.drain()
