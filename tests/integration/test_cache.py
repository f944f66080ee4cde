"""Results that runs share: one suite for the cache in memory and the one in Redis, and what only a store can show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.runlog import all_keys, eventually

from onward.cache import Cache, Owner, StillMade
from onward.memory import MemoryCache
from onward_runlog import keys
from onward_runlog.cache import RedisCache
from onward_runlog.store import Store, open_store

KEY = "default/0123456789abcdef"
ONE, OTHER, THIRD = Owner("default/r1/c1", 1), Owner("default/r2/c1", 1), Owner("default/r3/c1", 1)


@pytest.fixture(params=["memory", "redis"])
def cache(request: pytest.FixtureRequest) -> Cache:
    if request.param == "memory":
        return MemoryCache()
    return RedisCache(request.getfixturevalue("store"))


@pytest.fixture
async def elsewhere(redis_url: str, store: Store) -> AsyncIterator[RedisCache]:
    """The cache of another executor."""
    async with open_store(redis_url) as other:
        yield RedisCache(other)


async def soon(awaited: Any) -> Any:
    async with asyncio.timeout(15):
        return await awaited


async def waiting(cache: Cache, owner: Owner) -> asyncio.Task[bytes | None]:
    """Ask, and return when the question is under way."""
    task = asyncio.create_task(cache.take(KEY, owner))
    with pytest.raises(StillMade):
        await cache.take(KEY, Owner(f"{owner.call} too", 1), patience_s=0.2)
    assert not task.done()
    return task


async def test_the_first_makes_it_and_the_others_get_it(cache: Cache) -> None:
    """However many wait; and who asks later gets it, too."""
    assert await soon(cache.take(KEY, ONE)) is None
    tasks = [asyncio.create_task(cache.take(KEY, Owner(f"default/r/{number}", 1))) for number in range(20)]
    tasks.append(await waiting(cache, OTHER))
    cache.keep(KEY, ONE, b"made", 60)
    assert await soon(asyncio.gather(*tasks)) == [b"made"] * 21
    assert await soon(cache.take(KEY, THIRD)) == b"made"
    cache.release(KEY, OTHER)


@pytest.mark.parametrize("value", [b"", b"null", b"\x00\xff", b"x" * 1_000_000], ids=len)
async def test_a_value_comes_back_as_it_was(cache: Cache, value: bytes) -> None:
    """Empty, binary, long."""
    assert await soon(cache.take(KEY, ONE)) is None
    cache.keep(KEY, ONE, value, 60)
    assert await soon(cache.take(KEY, OTHER)) == value


async def test_where_it_was_given_up_one_other_makes_it(cache: Cache) -> None:
    """A failure is not kept: the next one tries."""
    assert await soon(cache.take(KEY, ONE)) is None
    second = await waiting(cache, OTHER)
    cache.release(KEY, ONE)
    assert await soon(second) is None
    with pytest.raises(StillMade):
        await cache.take(KEY, THIRD, patience_s=0.05)


async def test_the_same_call_asks_again_and_makes_it(cache: Cache) -> None:
    """A reply that was lost, and a later attempt of the same run, which takes over from the lost one."""
    assert await soon(cache.take(KEY, ONE)) is None
    assert await soon(cache.take(KEY, ONE)) is None
    later = Owner(ONE.call, 2)
    assert await soon(cache.take(KEY, later)) is None
    with pytest.raises(StillMade):
        await cache.take(KEY, ONE, patience_s=0.05)
    cache.release(KEY, ONE)
    with pytest.raises(StillMade, match=KEY):
        await cache.take(KEY, OTHER, patience_s=0.05)


async def test_who_stops_waiting_holds_up_nobody(cache: Cache) -> None:
    """A cancelled call has no claim."""
    assert await soon(cache.take(KEY, ONE)) is None
    second = await waiting(cache, OTHER)
    third = asyncio.create_task(cache.take(KEY, THIRD))
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    cache.release(KEY, ONE)
    assert await soon(third) is None


async def test_keys_are_apart(cache: Cache) -> None:
    """Another namespace, another result."""
    assert await soon(cache.take(KEY, ONE)) is None
    cache.keep(KEY, ONE, b"made", 60)
    assert await soon(cache.take("other/0123456789abcdef", OTHER)) is None


async def test_a_result_expires_in_memory() -> None:
    """By the clock that it was given."""
    now_s = 0.0
    cache = MemoryCache(lambda: now_s)
    await cache.take(KEY, ONE)
    cache.keep(KEY, ONE, b"made", 60)
    now_s = 59.0
    assert await cache.take(KEY, OTHER) == b"made"
    now_s = 61.0
    assert await cache.take(KEY, OTHER) is None


# Redis


async def test_executors_share_it(store: Store, elsewhere: RedisCache) -> None:
    """One makes it, and who waits on another executor gets it."""
    here = RedisCache(store)
    assert await soon(here.take(KEY, ONE)) is None
    second = await waiting(elsewhere, OTHER)
    here.keep(KEY, ONE, b"made", 60)
    assert await soon(second) == b"made"


async def test_who_died_is_followed_by_another(store: Store, elsewhere: RedisCache) -> None:
    """The claim of a process that says nothing any more runs out."""
    base = keys.base(keys.partition_of(KEY, store.partitions))
    assert await store.call("cache_take", base, KEY, *ONE, 200) == [b"make"]
    assert await soon(elsewhere.take(KEY, OTHER)) is None


async def test_a_later_attempt_takes_over_at_once_whoever_waits(store: Store) -> None:
    """Also where it comes into a process in which others have been waiting for long."""
    base = keys.base(keys.partition_of(KEY, store.partitions))
    assert await store.call("cache_take", base, KEY, *ONE, 60_000) == [b"make"]
    cache = RedisCache(store)
    second = await waiting(cache, OTHER)
    assert await soon(cache.take(KEY, Owner(ONE.call, 2))) is None
    cache.keep(KEY, Owner(ONE.call, 2), b"made", 60)
    assert await soon(second) == b"made"


async def test_who_lives_keeps_its_claim(store: Store, elsewhere: RedisCache) -> None:
    """However long it takes: the claim is renewed, and ends at once with what was made."""
    here = RedisCache(store, making_ttl_s=0.15)
    assert await soon(here.take(KEY, ONE)) is None
    with pytest.raises(StillMade):
        await elsewhere.take(KEY, OTHER, patience_s=1.0)
    here.release(KEY, ONE)
    assert await soon(elsewhere.take(KEY, THIRD)) is None


async def test_everything_expires_by_the_stores_clock(store: Store) -> None:
    """The value by its time, the claim by its own: nothing stays."""
    cache = RedisCache(store, making_ttl_s=0.1)
    assert await soon(cache.take(KEY, ONE)) is None
    cache.keep(KEY, ONE, b"made", 0.2)
    assert await soon(cache.take(KEY, OTHER)) == b"made"

    async def empty() -> bool:
        return not await all_keys(store)

    await eventually(empty)
    assert await soon(cache.take(KEY, OTHER)) is None
    cache.release(KEY, OTHER)
    await eventually(empty)


async def test_a_cancelled_question_leaves_no_claim(store: Store) -> None:
    """The store may have granted what nobody will make."""
    cache = RedisCache(store)
    task = asyncio.create_task(cache.take(KEY, ONE))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(5):
        assert await cache.take(KEY, OTHER) is None


async def test_results_spread_over_the_partitions(store: Store) -> None:
    """A result's place is its own, not its run's."""
    cache = RedisCache(store)
    for number in range(32):
        await cache.take(f"default/{number:032x}", ONE)
        cache.keep(f"default/{number:032x}", ONE, b"1", 60)
    await cache.take("default/last", ONE)
    found = {name.partition(":cache:")[0] for name in await all_keys(store) if ":cache:" in name}
    assert len(found) > store.partitions // 2
    assert found <= set(store.bases())


async def test_a_store_that_refuses_is_a_cache_that_does_not_answer(store: Store) -> None:
    """The component runs without."""
    cache = RedisCache(store)
    await store.command("FUNCTION", "FLUSH")
    await store.command("SET", f"{keys.base(keys.partition_of(KEY, store.partitions))}:making:{KEY}", "x")
    await store.command("DEL", f"{keys.base(keys.partition_of(KEY, store.partitions))}:making:{KEY}")
    await store.command("LPUSH", f"{keys.base(keys.partition_of(KEY, store.partitions))}:cache:{KEY}", "no string")
    with pytest.raises(ConnectionError, match="does not answer"):
        await soon(cache.take(KEY, ONE))
