"""Permits: one suite for those in memory and those in Redis, and what only a store can show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.runlog import all_keys, eventually

from onward.memory import MemoryPermits
from onward.permits import Permits
from onward_runlog import keys
from onward_runlog import permits as in_redis
from onward_runlog.permits import RedisPermits
from onward_runlog.store import Store, open_store

NAME, OTHER = "default/0123456789abcdef", "default/fedcba9876543210"


@pytest.fixture
async def here(store: Store) -> AsyncIterator[RedisPermits]:
    async with RedisPermits(store).opened() as permits:
        yield permits


@pytest.fixture
async def there(redis_url: str) -> AsyncIterator[RedisPermits]:
    """The permits of another executor."""
    async with open_store(redis_url) as other, RedisPermits(other).opened() as permits:
        yield permits


@pytest.fixture(params=["memory", "redis"])
def permits(request: pytest.FixtureRequest) -> Permits:
    if request.param == "memory":
        return MemoryPermits()
    redis: Permits = request.getfixturevalue("here")
    return redis


async def soon(awaited: Any) -> Any:
    async with asyncio.timeout(20):
        return await awaited


async def waiting(permits: Permits, limit: int = 1, name: str = NAME) -> asyncio.Task[Callable[[], None]]:
    """Ask, and return when the question has its place in line."""
    task = asyncio.create_task(permits.acquire(name, limit, "h"))
    await answered(permits)
    assert not task.done()
    return task


async def answered(permits: Permits) -> None:
    """Return when all that was asked and told before has been answered."""
    (await soon(permits.acquire("default/answered", 1, "h")))()


async def test_no_more_than_the_limit_at_once_and_first_come_first_served(permits: Permits) -> None:
    """However many ask."""
    order: list[int] = []
    running = most = 0

    async def one(number: int) -> None:
        nonlocal running, most
        release = await permits.acquire(NAME, 3, f"h{number}")
        order.append(number)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        release()

    await soon(asyncio.gather(*(one(number) for number in range(40))))
    assert most == 3
    assert order == list(range(40))


async def test_names_are_apart(permits: Permits) -> None:
    """Who waits for one holds up nobody else."""
    await soon(permits.acquire(NAME, 1, "h"))
    await soon(permits.acquire(OTHER, 1, "h"))


async def test_giving_back_twice_is_giving_back_once(permits: Permits) -> None:
    """The second time it may be another's already."""
    release = await soon(permits.acquire(NAME, 1, "h"))
    second = await waiting(permits)
    release()
    release()
    await soon(second)
    third = await waiting(permits)
    release()
    await answered(permits)
    assert not third.done()
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)


async def test_the_same_holder_asks_twice_and_holds_two(permits: Permits) -> None:
    """Its name is for people: each question is its own."""
    await soon(permits.acquire(NAME, 2, "h"))
    await soon(permits.acquire(NAME, 2, "h"))
    third = await waiting(permits, limit=2)
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)


async def test_who_is_cancelled_in_line_holds_up_nobody(permits: Permits) -> None:
    """Not even one that was cancelled when its turn had just come."""
    release = await soon(permits.acquire(NAME, 1, "h"))
    second, third, fourth = [await waiting(permits) for _ in range(3)]
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert not third.done()
    release()
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    (await soon(fourth))()
    await soon(permits.acquire(NAME, 1, "h"))


async def test_each_keeps_its_own_limit(permits: Permits) -> None:
    """A new deployment names another one: it holds for those who say it, and the line stays a line."""
    release = await soon(permits.acquire(NAME, 1, "old"))
    (await soon(permits.acquire(NAME, 2, "new")))()
    old = await waiting(permits, limit=1)
    new = await waiting(permits, limit=2)
    release()
    await soon(asyncio.gather(old, new))


# Redis


async def test_executors_share_the_limit_and_the_line(here: RedisPermits, there: RedisPermits) -> None:
    """Turn by turn over both, by messages: nobody asks a second time."""
    first = await soon(here.acquire(NAME, 1, "h"))
    tasks = [await waiting(there if number % 2 else here) for number in range(6)]
    release = first
    for number, task in enumerate(tasks):
        release()
        async with asyncio.timeout(1.5):  # A renewal would find it after 2.5 s.
            release = await task
        assert [one.done() for one in tasks] == [True] * (number + 1) + [False] * (5 - number)


async def test_who_is_cancelled_before_the_answer_holds_nothing(here: RedisPermits) -> None:
    """The store may have granted what nobody holds."""
    task = asyncio.create_task(here.acquire(NAME, 1, "h"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await soon(here.acquire(NAME, 1, "h"))


async def test_who_dies_holding_is_followed_after_its_lease(redis_url: str, store: Store) -> None:
    """So is who dies in line: its turn is lost on nobody."""
    async with RedisPermits(store, ttl_s=0.4).opened() as living:
        async with open_store(redis_url) as other, RedisPermits(other, ttl_s=0.4).opened() as dead:
            await soon(dead.acquire(NAME, 1, "h"))
            line = [await waiting(dead) for _ in range(20)]
            mine = await waiting(living)
            # A lease that is renewed does not end.
            await asyncio.sleep(1.0)
            assert not mine.done()
        (await soon(mine))()
        await soon(living.acquire(NAME, 1, "h"))
    for one in line:
        one.cancel()
    await asyncio.gather(*line, return_exceptions=True)


async def test_a_reply_that_is_lost_takes_no_second_permit(store: Store) -> None:
    """The same call again changes nothing; and what was given back twice was given back once."""
    base = keys.base(keys.partition_of(NAME, store.partitions))
    for _ in range(2):
        assert await store.call("permit_take", base, NAME, 60_000, "c", "a", 2, 0, "b", 2, 0, "c", 2, 0) == [1, 1, 0]
    for _ in range(2):
        assert await store.call("permit_release", base, NAME, "a") == [b"ok"]
    assert await store.call("permit_take", base, NAME, 60_000, "c", "c", 2, 0, "d", 2, 0) == [1, 0]


async def test_who_runs_counts_though_its_lease_was_lost(store: Store) -> None:
    """A process that was suspended comes back, and a store that lost its memory: nothing new begins until it ends."""
    base = keys.base(keys.partition_of(NAME, store.partitions))
    await store.call("permit_take", base, NAME, 60_000, "c", "new", 1, 0)
    assert await store.call("permit_take", base, NAME, 60_000, "c", "slept", 1, 1) == [1]
    assert await store.call("permit_take", base, NAME, 60_000, "c", "next", 1, 0) == [0]
    await store.call("permit_release", base, NAME, "new")
    assert await store.call("permit_take", base, NAME, 60_000, "c", "next", 1, 0) == [0]
    await store.call("permit_release", base, NAME, "slept")
    assert await store.call("permit_take", base, NAME, 60_000, "c", "next", 1, 0) == [1]


async def test_a_store_that_forgot_is_told_again_who_runs(store: Store) -> None:
    """Whoever was let in meanwhile, and whoever stands in line: nobody else begins."""
    base = keys.base(keys.partition_of(NAME, store.partitions))
    leases = f"{base}:permits:{NAME}:leases"
    async with RedisPermits(store, ttl_s=1.0).opened() as permits:
        release = await soon(permits.acquire(NAME, 1, "h"))
        await store.command("DEL", leases)
        assert await store.call("permit_take", base, NAME, 60_000, "c", "new", 1, 0, "next", 1, 0) == [1, 0]

        async def renewed() -> bool:
            return int(await store.command("ZCARD", leases)) == 3

        await eventually(renewed)
        await store.call("permit_release", base, NAME, "new")
        assert await store.call("permit_take", base, NAME, 60_000, "c", "next", 1, 0) == [0]
        release()
        assert await store.call("permit_take", base, NAME, 60_000, "c", "next", 1, 0) == [1]


async def test_what_was_given_back_is_not_renewed(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """Not even by a renewal that had just begun."""
    monkeypatch.setattr(in_redis, "BEATS", 10**6)
    base = keys.base(keys.partition_of(NAME, store.partitions))
    async with RedisPermits(store).opened() as permits:
        for _ in range(300):
            (await soon(permits.acquire(NAME, 1, "h")))()
        assert await store.call("permit_take", base, NAME, 60_000, "c", "last", 1, 0) == [1]
        assert await store.command("ZRANGE", f"{base}:permits:{NAME}:leases", 0, -1) == [b"last"]


async def test_a_message_that_is_lost_is_found_out(store: Store) -> None:
    """By the next renewal."""
    async with RedisPermits(store, ttl_s=1.0).opened() as permits:
        release = await soon(permits.acquire(NAME, 1, "h"))
        second = await waiting(permits)

        async def listens() -> bool:
            return bool(await store.command("PUBSUB", "CHANNELS", keys.granted_channel("*")))

        await eventually(listens)
        await store.command("CLIENT", "KILL", "TYPE", "pubsub")
        release()
        await soon(second)


async def test_a_thousand_wait_and_each_has_its_turn(here: RedisPermits, there: RedisPermits) -> None:
    """On two executors; never more than the limit, and one that gives back wakes one."""
    running = most = ended = 0

    async def one(permits: RedisPermits) -> None:
        nonlocal running, most, ended
        release = await permits.acquire(NAME, 10, "h")
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        ended += 1
        release()

    began = asyncio.get_running_loop().time()
    await soon(asyncio.gather(*(one(there if number % 2 else here) for number in range(1_000))))
    print(f"1,000 permits of 10 at once in {asyncio.get_running_loop().time() - began:.2f} s")
    assert ended == 1_000
    assert most == 10


async def test_nothing_is_left_in_the_store(store: Store, here: RedisPermits) -> None:
    """What was given back is gone at once, what was not goes by itself."""
    before = set(await all_keys(store))
    release = await soon(here.acquire(NAME, 1, "h"))
    second = await waiting(here)
    made = set(await all_keys(store)) - before
    assert made
    assert all([await store.command("PTTL", name) > 0 for name in made])
    release()
    (await soon(second))()

    async def empty() -> bool:
        return set(await all_keys(store)) == before

    await eventually(empty)
