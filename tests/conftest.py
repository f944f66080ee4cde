"""What tests of every kind share: a real store, and ears for Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from onward_cli.valkey import Valkey, embedded_valkey


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """What a shell runs in the background ignores Ctrl-C, and so does all that it starts, unless told otherwise."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Valkey]:
    """One store for all tests of this process, with the settings that users get; it belongs to no event loop."""
    async with embedded_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
async def redis_url(valkey_server: Valkey) -> str:
    """The URL of the shared store, emptied of data and of functions."""
    async with Redis.from_url(valkey_server.url) as redis:
        await redis.flushall()
        await redis.function_flush()
    return valkey_server.url
