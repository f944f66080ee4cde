"""Whether a provider answers anybody, as the whole fleet finds it: in Redis, by the store's own clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from tests.proxy import proxy_to
from tests.runlog import all_keys, eventually

from onward.breakers import Entry
from onward_runlog import keys
from onward_runlog.breakers import RedisBreakers
from onward_runlog.store import Store, open_store

NAME = "0123456789abcdef"
GO = Entry()


@pytest.fixture
async def breakers(store: Store) -> AsyncIterator[RedisBreakers]:
    async with RedisBreakers(store).opened() as breakers:
        yield breakers


@pytest.fixture
async def elsewhere(redis_url: str, store: Store) -> AsyncIterator[RedisBreakers]:
    """Those of another executor."""
    async with open_store(redis_url) as other, RedisBreakers(other).opened() as breakers:
        yield breakers


def key(store: Store) -> str:
    return f"{keys.base(keys.partition_of(NAME, store.partitions))}:breaker:{NAME}"


async def put(store: Store, **fields: float) -> None:
    """Have time passed: of the times that the breaker keeps these are others."""
    for name, value in fields.items():
        await store.command("HSET", key(store), name, str(value))


async def fail(breakers: RedisBreakers, times: int = 3, took_s: float = 0.0) -> list[float | None]:
    return [await breakers.failed(NAME, f"run/{number}/1", took_s) for number in range(times)]


async def tripped(breakers: RedisBreakers) -> None:
    async def known() -> bool:
        return breakers.tripped(NAME)

    await eventually(known)


async def now_in(store: Store, field: str, value: bytes) -> None:
    async def there() -> bool:
        return bool(await store.command("HGET", key(store), field) == value)

    await eventually(there)


async def probe(breakers: RedisBreakers, store: Store, call: str = "probe/1/1") -> None:
    """Have the next probe, now."""
    await put(store, probe_at=0)
    assert await breakers.enter(NAME, call) == Entry(probe=True)


async def test_failures_open_it_that_come_one_after_another(breakers: RedisBreakers, elsewhere: RedisBreakers) -> None:
    """Three, from wherever: those before are the calls' own, and from the third on they are everybody's."""
    assert await breakers.failed(NAME, "a/1/1", 0.1) is None
    assert await elsewhere.failed(NAME, "b/1/1", 0.1) is None
    assert not breakers.tripped(NAME)
    assert await breakers.failed(NAME, "c/1/1", 0.1) == pytest.approx(0, abs=0.5)
    assert breakers.tripped(NAME)
    assert await elsewhere.failed(NAME, "d/1/1", 0.1) is not None


async def test_where_somebody_is_answered_it_stays_closed(breakers: RedisBreakers) -> None:
    """What was answered before a failure is told with it."""
    for number in range(10):
        assert await fail(breakers, 2) == [None, None]
        breakers.answered(NAME, f"ok/{number}/1")
    assert not breakers.tripped(NAME)


async def test_answers_are_told_also_where_nothing_fails(
    breakers: RedisBreakers, elsewhere: RedisBreakers, store: Store
) -> None:
    """An executor that is cut off does not take the provider for down while others are answered."""
    assert await fail(breakers, 2) == [None, None]
    elsewhere.answered(NAME, "ok/1/1")
    await now_in(store, "failures", b"0")
    assert await fail(breakers, 2) == [None, None]


async def test_every_executor_hears_of_it_also_one_that_comes_later(
    breakers: RedisBreakers, elsewhere: RedisBreakers, redis_url: str
) -> None:
    await fail(breakers)
    await tripped(elsewhere)
    async with open_store(redis_url) as other, RedisBreakers(other).opened() as late:
        await tripped(late)


async def test_one_at_a_time_finds_out_and_the_others_are_told_when_to_come_again(
    breakers: RedisBreakers, elsewhere: RedisBreakers, store: Store
) -> None:
    """Never two at one moment: those who wait come one after another, the first when the next probe is due, the others
    as the ramp would let them go if it ended the outage. But no more than fifty in a second."""
    await fail(breakers)
    await put(store, since=0)  # An outage of many years: the ramp is as long as any.
    assert 0 < (await breakers.enter(NAME, "w/0/1")).delay_s <= 1.3
    turns = []
    for number in range(200):
        entry = await breakers.enter(NAME, f"w/{number}/1")
        turns.append(float(await store.command("HGET", key(store), "ask_at")))
        assert entry.delay_s > 0
    gaps = [after - before for before, after in pairwise(turns)]
    assert gaps == sorted(gaps, reverse=True)
    assert 100 < gaps[0] <= 200
    assert round(gaps[-1]) == 20
    await probe(breakers, store)
    assert await breakers.enter(NAME, "probe/1/1") == Entry(probe=True)  # Its reply was lost, or a later attempt asks.
    assert (await elsewhere.enter(NAME, "other/1/1")).delay_s > 0.5


async def test_each_probe_that_fails_is_followed_by_a_longer_pause(breakers: RedisBreakers, store: Store) -> None:
    """Doubled, up to half a minute."""
    await fail(breakers)
    for pause_s in (2, 4, 8, 16, 30, 30):
        await probe(breakers, store)
        assert await breakers.failed(NAME, "probe/1/1", 0.1) is not None
        await put(store, ask_at=0)
        assert 0.75 * pause_s <= (await breakers.enter(NAME, "w/1/1")).delay_s <= 1.25 * pause_s


async def test_a_failure_that_is_no_probes_changes_nothing(breakers: RedisBreakers, store: Store) -> None:
    """Calls that were under way when it opened fail one by one."""
    await fail(breakers)
    await probe(breakers, store)
    before = await store.command("HMGET", key(store), "state", "probe", "interval", "since")
    await fail(breakers, 10)
    assert await store.command("HMGET", key(store), "state", "probe", "interval", "since") == before
    breakers.answered(NAME, "probe/1/1")
    await now_in(store, "state", b"ramp")


async def test_when_the_probe_is_answered_others_follow_more_and_more(breakers: RedisBreakers, store: Store) -> None:
    """A tenth of the time doubles the rate, from five in a second, and nobody asks any more when it is over."""
    await fail(breakers)
    await put(store, since=0)  # An outage of many years: the ramp is as long as any.
    await probe(breakers, store)
    breakers.answered(NAME, "probe/1/1")
    went = 0
    async with asyncio.timeout(20):
        began = time.monotonic()
        while (passed_s := time.monotonic() - began) < 3:
            entry = await breakers.enter(NAME, f"w/{went}/1")
            if entry == GO:
                went += 1
            else:
                assert entry.down_s > 1e9
                await asyncio.sleep(min(entry.delay_s, 0.05))
    # 5/s, doubled every 2 s: the sum up to here, and the first.
    wanted = 5 * 2 / 0.693 * (2 ** (passed_s / 2) - 1) + 1
    assert 0.6 * wanted <= went <= wanted + 2
    seconds, micros = await store.command("TIME")
    now_ms = int(seconds) * 1000 + int(micros) / 1000
    await put(store, at=now_ms - 20_001)
    assert await breakers.enter(NAME, "w/last/1") == GO
    assert not breakers.tripped(NAME)
    assert await fail(breakers, 2) == [None, None]


async def test_failures_in_the_ramp_open_it_again(breakers: RedisBreakers, store: Store) -> None:
    """But not of tries that had begun before it. The next probe is later than the last, the outage as old as it is."""
    await fail(breakers)
    await put(store, since=1)
    await probe(breakers, store)
    breakers.answered(NAME, "probe/1/1")
    assert all(down_s is not None for down_s in await fail(breakers, 5, took_s=60))
    assert await store.command("HGET", key(store), "state") == b"ramp"
    await fail(breakers)
    assert await store.command("HGET", key(store), "state") == b"open"
    entry = await breakers.enter(NAME, "w/1/1")
    assert 1.5 <= entry.delay_s <= 2.5
    assert entry.down_s > 1e9


async def test_what_was_over_at_once_takes_more_failures_the_next_time(breakers: RedisBreakers, store: Store) -> None:
    """One executor without a network would stop all the others again and again."""
    for failures in (3, 6, 12):
        assert await fail(breakers, failures - 1) == [None] * (failures - 1)
        assert await breakers.failed(NAME, "a/1/1", 0.0) is not None
        await put(store, at=0)
        breakers.answered(NAME, "ok/1/1")  # One that was under way is.
        await now_in(store, "state", b"ramp")
        await put(store, at=0)
        assert await breakers.enter(NAME, "w/1/1") == GO


async def test_an_answer_from_before_is_no_sign_of_life(breakers: RedisBreakers, store: Store) -> None:
    """It was told late."""
    await fail(breakers)
    since = float(await store.command("HGET", key(store), "since"))
    await put(store, since=since - 1_000, at=since - 1_000)  # the answer after it is not of the same millisecond
    base = key(store).partition(":breaker")[0]
    reply = await store.call("breaker_report", base, NAME, "", 1, 5_000, 0, 0, "0.5")
    assert reply[0] == b"open"
    reply = await store.call("breaker_report", base, NAME, "", 1, 0, 0, 0, "0.5")
    assert reply[0] == b"ramp"


async def test_a_probe_that_nobody_renews_is_another_ones(breakers: RedisBreakers, store: Store) -> None:
    """Its executor died. One that only ended without an answer gives it back at once."""
    await fail(breakers)
    await probe(breakers, store, "dead/1/1")
    assert (await breakers.enter(NAME, "next/1/1")).delay_s
    await put(store, probe_until=0)
    assert (await breakers.enter(NAME, "next/1/1")).probe
    breakers.left(NAME, "next/1/1")
    assert (await breakers.enter(NAME, "third/1/1")).probe


async def test_a_probe_that_takes_long_is_renewed(
    breakers: RedisBreakers, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onward_runlog.breakers.RENEW_S", 0.05)
    await fail(breakers)
    await probe(breakers, store)
    await put(store, probe_until=1)

    async def renewed() -> bool:
        return float(await store.command("HGET", key(store), "probe_until")) > 1

    await eventually(renewed)
    breakers.left(NAME, "probe/1/1")


async def test_a_reply_that_is_lost_is_asked_for_again(redis_url: str, store: Store) -> None:
    """The same call has the same probe."""
    async with (
        proxy_to(redis_url) as proxy,
        open_store(proxy.url) as through,
        RedisBreakers(through).opened() as breakers,
    ):
        await fail(breakers)
        await put(store, probe_at=0)
        proxy.lose_reply(b"breaker_enter")
        assert await breakers.enter(NAME, "probe/1/1") == Entry(probe=True)
        assert proxy.lost == 1


async def test_a_report_whose_reply_is_lost_counts_once(redis_url: str, store: Store) -> None:
    """Two failures are no outage, however often they are told. Those of the next process are others."""
    async with (
        proxy_to(redis_url) as proxy,
        open_store(proxy.url) as through,
        RedisBreakers(through).opened() as breakers,
    ):
        proxy.lose_reply(b"breaker_report", nth=2)
        assert await fail(breakers, 2) == [None, None]
        assert proxy.lost == 1
        assert await store.command("HGET", key(store), "failures") == b"2"
    async with RedisBreakers(store).opened() as breakers:
        assert await breakers.failed(NAME, "next/1/1", 0.0) is not None


async def test_an_answer_that_is_told_again_ends_no_outage_that_began_since(
    breakers: RedisBreakers, store: Store
) -> None:
    base = key(store).partition(":breaker")[0]
    answered = (NAME, "", 1, 0, 0, 0, "0.5", "reporter", 1)
    assert await store.call("breaker_report", base, *answered) == [b"closed"]
    await fail(breakers)
    await put(store, at=0)
    assert (await store.call("breaker_report", base, *answered))[0] == b"open"


async def test_waits_for_a_provider_are_told(store: Store) -> None:
    """Only those: a probe does not wait."""
    waits: list[float] = []
    async with RedisBreakers(store, on_wait=waits.append).opened() as breakers:
        await fail(breakers)
        entry = await breakers.enter(NAME, "w/1/1")
        await probe(breakers, store)
    assert waits == [entry.delay_s]


async def test_nothing_is_left_of_an_outage(breakers: RedisBreakers, store: Store) -> None:
    """All keys expire."""
    await fail(breakers)
    await breakers.enter(NAME, "w/1/1")
    ours = [name for name in await all_keys(store) if "breaker" in name]
    assert len(ours) == 3
    for name in ours:
        assert 0 < await store.command("PTTL", name) <= 600_000


@pytest.mark.parametrize("state", ["open", "ramp"])
async def test_a_clock_that_was_set_back_holds_up_nobody(breakers: RedisBreakers, store: Store, state: str) -> None:
    """As when another server takes over: what was noted lies an hour ahead."""
    await fail(breakers)
    if state == "ramp":
        await put(store, at=0)  # the answer is not of the same millisecond
        await probe(breakers, store)
        breakers.answered(NAME, "probe/1/1")
        await now_in(store, "state", b"ramp")
    for field in ("at", "since", "probe_at", "probe_until", "ask_at", "filled"):
        noted = await store.command("HGET", key(store), field)
        if noted is not None:
            await put(store, **{field: float(noted) + 3_600_000})
    assert (await breakers.enter(NAME, "call/1/1")).delay_s <= 300
