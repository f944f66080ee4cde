"""What followers of a run are told, by hints and without them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.gateway import bare_redis, begun, delta
from tests.runlog import eventually

from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import RunState
from onward_runlog import feed as feeds
from onward_runlog import keys
from onward_runlog.errors import LogRebuilt
from onward_runlog.feed import Feed, FollowedRun
from onward_runlog.reader import Chunk, Reader, unframed
from onward_runlog.store import Store

TERMINAL = RunState.RUN_STATE_SUCCEEDED


class Listener:
    """A follower that can be waited for."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    def wake(self) -> None:
        self._woken.set()

    async def until(self, run: FollowedRun, last: int) -> None:
        """Return when the ring has reached an offset."""
        async with asyncio.timeout(10):
            while run.last < last:
                await self._woken.wait()
                self._woken.clear()


@pytest.fixture
async def feed(store: Store) -> AsyncIterator[Feed]:
    async with Feed(store, Reader(store)).following() as feed:
        yield feed


async def learned(feed: Feed, store: Store, listener: Listener, run: FollowedRun) -> None:
    run.learn(await Reader(store).run("default", "run"))


def texts(chunk: Chunk | None) -> list[str]:
    assert chunk is not None
    return [Event.FromString(unframed(event)).output_delta.text for event in chunk.events]


async def test_hints_fill_the_ring_and_tell_the_end(feed: Feed, store: Store) -> None:
    log = await begun(store)
    listener = Listener()
    with feed.follow("default", "run", listener) as run:
        await learned(feed, store, listener, run)
        assert (run.last, run.end) == (1, None)
        await log.append(delta("a"), delta("b"))
        await listener.until(run, 3)
        assert texts(run.chunk(1)) == ["a", "b"]
        assert texts(run.chunk(2)) == ["b"]
        assert run.chunk(3) is None
        assert run.chunk(0) is None
        assert (run.is_past(0), run.is_past(1)) == (True, False)
        last = await log.close()
        await listener.until(run, last)
        assert run.end == last
    assert len(feed) == 0


async def test_followers_share_a_run_and_the_last_one_ends_it(feed: Feed) -> None:
    first, second = Listener(), Listener()
    with feed.follow("default", "run", first) as run:
        with feed.follow("default", "run", second) as same:
            assert same is run
        with feed.follow("other", "run", second) as theirs:
            assert theirs is not run
        assert len(feed) == 1
    assert len(feed) == 0


async def test_what_is_written_without_a_hint_is_found_and_the_subscription_renewed(
    feed: Feed, store: Store, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that delivers nothing looks like one on which nothing happens, but for what the log says."""
    monkeypatch.setattr(feeds, "CHECK_HOT_S", 0.1)
    monkeypatch.setattr(feeds, "TICK_S", 0.05)
    await begun(store)
    base, ref = store.place("default", "run")
    listener = Listener()

    async with bare_redis(redis_url) as redis:

        async def subscribers() -> set[str]:
            return {client["id"] for client in await redis.client_list(_type="pubsub")}

        await eventually(lambda: _any(subscribers))
        before = await subscribers()
        with feed.follow("default", "run", listener) as run:
            await learned(feed, store, listener, run)
            await redis.xadd(keys.log(base, ref), {"e": Event(offset=2).SerializeToString()}, id="2-0")
            await redis.hset(keys.run(base, ref), "last", 2)
            await listener.until(run, 2)

            async def renewed() -> bool:
                return not before & await subscribers()

            await eventually(renewed, within_s=10)


async def _any(subscribers: object) -> bool:
    found: set[str] = await subscribers()  # type: ignore[operator]
    return bool(found)


async def test_a_large_append_is_read_from_the_log_once_for_all(feed: Feed, store: Store) -> None:
    """Its hint carries no events."""
    log = await begun(store)
    listener = Listener()
    with feed.follow("default", "run", listener) as run:
        await learned(feed, store, listener, run)
        last = await log.append(*(delta("x" * 50_000) for _ in range(3)))
        await listener.until(run, last)
        assert [len(text) for text in texts(run.chunk(1))] == [50_000] * 3


async def test_a_ring_keeps_the_newest_events_only(feed: Feed, store: Store) -> None:
    log = await begun(store)
    listener = Listener()
    with feed.follow("default", "run", listener) as run:
        await learned(feed, store, listener, run)
        last = 1
        for _ in range(20):
            last = await log.append(*(delta() for _ in range(250)))
        await listener.until(run, last)
        assert run.is_past(last - 2 * feeds.RING_EVENTS_MAX - 1)
        assert not run.is_past(last - feeds.RING_EVENTS_MAX + 250)
        for _ in range(20):
            last = await log.append(*(delta("x" * 100_000) for _ in range(5)))
        await listener.until(run, last)
        assert run.size <= feeds.RING_BYTES_MAX
        assert run.chunk(last - 1) is not None


async def test_rings_of_quiet_runs_are_given_back(feed: Feed, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "HOT_S", 0.0)
    monkeypatch.setattr(feeds, "TICK_S", 0.01)
    log = await begun(store)
    listener = Listener()
    with feed.follow("default", "run", listener) as run:
        await learned(feed, store, listener, run)
        last = await log.append(delta())
        await listener.until(run, last)

        async def given_back() -> bool:
            return run.size == 0 and run.is_past(last - 1) and not run.is_past(last)

        await eventually(given_back)
        newest = await log.append(delta("new"))
        await listener.until(run, newest)


async def test_a_follower_that_learns_of_another_log_ends_it_for_all(feed: Feed, store: Store) -> None:
    await begun(store)
    listener = Listener()
    with feed.follow("default", "run", listener) as run:
        await learned(feed, store, listener, run)
        rebuilt = await Reader(store).run("default", "run")
        rebuilt.log.log_id = "new"
        run.learn(rebuilt)
        assert isinstance(run.failure, LogRebuilt)
        with feed.follow("default", "run", listener) as anew:
            assert anew is not run
    assert len(feed) == 0
