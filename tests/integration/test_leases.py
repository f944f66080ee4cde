"""Heartbeats: a lease lives as long as its executor can be reached, whatever user code does to the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest
import redis
from redis.asyncio import Redis
from tests.proxy import proxy_to
from tests.runlog import CANCELLING, QUEUED, RUNNING, a_run, append, eventually, status

from onward.v1.gateway_service_pb2 import SignalRunRequest
from onward.v1.run_pb2 import Run
from onward_runlog import keys
from onward_runlog.leases import Heartbeat, Held, Renewal
from onward_runlog.runs import Lease, Runs
from onward_runlog.store import Store, open_store

pytestmark = pytest.mark.usefixtures("one_partition")

BASE = keys.base(0)
REF = "default/run"
TTL_S = 0.3


@pytest.fixture
async def run(store: Store, runs: Runs) -> Run:
    """A run that executor e1 holds and has begun."""
    kept, _, _ = await runs.submit(a_run(), holder="e1", ttl_s=TTL_S)
    await append(store, kept, 1, 1, status())
    return kept


@pytest.fixture
def told() -> list[Renewal]:
    """What the heartbeat told the event loop."""
    return []


@pytest.fixture
async def heartbeat(store: Store, told: list[Renewal]) -> AsyncIterator[Heartbeat]:
    async with Heartbeat(store, "e1", ttl_s=TTL_S, on_renewal=told.append).beating() as heartbeat:
        yield heartbeat


async def expiry(store: Store) -> float:
    return float(await store.command("ZSCORE", f"{BASE}:leases", REF) or 0)


async def renewed(store: Store, times: int = 1) -> None:
    """Return when the lease was moved on so often."""
    for _ in range(times):
        before = await expiry(store)

        async def later(before: float = before) -> bool:
            return await expiry(store) > before

        await eventually(later)


def block_the_loop(url: str, until: Callable[[float, float], bool]) -> None:
    """Stand still as user code does that never awaits, until the lease and the server's time (ms) are as wanted."""
    with redis.Redis.from_url(url) as client:
        give_up = time.monotonic() + 5
        while time.monotonic() < give_up:
            seconds, micros = client.time()
            score = client.zscore(f"{BASE}:leases", REF)
            if until(float(str(score)), seconds * 1000 + micros / 1000):
                return
    pytest.fail("the lease did not become so in 5 s")


async def test_a_lease_is_renewed_before_it_runs_out(store: Store, runs: Runs, run: Run, heartbeat: Heartbeat) -> None:
    """For longer than it would have lived, without anybody asking."""
    heartbeat.add(BASE, REF, 1)
    end = await expiry(store) + 1000 * TTL_S

    async def lived_on() -> bool:
        assert (await runs.sweep())[BASE].expired == []
        return await expiry(store) > end

    await eventually(lived_on)


async def test_of_a_run_that_simply_runs_it_is_told_how_long_its_log_has_become(
    store: Store, runs: Runs, run: Run, heartbeat: Heartbeat, told: list[Renewal]
) -> None:
    """Once: so a signal is found whose Notify was lost."""
    heartbeat.add(BASE, REF, 1)
    await renewed(store, times=3)
    assert told == [Renewal(Held(BASE, REF, 1), held=True, state=RUNNING, last_offset=2)]
    await runs.signal("default", SignalRunRequest(run_id="run", name="go"))
    await renewed(store, times=3)
    assert [renewal.last_offset for renewal in told] == [2, 3]


async def test_a_lease_that_is_removed_is_left_to_run_out(
    store: Store, runs: Runs, run: Run, heartbeat: Heartbeat
) -> None:
    """Removing an attempt that was replaced here does not touch the one that replaced it."""
    heartbeat.add(BASE, REF, 1)
    heartbeat.remove(REF, 2)
    await renewed(store)
    heartbeat.remove(REF, 1)

    async def ran_out() -> bool:
        return (await runs.sweep())[BASE].expired == [Lease("default", "run", 1, "e1")]

    await eventually(ran_out)


async def test_who_lost_a_lease_is_told(runs: Runs, run: Run, heartbeat: Heartbeat, told: list[Renewal]) -> None:
    """Also where nothing is appended that would be refused."""
    heartbeat.add(BASE, REF, 1)
    await runs.lose("default", "run", 1, "lost")

    async def learned() -> bool:
        return bool(told)

    await eventually(learned)
    assert told[0] == Renewal(Held(BASE, REF, 1), held=False, state=QUEUED, last_offset=3)


async def test_a_cancellation_is_told_with_the_renewal(
    runs: Runs, run: Run, heartbeat: Heartbeat, told: list[Renewal]
) -> None:
    """So that it takes effect also where the call that says so was lost."""
    await runs.cancel("default", "run", "")
    heartbeat.add(BASE, REF, 1)

    async def learned() -> bool:
        return bool(told)

    await eventually(learned)
    assert told[0] == Renewal(Held(BASE, REF, 1), held=True, state=CANCELLING, last_offset=3)


async def test_a_loop_that_stands_still_for_half_a_lease_costs_nothing(
    store: Store, runs: Runs, run: Run, heartbeat: Heartbeat
) -> None:
    """And as soon as it turns again the lease is moved on."""
    heartbeat.add(BASE, REF, 1)
    await renewed(store)
    began = time.monotonic()
    block_the_loop(store.url, lambda score, now: time.monotonic() - began > TTL_S / 2)
    assert (await runs.sweep())[BASE].expired == []
    await renewed(store)


async def test_no_lease_outlives_a_loop_by_more_than_itself(store: Store, run: Run, heartbeat: Heartbeat) -> None:
    """A deaf process is replaced as soon as one that was stopped."""
    heartbeat.add(BASE, REF, 1)
    await renewed(store)
    began: list[float] = []

    def ran_out(score: float, now: float) -> bool:
        began.append(now)
        assert score <= began[0] + 1000 * TTL_S + 10  # a renewal may have been under way
        return score < now

    block_the_loop(store.url, ran_out)


async def test_a_deaf_executor_gives_its_runs_up_and_names_what_blocks_it(
    store: Store,
    run: Run,
    heartbeat: Heartbeat,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It could not even be told to stop."""
    monkeypatch.setattr("onward_runlog.leases.BLOCKED_WARNING_S", 0.05)
    heartbeat.add(BASE, REF, 1)
    await renewed(store)

    def warnings() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.levelno == logging.WARNING]

    block_the_loop(store.url, lambda score, now: score < now and bool(warnings()))
    [said, *_] = warnings()
    assert "the event loop has not turned for" in said.getMessage()
    assert "in block_the_loop" in said.getMessage()
    assert "in test_a_deaf_executor" in said.getMessage()


async def test_an_executor_that_hears_again_renews_again(store: Store, run: Run, heartbeat: Heartbeat) -> None:
    """Where nobody has taken its run meanwhile."""
    heartbeat.add(BASE, REF, 1)
    await renewed(store)
    block_the_loop(store.url, lambda score, now: score < now)
    await renewed(store)


async def test_a_heartbeat_that_was_made_long_before_it_beats_is_not_deaf(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An executor may wait for a Scheduler first."""
    with monkeypatch.context() as an_hour_ago:
        an_hour_ago.setattr("onward_runlog.leases.time", SimpleNamespace(monotonic=lambda: time.monotonic() - 3600))
        heartbeat = Heartbeat(store, "e1", ttl_s=TTL_S, on_renewal=lambda _: None)
    async with heartbeat.beating():
        heartbeat.add(BASE, REF, 1)
        await renewed(store)
    assert caplog.messages == []


async def test_heartbeats_go_on_when_the_store_is_back(
    redis_url: str, runs: Runs, run: Run, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once that they fail."""
    async with (
        proxy_to(redis_url) as proxy,
        open_store(proxy.url) as far,
        Heartbeat(far, "e1", ttl_s=TTL_S, on_renewal=lambda _: None).beating() as heartbeat,
    ):
        heartbeat.add(BASE, REF, 1)
        await renewed(store)
        proxy.stall()
        proxy.cut()

        async def noticed() -> bool:
            return "cannot renew leases" in caplog.text

        await eventually(noticed)
        proxy.flow()
        await renewed(store)
    assert [record.levelname for record in caplog.records if "cannot renew" in record.message] == ["WARNING"]


@pytest.mark.parametrize("first_ttl_s", [3.0, 60.0])
async def test_a_connection_that_has_gone_silent_costs_no_lease(
    redis_url: str, store: Store, run: Run, first_ttl_s: float
) -> None:
    """As after a failover, or behind a firewall that forgot it: another one is made while the lease still holds."""
    async with (
        proxy_to(redis_url) as proxy,
        open_store(proxy.url) as far,
        Heartbeat(far, "e1", ttl_s=first_ttl_s, on_renewal=lambda _: None).beating() as heartbeat,
    ):
        heartbeat.set_ttl(3.0)
        heartbeat.add(BASE, REF, 1)
        await renewed(store, 2)
        proxy.forget_links()
        ends_ms = await expiry(store)
        await renewed(store)
        seconds, micros = await store.command("TIME")
        assert int(seconds) * 1000 + int(micros) / 1000 < ends_ms


async def test_one_heartbeat_renews_many_runs_of_many_partitions(redis_url: str, told: list[Renewal]) -> None:
    """All that are still this executor's; one that is not disturbs none of the others."""
    async with Redis.from_url(redis_url) as client:
        await client.delete(keys.STORE)
    async with open_store(redis_url) as store:
        runs = Runs(store)
        held = [a_run(str(number)) for number in range(40)]
        async with Heartbeat(store, "e1", ttl_s=0.3, on_renewal=told.append).beating() as heartbeat:
            for run in held:
                await runs.submit(run, holder="e1" if run.run_id != "7" else "e2", ttl_s=60)
                await append(store, run, 1, 1, status())
                heartbeat.add(*store.place("default", run.run_id), 1)

            async def all_renewed() -> bool:
                """Renewed is shorter here: the lease began with 60 s."""
                scores = [await store.command("ZSCORE", f"{base}:leases", ref) for base, ref in places]
                now = int((await store.command("TIME"))[0]) * 1000
                return sum(float(score) < now + 30_000 for score in scores) == 39

            places = [store.place("default", run.run_id) for run in held]
            await eventually(all_renewed)
            await asyncio.sleep(0)
    assert {renewal.lease.ref for renewal in told if not renewal.held} == {"default/7"}
