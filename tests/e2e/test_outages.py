"""Providers that go down under a fleet: real processes, and nothing that is asked for is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.e2e.suite import running_suite
from tests.e2e.test_parking import causes, parked
from tests.provider import Provider, Reply, serving

from onward import RunFailed, fold
from onward.v1.event_pb2 import ATTEMPT_CAUSE_WOKEN, WAIT_KIND_PROVIDER, Event

TARGET = Path(__file__).with_name("outages.py")
DOWN = Reply(status=503, error="we are down")


def counted(events: list[Event]) -> int:
    """How many tries were used up."""
    return sum(event.HasField("component_retrying") and not event.component_retrying.uncounted for event in events)


async def asked(provider: Provider, times: int) -> None:
    async with asyncio.timeout(30):
        await provider.until(lambda provider: len(provider.requests) >= times)


async def test_two_providers_down_at_once_cost_no_run_anything_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs wait, parked, and say for what. One call at a time finds out; when one provider is back, all end by that."""
    runs = 40
    async with serving() as first, serving() as second:
        monkeypatch.setenv("TEST_MODEL_URL", first.url)
        monkeypatch.setenv("TEST_OTHER_MODEL_URL", second.url)
        async with running_suite(tmp_path, target=TARGET, executors=2) as suite, suite.client() as client:
            assert await client.invoke("asks", {"client": "two"}) == ["Hello dear world"]
            first.default = second.default = DOWN
            started = [await client.start("asks", {"client": "two", "calls": 2}) for _ in range(runs)]
            await parked(*started)
            assert (await started[-1].get()).waiting_for in ("outage of m at first", "outage of n at second")
            before = len(first.requests) + len(second.requests)
            assert before <= 2 * runs + 20
            await asked(second, len(second.requests) + 1)
            # In the time of one more probe of one provider: not one for each of the runs that wait.
            assert len(first.requests) + len(second.requests) - before <= 6
            second.default = Reply()
            async with asyncio.timeout(60):
                assert [await run.result() for run in started] == [["Hello dear world"] * 2] * runs
            answered = [one for one in second.requests if one.body["messages"]]
            assert len(answered) >= 2 * runs
            for run in started:
                events = [event async for event in run.follow()]
                assert counted(events) <= 1  # One that had been sent before anybody knew.
                if any(event.HasField("run_waiting") for event in events):
                    assert ATTEMPT_CAUSE_WOKEN in causes(events)
                    told = [list(event.run_waiting.kinds) for event in events if event.HasField("run_waiting")]
                    assert all(kinds == [WAIT_KIND_PROVIDER] for kinds in told)
            assert any(event.HasField("run_waiting") for event in events)


async def test_a_run_by_itself_outlives_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last try is the one that finds the provider down. Also one that streams, whose text is there once."""
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        provider.default = Reply(fault="reset", after=-1)
        async with running_suite(tmp_path, target=TARGET) as suite, suite.client() as client:
            run = await client.start("tells")
            await asked(provider, 5)
            provider.default = Reply("One two three")
            assert await run.result() == "One two three"
            events = [event async for event in run.follow()]
            assert counted(events) == 2
            assert [one.text for one in fold(events).components.values() if one.text] == ["One two three"]


async def test_a_probe_survives_its_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt of its run probes again, at once."""
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        never = asyncio.Event()
        provider.script(DOWN, DOWN, DOWN, Reply(gate=never))
        async with running_suite(tmp_path, target=TARGET) as suite, suite.client() as client:
            run = await client.start("asks")
            await asked(provider, 4)
            await suite.kill(suite.executors[0])
            await suite.add_executor("--drain-grace=1")
            async with asyncio.timeout(10):
                assert await run.result() == ["Hello dear world"]
            assert len(provider.requests) == 5


async def test_who_does_not_want_to_wait_fails_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `outage=0` every failure is the call's own."""
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        provider.default = DOWN
        async with running_suite(tmp_path, target=TARGET) as suite, suite.client() as client:
            waiting = await client.start("asks")
            await asked(provider, 3)
            with pytest.raises(RunFailed, match=r"we are down|answered nobody"):
                await client.invoke("asks", {"client": "impatient"})
            provider.default = Reply()
            assert await waiting.result() == ["Hello dear world"]
            assert await client.invoke("asks", {"client": "impatient"}) == ["Hello dear world"]


async def test_a_run_that_waits_for_a_provider_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        provider.default = DOWN
        async with running_suite(tmp_path, target=TARGET) as suite, suite.client() as client:
            run = await client.start("asks")
            await parked(run)
            await run.cancel()
            assert fold([event async for event in run.follow()]).state == "CANCELLED"
