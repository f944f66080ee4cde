"""What all executors together may ask of a provider: the arithmetic in Redis, by the store's own clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from tests.provider import Reply, serving
from tests.proxy import proxy_to
from tests.runlog import all_keys, eventually

from onward import workflow
from onward.budgets import Caller, Limit
from onward.engine import Attempt
from onward.memory import MemoryRun
from onward.openai import AsyncOpenAI, Budget
from onward.v1.event_pb2 import ATTEMPT_CAUSE_STARTED
from onward.v1.run_pb2 import RUN_STATE_SUCCEEDED, RUN_STATE_WAITING, Run
from onward_runlog import keys
from onward_runlog.budgets import RedisBudgets
from onward_runlog.store import Store, open_store

NAME = "0123456789abcdef"


@pytest.fixture
async def budgets(store: Store) -> AsyncIterator[RedisBudgets]:
    async with RedisBudgets(store).opened() as budgets:
        yield budgets


@pytest.fixture
async def elsewhere(redis_url: str, store: Store) -> AsyncIterator[RedisBudgets]:
    """Those of another executor."""
    async with open_store(redis_url) as other, RedisBudgets(other).opened() as budgets:
        yield budgets


def caller(call: str, tenant: str = "default/", attempt: int = 1) -> Caller:
    return Caller(call, attempt, tenant)


async def ask(
    budgets: RedisBudgets,
    one: Caller,
    asked: int = 100,
    *,
    tokens: float | None = 1000,
    requests: float | None = None,
    window_s: float = 60,
) -> float | None:
    async with asyncio.timeout(10):
        return await budgets.reserve(NAME, one, asked, tokens=tokens, requests=requests, window_s=window_s)


async def served(budgets: RedisBudgets, one: Caller, asked: int, *, tokens: float, window_s: float) -> None:
    """Wait until it may go."""
    while delay_s := await ask(budgets, one, asked, tokens=tokens, window_s=window_s):  # noqa: ASYNC110 - told when
        await asyncio.sleep(delay_s)


async def test_calls_go_until_the_budget_is_used_and_then_at_the_rate_of_its_limit(budgets: RedisBudgets) -> None:
    """Nine of 100 tokens fit into 95 % of 1,000, the tenth has to wait for 50 more, and each one after for its own."""
    for number in range(9):
        assert await ask(budgets, caller(f"c{number}")) == 0
    for number in range(3):
        delay_s = await ask(budgets, caller(f"w{number}"))
        assert delay_s == pytest.approx(60 * (0.05 + number * 0.1), abs=0.5)


async def test_a_long_line_costs_the_store_no_more_than_a_short_one(store: Store, budgets: RedisBudgets) -> None:
    """What is beyond a full bucket is counted and not read; the time that is told is about right all the same."""

    async def cost_us(number: int) -> float:
        await store.command("CONFIG", "RESETSTAT")
        for again in range(20):
            await ask(budgets, caller(f"c{number + again}"))
        stats = bytes(await store.command("INFO", "commandstats")).decode()
        [line] = [line for line in stats.splitlines() if line.startswith("cmdstat_fcall:")]
        return float(line.partition("usec_per_call=")[2].partition(",")[0])

    await asyncio.gather(*(ask(budgets, caller(f"c{number}")) for number in range(200)))
    short = min([await cost_us(number) for number in (200, 220, 240)])
    await asyncio.gather(*(ask(budgets, caller(f"c{number}")) for number in range(260, 4_000)))
    long = min([await cost_us(number) for number in (4_000, 4_020, 4_040)])
    assert long < 4 * short, (long, short)
    delay_s = await ask(budgets, caller("last"))
    assert delay_s == pytest.approx(60 * (0.05 + (4_060 - 9) * 0.1), abs=60)


async def test_requests_are_limited_like_tokens(budgets: RedisBudgets) -> None:
    """Whichever is scarcer."""
    assert [await ask(budgets, caller(f"c{n}"), 1, requests=2) for n in range(2)] == [0, pytest.approx(3, abs=0.2)]


async def test_who_asks_again_has_one_reservation(budgets: RedisBudgets, elsewhere: RedisBudgets) -> None:
    """A reply that was lost, in line or when it went; and every executor sees the same."""
    for _ in range(5):
        assert await ask(budgets, caller("big"), 900) == 0
    first = await ask(elsewhere, caller("c"), 500)
    again = await ask(budgets, caller("c"), 500)
    assert first == pytest.approx(27, abs=0.5)
    assert again == pytest.approx(27, abs=0.5)


async def test_a_later_attempt_takes_the_place_over_and_pays_for_its_own_request(budgets: RedisBudgets) -> None:
    """In line it stays where it was; what had gone to the provider counts there."""
    assert await ask(budgets, caller("gone"), 900) == 0
    assert await ask(budgets, caller("c"), 100) == pytest.approx(3, abs=0.5)
    assert await ask(budgets, caller("d"), 100) == pytest.approx(9, abs=0.5)
    assert await ask(budgets, caller("c", attempt=2), 100) == pytest.approx(3, abs=0.5)
    budgets.settle(NAME, caller("c"), tokens=0, requests=0)  # Of the attempt that is no more.
    assert await ask(budgets, caller("d"), 100) == pytest.approx(9, abs=0.5)
    again_s = await ask(budgets, caller("gone", attempt=2), 900)
    assert again_s is not None
    assert again_s > 50


async def test_what_was_not_used_is_given_back_and_more_is_charged(budgets: RedisBudgets) -> None:
    """The bucket tells by how long the next one waits. Settling twice is settling once."""
    assert await ask(budgets, caller("c"), 900) == 0
    assert await ask(budgets, caller("next"), 900) == pytest.approx(51, abs=0.5)
    for _ in range(2):
        budgets.settle(NAME, caller("c"), tokens=400)
    assert await ask(budgets, caller("next"), 900) == pytest.approx(21, abs=0.5)
    budgets.settle(NAME, caller("next"), tokens=0, requests=0)
    assert await ask(budgets, caller("small"), 100) == 0
    budgets.settle(NAME, caller("small"), tokens=1_000)
    # That calls use more than they ask for is learned: 185 are reserved now.
    assert await ask(budgets, caller("after"), 100) == pytest.approx(60 * (185 + 450) / 1000, abs=1)


async def test_what_calls_really_use_is_learned(budgets: RedisBudgets) -> None:
    """An estimate that is ten times too high does not keep nine tenths of the budget unused."""
    for number in range(60):
        one = caller(f"c{number}")
        assert await ask(budgets, one, 1000, tokens=100_000) == 0
        budgets.settle(NAME, one, tokens=100)
    gone = 0
    while await ask(budgets, caller(f"d{gone}"), 1000, tokens=100_000) == 0:
        gone += 1
    assert gone > 500


async def test_a_call_larger_than_the_whole_budget_goes_when_that_is_full(budgets: RedisBudgets) -> None:
    """It does not wait for ever; those after it wait for what it took, of which a window's worth counts."""
    assert await ask(budgets, caller("huge"), 5_000) == 0
    assert await ask(budgets, caller("next"), 100) == pytest.approx(60 * 1.05, abs=1)


async def test_tenants_share_equally_however_many_calls_they_have_in_line(budgets: RedisBudgets) -> None:
    """One had 60 in line before the others came with theirs: each gets a third of what goes."""
    got = {"a": 0, "b": 0, "c": 0}
    changed = asyncio.Condition()

    async def one(tenant: str, number: int) -> None:
        me = caller(f"{tenant}{number}", tenant)
        await served(budgets, me, 10, tokens=200, window_s=1)
        budgets.settle(NAME, me, tokens=10)
        async with changed:
            got[tenant] += 1
            changed.notify_all()

    tasks = [asyncio.create_task(one("a", number)) for number in range(100)]
    async with asyncio.timeout(20), changed:
        await changed.wait_for(lambda: got["a"] >= 19)
        got["a"] = 0
        tasks += [asyncio.create_task(one(tenant, number)) for number in range(40) for tenant in "bc"]
        await changed.wait_for(lambda: sum(got.values()) >= 60)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(18 <= one <= 22 for one in got.values()), got


async def test_who_does_not_come_is_passed_by(store: Store, budgets: RedisBudgets) -> None:
    """Its holder died: what it had a place for flows to the others, and its own traces go."""
    assert await ask(budgets, caller("c"), 95, tokens=100, window_s=1) == 0
    assert await ask(budgets, caller("dead"), 90, tokens=100, window_s=1) is not None
    started = time.monotonic()
    await served(budgets, caller("alive"), 90, tokens=100, window_s=1)
    assert time.monotonic() - started < 2
    base = keys.base(keys.partition_of(NAME, store.partitions))

    async def gone() -> bool:
        await ask(budgets, caller("later"), 90, tokens=100, window_s=1)
        budgets.settle(NAME, caller("later"), tokens=0, requests=0)
        return not await store.command("ZCARD", f"{base}:budget:{NAME}:line")

    await eventually(gone)


async def test_after_a_refusal_nobody_goes_before_its_time(budgets: RedisBudgets, elsewhere: RedisBudgets) -> None:
    """Though nobody declared a limit: every executor hears of it, and one that starts later, too."""
    assert not elsewhere.limited(NAME)
    budgets.learn(NAME, refused=True, after_s=30, tokens=None, requests=None)
    assert budgets.limited(NAME)

    async def heard() -> bool:
        return elsewhere.limited(NAME)

    await eventually(heard)
    delay_s = await ask(elsewhere, caller("c"), tokens=None)
    assert delay_s == pytest.approx(30, abs=1)


async def test_who_starts_later_learns_what_was_learned(store: Store, redis_url: str) -> None:
    """No message tells it."""
    RedisBudgets(store).learn(NAME, refused=True, after_s=30, tokens=None, requests=None)
    await ask(RedisBudgets(store), caller("c"), tokens=None)
    async with open_store(redis_url) as other, RedisBudgets(other).opened() as late:

        async def heard() -> bool:
            return late.limited(NAME)

        await eventually(heard)


async def test_refusals_without_a_time_wait_longer_each_and_count_once_a_moment(budgets: RedisBudgets) -> None:
    """A second, then two; ten refusals of one burst are one."""
    for _ in range(10):
        budgets.learn(NAME, refused=True, after_s=None, tokens=None, requests=None)
    delay_s = await ask(budgets, caller("c"), tokens=None)
    assert delay_s is not None
    assert 0 < delay_s <= 1
    await asyncio.sleep(delay_s)
    budgets.learn(NAME, refused=True, after_s=None, tokens=None, requests=None)
    delay_s = await ask(budgets, caller("c"), tokens=None)
    assert delay_s is not None
    assert 1 < delay_s <= 2


async def test_a_limit_that_the_provider_tells_holds_where_it_is_lower(budgets: RedisBudgets) -> None:
    """Declared is ten times what there is, and somebody else has used half of it."""
    budgets.learn(NAME, refused=False, after_s=None, tokens=Limit(1000, 60, 500), requests=None)
    assert await ask(budgets, caller("c"), 400, tokens=10_000) == 0
    assert await ask(budgets, caller("d"), 400, tokens=10_000) == pytest.approx(18, abs=1)
    # What is declared lower is meant so.
    budgets.learn(NAME, refused=False, after_s=None, tokens=Limit(1_000_000, 60, 900_000), requests=None)
    assert await ask(budgets, caller("d"), 400, tokens=10_000) == pytest.approx(1.8, abs=0.5)


async def test_what_nothing_limits_is_free_and_leaves_no_trace(store: Store, budgets: RedisBudgets) -> None:
    assert await ask(budgets, caller("c"), tokens=None) is None
    assert not await all_keys(store)


async def test_everything_expires(store: Store, budgets: RedisBudgets) -> None:
    """Also of a budget that is refused, in line and used."""
    budgets.learn(NAME, refused=True, after_s=3_600, tokens=Limit(10, 60, 0), requests=Limit(10, 60, 0))
    assert await ask(budgets, caller("c"), requests=5) == pytest.approx(3_600, abs=700)
    for name in await all_keys(store):
        assert 600_000 <= await store.command("PTTL", name) <= 3 * 3_600_000, name


@pytest.mark.parametrize("hostile", ["", "a b  c", "\n", "ü\0x %s", "x" * 5_000])
async def test_any_tenant_and_call_is_kept_as_it_is(budgets: RedisBudgets, hostile: str) -> None:
    assert await ask(budgets, caller(f"c {hostile}", hostile), 900) == 0
    assert await ask(budgets, caller(f"d {hostile}", hostile), 900) == pytest.approx(51, abs=1)
    assert await ask(budgets, caller(f"d {hostile}", hostile), 900) == pytest.approx(51, abs=1)
    budgets.settle(NAME, caller(f"c {hostile}", hostile), tokens=0, requests=0)
    assert await ask(budgets, caller(f"d {hostile}", hostile), 900) == 0


async def test_a_reply_that_is_lost_and_a_store_that_goes_away_cost_nothing(redis_url: str, store: Store) -> None:
    """What was reserved, settled and learned counts once; a question under way waits for the store."""
    async with proxy_to(redis_url) as proxy, open_store(proxy.url) as through:
        budgets = RedisBudgets(through)
        proxy.lose_reply(b"budget_reserve")
        assert await ask(budgets, caller("c"), 500) == 0
        proxy.lose_reply(b"budget_settle")
        budgets.settle(NAME, caller("c"), tokens=400)
        assert await ask(budgets, caller("next"), 900) == pytest.approx(19.9, abs=1)
        budgets.settle(NAME, caller("next"), tokens=0, requests=0)
        proxy.lose_reply(b"budget_learn")
        budgets.learn(NAME, refused=True, after_s=None, tokens=None, requests=None)
        delay_s = await ask(budgets, caller("d"), 1)
        assert delay_s is not None
        assert 0 < delay_s <= 1.1
        assert proxy.lost == 3
        proxy.stall()
        asking = asyncio.create_task(ask(budgets, caller("e"), 1))
        done, _ = await asyncio.wait((asking,), timeout=0.3)
        assert not done
        proxy.cut()
        proxy.flow()
        assert await asking is not None


async def test_a_store_that_refuses_is_budgets_that_do_not_answer(store: Store) -> None:
    """Calls go without."""
    base = keys.base(keys.partition_of(NAME, store.partitions))
    await store.command("SET", f"{base}:budget:{NAME}", "no hash")
    with pytest.raises(ConnectionError, match="do not answer"):
        await ask(RedisBudgets(store), caller("c"))


async def test_calls_of_two_namespaces_are_two_calls_also_where_their_runs_have_one_name(
    budgets: RedisBudgets,
) -> None:
    """Callers name runs, and a key of a provider's may be everybody's: nobody goes on another's reservation."""
    gate = asyncio.Event()

    async with (
        serving() as provider,
        AsyncOpenAI(base_url=provider.url, api_key="key", budget=Budget(requests=2, per="1h")) as client,
    ):
        provider.default = Reply(gate=gate)

        @workflow
        async def ask_model() -> str:
            made = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
            return made.choices[0].message.content or ""

        async def attempt(namespace: str) -> MemoryRun:
            memory = MemoryRun()
            await Attempt(
                ask_model,
                run=Run(run_id="daily", namespace=namespace, workflow=ask_model.name),
                log=memory.begin(),
                attempt=1,
                cause=ATTEMPT_CAUSE_STARTED,
                executor_id="e",
                deployment="d",
                budgets=budgets,
            ).run()
            return memory

        first = asyncio.create_task(attempt("a"))
        await provider.until(lambda provider: len(provider.requests) == 1)
        async with asyncio.timeout(20):  # as long as the first is under way
            second = await attempt("b")
        assert second.state == RUN_STATE_WAITING, "there is a request for one, and it is under way"
        assert len(provider.requests) == 1
        gate.set()
        assert (await first).state == RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("huge", [10_000_000, 2**63 - 1, 10**30])
async def test_a_call_that_asks_for_absurdly_much_stops_nobody_else(budgets: RedisBudgets, huge: int) -> None:
    """Neither where it goes and its executor dies, nor in line. The provider refuses it in a moment."""
    assert await ask(budgets, caller("goes", "a/"), huge) == 0
    behind_s = await ask(budgets, caller("behind", "b/"))
    assert behind_s is not None
    assert 0 < behind_s <= 120
    assert await ask(budgets, caller("in line", "a/"), huge)
    assert await ask(budgets, caller("behind that", "a/"))


async def test_a_usage_that_cannot_be_is_owed_for_no_more_than_a_window(budgets: RedisBudgets) -> None:
    assert await ask(budgets, caller("one", "a/")) == 0
    budgets.settle(NAME, caller("one", "a/"), tokens=2**60)
    delay_s = await ask(budgets, caller("two", "b/"))
    assert delay_s is not None
    assert 60 < delay_s <= 120


async def test_a_clock_that_was_set_back_stops_nobody(store: Store, budgets: RedisBudgets) -> None:
    """As when another server takes over: what was noted lies an hour ahead."""
    assert await ask(budgets, caller("one"), 900) == 0
    key = f"{keys.base(keys.partition_of(NAME, store.partitions))}:budget:{NAME}"
    noted = float(await store.command("HGET", key, "at"))
    await store.command("HSET", key, "at", str(noted + 3_600_000))
    delay_s = await ask(budgets, caller("two"), 900)
    assert delay_s is not None
    assert 0 < delay_s <= 60
