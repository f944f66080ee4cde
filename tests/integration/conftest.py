"""What tests against a real store share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from onward_runlog import keys
from onward_runlog.runs import Runs
from onward_runlog.store import Store, open_store
from onward_runlog.writer import LogWriter


@pytest.fixture
async def one_partition(redis_url: str) -> None:
    """Whoever asks for this has all runs in one partition, so that what holds within one can be seen."""
    async with Redis.from_url(redis_url) as redis:
        await redis.hset(keys.STORE, "partitions", "1")


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    """A store that nobody has used; of 16 partitions, or one with `one_partition`."""
    async with open_store(redis_url) as store:
        yield store


@pytest.fixture
def runs(store: Store) -> Runs:
    return Runs(store)


@pytest.fixture
async def writer(store: Store) -> AsyncIterator[LogWriter]:
    async with LogWriter(store).opened() as writer:
        yield writer
