"""The store as one process sees it: how it was set up, its functions, and the calls to them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import Any

from redis.exceptions import ResponseError

from onward_runlog import keys
from onward_runlog.connection import BACKOFF_S, DEFAULT_PATIENCE_S, Argument, Connection
from onward_runlog.errors import StoreUnavailable, StoreUnfit

logger = logging.getLogger(__name__)

VERSION = "onward1"
"""Name of the library of functions and prefix of each; two versions may live side by side in a rolling deploy."""

_REVISION = re.compile(r"^-- Revision (\d+)$", re.MULTILINE)

PARTITIONS = 16
"""Partitions of a store that nobody has used yet. Written into it, and never changed after."""


def library() -> str:
    """Return the source of the functions."""
    return files("onward_runlog").joinpath("functions.lua").read_text()


def revision_of(source: str) -> int:
    """Return the revision of a library's source; 0 where it tells none."""
    told = _REVISION.search(source)
    return int(told[1]) if told else 0


class Store:
    """One server: where a run lies and how to call a function on it.

    Attributes:
        url: Where it is.
        partitions: How many partitions it has.
        digest_key: Secret of the store that digests of inputs are keyed with.
        connection: The pipelined connection.
    """

    def __init__(self, url: str, connection: Connection, *, partitions: int, digest_key: bytes) -> None:
        self.url = url
        self.connection = connection
        self.partitions = partitions
        self.digest_key = digest_key

    def place(self, namespace: str, run_id: str) -> tuple[str, str]:
        """Return base name and ref of a run."""
        ref = keys.ref(namespace, run_id)
        return keys.base(keys.partition_of(ref, self.partitions)), ref

    def bases(self) -> list[str]:
        """Return the base names of all partitions."""
        return [keys.base(partition) for partition in range(self.partitions)]

    def call(
        self, function: str, base: str, *arguments: Argument, patience_s: float = DEFAULT_PATIENCE_S
    ) -> asyncio.Future[Any]:
        """Call a function of the library on a partition; its reply is to be awaited. Errors as Connection.call."""
        return self.connection.call("FCALL", f"{VERSION}_{function}", 1, base, *arguments, patience_s=patience_s)

    def command(self, *command: Argument, patience_s: float = DEFAULT_PATIENCE_S) -> asyncio.Future[Any]:
        """Send a plain command, for reading; errors as Connection.call."""
        return self.connection.call(*command, patience_s=patience_s)


@contextlib.asynccontextmanager
async def open_store(
    url: str,
    *,
    read_only: bool = False,
    allow_unfit: bool = False,
    waiting: Callable[[str], None] = lambda why: logger.warning("waiting for the store: %s", why),
) -> AsyncIterator[Store]:
    """Connect to a store, wait until it can serve, and yield it.

    Args:
        url: redis://, rediss:// or unix:// address.
        read_only: Never write: do not load functions, and wait until somebody else has set the store up.
        allow_unfit: Serve also from a server that may lose or evict what it acknowledged.
        waiting: Called once for each new reason to wait.

    Raises:
        StoreUnfit: The server has no append-only file or evicts keys.
        StoreUrlInvalid: The URL is none.
    """
    async with Connection(url, library=None if read_only else library()).opened() as connection:
        setup = await _when_ready(connection, read_only=read_only, waiting=waiting)
        if not read_only:
            await _load_functions(connection)
        if not allow_unfit:
            await _check_fit(connection)
        yield Store(url, connection, partitions=int(setup[0]), digest_key=setup[1])


async def _when_ready(
    connection: Connection, *, read_only: bool, waiting: Callable[[str], None]
) -> tuple[bytes, bytes]:
    said = ""
    tries = 0
    while True:
        try:
            partitions, digest_key = await _setup(connection)
            if not read_only and not (partitions and digest_key):  # a store that is full takes no write
                await connection.call("HSETNX", keys.STORE, "partitions", PARTITIONS, patience_s=0)
                await connection.call("HSETNX", keys.STORE, "digest_key", os.urandom(32), patience_s=0)
                partitions, digest_key = await _setup(connection)
            if partitions and digest_key:
                return partitions, digest_key
            why = "no Scheduler has set it up yet"
        except StoreUnavailable as error:
            why = str(error)
        if why != said:
            waiting(why)
            said = why
        await asyncio.sleep(BACKOFF_S[min(tries, len(BACKOFF_S) - 1)])
        tries += 1


def _setup(connection: Connection) -> asyncio.Future[Any]:
    return connection.call("HMGET", keys.STORE, "partitions", "digest_key", patience_s=0)


async def _load_functions(connection: Connection) -> None:
    """Bring the functions of a store that was used before up to what this build has: a fix must reach it, too.

    A process of an older build that starts in the middle of a deploy leaves those of the newer one alone.
    """
    source = library()
    try:
        loaded = await connection.call("FUNCTION", "LIST", "LIBRARYNAME", VERSION, "WITHCODE")
        if not loaded or revision_of(_code_of(loaded[0])) <= revision_of(source):
            await connection.call("FUNCTION", "LOAD", "REPLACE", source)
    except (ResponseError, StoreUnavailable) as error:  # not allowed, or out of memory: who can, loads them
        logger.warning("cannot load the functions: %s", error)


def _code_of(entry: list[Any]) -> str:
    """Return the source in an entry of FUNCTION LIST, which is names and values in turns."""
    code: bytes = dict(zip(entry[::2], entry[1::2], strict=True))[b"library_code"]
    return code.decode()


async def _check_fit(connection: Connection) -> None:
    wanted = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    allow = "allow it with --allow-unfit-store (ONWARD_ALLOW_UNFIT_STORE=1)"
    for name, value in wanted.items():
        try:
            reply = await connection.call("CONFIG", "GET", name)
        except ResponseError as error:
            raise StoreUnfit(
                f"the store does not tell whether it has {name} {value} ({error}). If it has, {allow}"
            ) from error
        found = reply[1].decode() if reply else ""
        if found != value:
            raise StoreUnfit(
                f"the store has {name} {found or 'unset'}, so it may lose runs that were accepted. Set {name} {value}, "
                f"or {allow}"
            )
