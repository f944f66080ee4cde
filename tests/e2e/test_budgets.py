"""Budgets of model calls over several executors: real processes, and a provider that enforces its limit."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from tests.e2e.suite import running_suite
from tests.e2e.test_parking import causes, parked
from tests.provider import Limit, Provider, Reply, serving

from onward import fold
from onward.v1.event_pb2 import ATTEMPT_CAUSE_WOKEN, WAIT_KIND_BUDGET, Event
from onward_runlog.store import open_store

TARGET = Path(__file__).with_name("budgeted.py")
TEXT = " ".join(["word"] * 15)
USES = 25
"""Tokens of each answer: 10 for the question and 15 words."""


def retries(events: list[Event]) -> int:
    return sum(event.HasField("component_retrying") for event in events)


async def test_four_executors_use_a_limit_up_without_refusals_and_share_it_between_tenants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hardly any is refused, nobody starves, little lies idle.

    The figures are printed: wanted are less than 1 % refused, more than 90 % used, and each of three tenants within
    10 % of a third. What is asserted leaves room for a busy machine.
    """
    window_s, measured_s = 2.0, 10.0
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        provider.default = Reply(TEXT)
        async with running_suite(tmp_path, target=TARGET, executors=4) as suite, suite.client() as client:
            provider.limit = Limit(1000, window_s)
            for tenant, runs in {"a": 4, "b": 2, "c": 1}.items():
                for _ in range(runs):
                    given = {"model": "fleet", "content": tenant, "calls": 2000, "at_once": 10}
                    await client.start("asks", given, fairness_key=tenant)

            def all_there(provider: Provider) -> bool:
                return len({str(one.body["messages"]) for one in provider.requests}) == 3

            await provider.until(all_there)
            begin = provider.requests[-1].at + 2 * window_s  # When what the bucket had at first is used up.
            await provider.until(lambda provider: provider.requests[-1].at >= begin + measured_s)
        seen = [one for one in provider.requests if begin <= one.at < begin + measured_s]
        answered = [one for one in seen if not one.refused]
        shares = Counter(one.body["messages"][0]["content"] for one in answered)
        used = len(answered) * USES / (provider.limit.rate * measured_s)
        refused = sum(one.refused for one in provider.requests) / len(provider.requests)
    each = {tenant: shares[tenant] * 3 / len(answered) for tenant in "abc"}
    with capsys.disabled():
        told = ", ".join(f"{tenant} {share:.2f}" for tenant, share in each.items())
        print(f"\nfour executors, 500 tokens/s: {refused:.2%} refused, {used:.1%} used, of a third each: {told}")
    assert refused < 0.1
    assert 0.5 < used < 1.1
    assert all(share >= 0.5 for share in each.values())


async def test_after_a_refusal_the_whole_fleet_waits_parked_and_no_try_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody declared a limit. The one who was refused and others park; the model is asked again when it is time."""
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        provider.script(Reply(status=429, headers={"retry-after": "8"}))
        async with running_suite(tmp_path, target=TARGET, executors=2) as suite, suite.client() as client:
            given = {"model": "m", "content": "hi", "client": "free"}
            first = await client.start("asks", given)
            await parked(first)
            waiting = (await first.get()).waiting_for
            assert waiting == "rate limit of m at 127.0.0.1"
            others = [await client.start("asks", given) for _ in range(4)]
            await parked(*others)
            assert len(provider.requests) == 1
            assert [await run.result() for run in (first, *others)] == [1] * 5
            assert len(provider.requests) == 6
            events = [event async for event in first.follow()]
            assert causes(events)[-1] == ATTEMPT_CAUSE_WOKEN
            assert retries(events) == 1
            [told] = [event.run_waiting for event in events if event.HasField("run_waiting")]
            assert list(told.kinds) == [WAIT_KIND_BUDGET]


async def test_a_try_that_was_refused_counts_in_no_later_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It parked, and had both of its tries when it woke."""
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        provider.script(Reply(status=429, headers={"retry-after": "4"}), Reply(status=500))
        async with running_suite(tmp_path, target=TARGET) as suite, suite.client() as client:
            run = await client.start("asks", {"model": "m", "content": "hi", "client": "twice"})
            assert await run.result() == 1
            events = [event async for event in run.follow()]
            assert causes(events)[-1] == ATTEMPT_CAUSE_WOKEN
            tries = [event.component_retrying for event in events if event.HasField("component_retrying")]
            assert [one.uncounted for one in tries] == [True, False]


async def test_an_hour_is_waited_for_in_parking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a stream; another model of the same provider goes on, and the run can be cancelled."""
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        provider.script(Reply(status=429, headers={"retry-after": "3600"}))
        async with running_suite(tmp_path, target=TARGET) as suite, suite.client() as client:
            run = await client.start("tells", {"model": "m"})
            await parked(run)
            now = await run.get()
            assert 3_500 < now.wake_time.seconds - now.create_time.seconds < 3_700
            assert await client.invoke("tells", {"model": "other"}) == "Hello dear world"
            await run.cancel()
            assert [event async for event in run.follow()]
            assert len(provider.requests) == 2


async def test_a_model_without_limits_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of budgets is called in the store."""
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        async with (
            running_suite(tmp_path, target=TARGET) as suite,
            suite.client() as client,
            open_store(suite.redis) as store,
        ):
            await store.command("CONFIG", "SET", "slowlog-log-slower-than", "0")
            await store.command("CONFIG", "SET", "slowlog-max-len", "10000")
            given = {"model": "m", "content": "hi", "calls": 5}
            assert await client.invoke("asks", {**given, "client": "free"}) == 5
            calls = [entry[3] for entry in await store.command("SLOWLOG", "GET", "-1")]
            functions = {call[1] for call in calls if call[0] == b"FCALL"}
            assert b"onward1_append" in functions
            assert not [name for name in functions if b"budget" in name]
            assert await client.invoke("asks", {**given, "model": "fleet"}) == 5
            calls = [entry[3] for entry in await store.command("SLOWLOG", "GET", "-1")]
            assert b"onward1_budget_reserve" in {call[1] for call in calls if call[0] == b"FCALL"}


async def test_an_executor_that_dies_holding_reservations_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls are under way and four in line when it is killed; the next executor ends them all."""
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        never = asyncio.Event()
        provider.script(*[Reply(gate=never)] * 2)
        async with running_suite(tmp_path, target=TARGET) as suite, suite.client() as client:
            run = await client.start("asks", {"model": "two", "content": "hi", "calls": 4})
            await provider.until(lambda provider: len(provider.requests) == 2)
            await suite.kill(suite.executors[0])
            await suite.add_executor("--drain-grace=1")
            assert await run.result() == 4
            assert len(provider.requests) == 6
            assert fold([event async for event in run.follow()]).output == 4


async def test_a_stream_that_had_waited_for_its_budget_survives_its_executor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It parked, woke, spoke, and lost its executor: what readers see is the text, once."""
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        async with running_suite(tmp_path, target=TARGET) as suite, suite.client() as client:
            assert await client.invoke("asks", {"model": "two", "content": "hi", "calls": 2}) == 2
            provider.script(Reply("One two three", gate=asyncio.Event(), after=2))
            provider.default = Reply("One two three")
            run = await client.start("tells", {"model": "two"})
            async for event in run.follow():
                if event.output_delta.text == " two":
                    break
            await suite.kill(suite.executors[0])
            await suite.add_executor("--drain-grace=1")
            assert await run.result() == "One two three"
            events = [event async for event in run.follow()]
            assert any(event.component_started.name == "onward.budget" for event in events)
            assert [one.text for one in fold(events).components.values() if one.text] == ["One two three"]
            assert len(provider.requests) == 4
