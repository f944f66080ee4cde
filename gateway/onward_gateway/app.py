"""Opens, wires and closes a Gateway."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc

from onward_gateway import metering
from onward_gateway.access import Access, following_keys, keys_in
from onward_gateway.calls import Calls, Work
from onward_gateway.http.door import http_door
from onward_gateway.paging import Pages
from onward_gateway.servicer import SERVICE, GatewayServicer, add_to
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
from onward_serving.server import serving
from onward_serving.tls import certificate

logger = logging.getLogger(__name__)


class Unprotected(Exception):
    """A door that others can reach would let everybody in."""


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
        Unprotected: A door that others can reach would ask for no API key.
        KeysInvalid: The file of API keys cannot be read.
        TlsInvalid: A certificate or its key cannot be used.
    """
    shown = certificate(settings.tls_cert, settings.tls_key)
    access = _access(settings)
    calls = Calls(settings, access)

    def add(server: grpc.aio.Server) -> None:
        add_to(server, GatewayServicer(calls, access))

    async with (
        contextlib.AsyncExitStack() as below,  # what calls work with: closed when none is left
        http_door(settings, calls, access, shown) as http,
        serving(
            add,
            settings.grpc,
            services=[SERVICE],
            grace_s=settings.shutdown_grace_s,
            credentials=shown.credentials() if shown else None,
        ) as server,
    ):
        doors = Doors(server.address, http)
        listening(doors)
        if settings.keys is not None:
            await below.enter_async_context(following_keys(access, settings.keys, calls.access_changed))
        below.enter_context(metering.reading(calls))
        calls.open(await below.enter_async_context(_work(settings)))
        await server.set_ready(True)
        try:
            yield doors
        finally:
            await server.set_ready(False)
            calls.drain()


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
        submitting = await enter(schedulers(settings.schedulers, settings.peers))
        yield Work(
            reader=reader,
            feed=feed,
            settling=settling,
            listing=Listing(store),
            deployments=deployments,
            schedulers=submitting,
            starting=Starting(reader, deployments, submitting),
            waiting=Waiting(reader, feed),
            pages=Pages(store, reader, settling),
        )


def _access(settings: Settings) -> Access:
    if settings.keys is not None:
        return Access(settings.namespace, keys_in(settings.keys))
    for door, listen in (("gRPC", settings.grpc), ("HTTP", settings.http)):
        if not (is_loopback(listen) or settings.allow_anonymous):
            raise Unprotected(
                f"the {door} door at {listen} can be reached from elsewhere, and asks for no API keys. Name a file of "
                "them with --keys (`onward keys new` makes some), or let everybody in with --allow-anonymous "
                "(ONWARD_ALLOW_ANONYMOUS=1)"
            )
    return Access(settings.namespace, None)


def is_loopback(listen: str) -> bool:
    """Say whether an address, HOST:PORT, can be reached from its own machine only."""
    host = listen.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
