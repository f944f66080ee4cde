"""Runs that wait hold nothing, and nothing that happens meanwhile is lost on them. Real processes, real signals."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.suite import running_suite
from tests.e2e.test_faults import check_log
from tests.runlog import eventually

from onward import InvalidInput, InvalidRequest, RunFailed, fold
from onward.client import RunHandle
from onward.v1.event_pb2 import ATTEMPT_CAUSE_CANCELLED, ATTEMPT_CAUSE_WOKEN, WAIT_KIND_RETRY, Event
from onward.v1.run_pb2 import RUN_STATE_WAITING
from onward_runlog.store import open_store

WAITING = Path(__file__).with_name("waiting.py")


async def parked(*runs: RunHandle) -> None:
    """Return when all of them are."""

    async def waits(run: RunHandle) -> bool:
        return (await run.get()).state == RUN_STATE_WAITING

    for run in runs:

        async def check(run: RunHandle = run) -> bool:
            return await waits(run)

        await eventually(check, within_s=40)


def causes(events: list[Event]) -> list[int]:
    return [event.attempt_started.cause for event in events if event.HasField("attempt_started")]


async def move_timers(redis_url: str) -> None:
    """Let the time come that parked runs wait for, by the store's clock."""
    async with open_store(redis_url) as store:
        for base in store.bases():
            for member in await store.command("ZRANGE", f"{base}:timers", 0, -1):
                if member.startswith(b"w:"):
                    await store.command("ZADD", f"{base}:timers", "XX", 1, member)


async def test_parked_runs_hold_no_slot_and_go_on_when_they_are_answered(tmp_path: Path) -> None:
    """With one slot for all of them, and another run between."""
    async with (
        running_suite(tmp_path, target=WAITING, executor_options=["--slots=1"]) as suite,
        suite.client() as client,
    ):
        runs = [await client.start("approval", {}) for _ in range(12)]
        await parked(*runs)
        one = await runs[0].get()
        assert one.waiting_for == "signal approval"
        assert one.HasField("wake_time")
        assert one.executor_id == ""
        assert await client.invoke("quick", {}) == "through"
        for number, run in enumerate(runs):
            await run.signal("approval", number % 2 == 0)
        for number, run in enumerate(runs):
            assert await run.result() == f"answered {number % 2 == 0}"
        events = [event async for event in runs[0].follow()]
        check_log(events)
        assert causes(events)[1:] == [ATTEMPT_CAUSE_WOKEN]
        view = fold(events)
        assert [line.message for line in view.statuses] == ["asking", "answered"]
        assert not any(event.HasField("rollback") for event in events)
        names = [event.component_started.name for event in events if event.HasField("component_started")]
        assert names == ["note", "onward.request_input", "note"]


async def test_a_parked_run_survives_everything(tmp_path: Path) -> None:
    """Kill -9 of all processes, the store too; and wakes by its timer or a signal when they are back."""
    async with running_suite(tmp_path, target=WAITING) as suite:
        async with suite.client() as client:
            asked, slept = await client.start("approval", {}), await client.start("nap", {"seconds": 86_400})
            await parked(asked, slept)
        for child in (*suite.gateways, *suite.executors, *suite.schedulers):
            await suite.kill(child)
        await suite.valkey.kill()
        # By the clock of the store: the days that an executor sees are not over yet, and the run parks again.
    async with running_suite(tmp_path, target=WAITING) as suite, suite.client() as client:
        assert (await client.get(asked.run_id)).state == RUN_STATE_WAITING
        await client.signal(asked.run_id, "approval", value=False)
        assert await client.run(asked.run_id).result() == "answered False"
        await move_timers(suite.redis)

        async def parked_again() -> bool:
            run = await client.get(slept.run_id)
            return run.attempt > 1 and run.state == RUN_STATE_WAITING

        await eventually(parked_again, within_s=40)
        assert (await client.get(slept.run_id)).HasField("wake_time")


async def test_a_run_that_waits_for_its_next_try_holds_no_slot(tmp_path: Path) -> None:
    """With one slot for all of them, and another run between."""
    async with (
        running_suite(tmp_path, target=WAITING, executor_options=["--slots=1"]) as suite,
        suite.client() as client,
    ):
        runs = [await client.start("patient", {"who": who}) for who in "abc"]
        assert await client.invoke("quick", {}) == "through"
        for run, who in zip(runs, "abc", strict=True):
            assert await run.result() == f"answered {who}"
            events = [event async for event in run.follow()]
            check_log(events)
            assert causes(events)[1:] == [ATTEMPT_CAUSE_WOKEN]
            [waiting] = [event.run_waiting for event in events if event.HasField("run_waiting")]
            assert (waiting.reason, *waiting.kinds) == ("retry of busy", WAIT_KIND_RETRY)
            assert waiting.HasField("wake_time")


async def test_a_race_goes_on_the_way_it_went(tmp_path: Path) -> None:
    """Whichever comes first: the signal, or the time."""
    async with running_suite(tmp_path, target=WAITING) as suite, suite.client() as client:
        answered, timed = await client.start("race", {"seconds": 86_400}), await client.start("race", {"seconds": 2.5})
        await parked(answered)
        await answered.signal("answer", "me")
        assert await answered.result() == "me"
        assert await timed.result() == "nobody"


async def test_a_parked_run_that_is_cancelled_cleans_up(tmp_path: Path) -> None:
    """Its code gets CancelledError where it waits, and may call components."""
    async with running_suite(tmp_path, target=WAITING) as suite, suite.client() as client:
        run = await client.start("tidy", {})
        await parked(run)
        await run.cancel("enough")
        with pytest.raises(RunFailed):
            await run.result()
        events = [event async for event in run.follow()]
        check_log(events)
        assert causes(events)[1:] == [ATTEMPT_CAUSE_CANCELLED]
        view = fold(events)
        assert ([line.message for line in view.statuses], view.state) == (["cleaning"], "CANCELLED")
        assert "note" in [event.component_started.name for event in events]


async def test_an_answer_that_is_not_what_is_asked_for_is_refused(tmp_path: Path) -> None:
    """To its sender, with every violation. Where nobody asks, whatever comes is kept."""
    async with running_suite(tmp_path, target=WAITING) as suite, suite.client() as client:
        run = await client.start("form", {})
        await parked(run)
        await run.signal("other", "anything")
        with pytest.raises(InvalidInput) as refused:
            await run.signal("form", {"name": 3})
        assert len(refused.value.violations) == 2
        assert (await run.get()).state == RUN_STATE_WAITING
        await run.signal("form", {"name": "Ann", "age": 7}, request_id="mine")
        assert await run.result() == "Ann is 7"
        await run.signal("form", {"name": "Ann", "age": 7}, request_id="mine")  # A repeat is no new answer.


async def test_signals_of_the_suites_own_are_refused(tmp_path: Path) -> None:
    """They tell a run what only the suite knows."""
    async with running_suite(tmp_path, target=WAITING) as suite, suite.client() as client:
        run = await client.start("tidy", {})
        with pytest.raises(InvalidRequest, match="Onward's own"):
            await run.signal("onward.child", 1)
