"""Runs that are paused, resumed, cancelled and isolated, on real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.e2e.developing import begun
from tests.e2e.suite import Suite, running_suite
from tests.e2e.test_faults import attempts, check_log, holder_of
from tests.runlog import eventually

from onward import WrongState, fold
from onward.client import RunHandle
from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_CANCELLED,
    ATTEMPT_CAUSE_EXECUTOR_LOST,
    ATTEMPT_CAUSE_RESUMED,
    OUTCOME_CANCELLED,
)
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, RUN_STATE_CANCELLING, RUN_STATE_PAUSED, RUN_STATE_SUCCEEDED
from onward_serving.running import BROKEN

INNOCENTS = 12


async def keep_two(suite: Suite, stop: asyncio.Event) -> None:
    """Start an executor for each that dies, as Kubernetes does."""
    while not stop.is_set():
        dying = [asyncio.create_task(child.ended()) for child in suite.executors]
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([*dying, stopping], return_when=asyncio.FIRST_COMPLETED)
        dead = [child for child, task in zip(suite.executors, dying, strict=True) if task.done()]
        for task in (*dying, stopping):
            task.cancel()
        await asyncio.gather(*dying, stopping, return_exceptions=True)
        for child in dead:
            suite.executors.remove(child)
            await suite.add_executor("--drain-grace=1")


async def test_a_poisonous_run_takes_nobody_with_it_and_can_be_resumed(tmp_path: Path) -> None:
    """It kills each executor that takes it, with all that these hold. The others succeed, it alone is PAUSED."""
    cup = tmp_path / "cup"
    cup.touch()
    async with running_suite(tmp_path / "store", schedulers=2, executors=2) as suite:
        stop = asyncio.Event()
        keeping = asyncio.create_task(keep_two(suite, stop))
        async with suite.client() as client:
            innocent = [await client.start("wait", {"seconds": 1.5}) for _ in range(INNOCENTS // 2)]
            poison = await client.start("poison", {"cup": str(cup)})
            innocent += [await client.start("talk", {"count": 10}) for _ in range(INNOCENTS // 2)]
            stopped = await client.wait_for(poison.run_id, timeout=45)
            assert (stopped.state, stopped.error.reason) == (RUN_STATE_PAUSED, "EXECUTOR_LOST")
            for run in innocent:
                ended = await client.wait_for(run.run_id, timeout=45)
                assert ended.state == RUN_STATE_SUCCEEDED
                check_log([event async for event in run.follow()])
            cup.unlink()
            await poison.resume()
            assert await poison.result(timeout=15) == "survived"
            events = [event async for event in poison.follow()]
            check_log(events)
            assert attempts(events)[-1].attempt_started.cause == ATTEMPT_CAUSE_RESUMED
            names = [event.component_started.name for event in events if event.HasField("component_started")]
            assert names.count("double") == 1, "what was finished is not done again"
            with pytest.raises(WrongState):
                await poison.resume()
        stop.set()
        await keeping


@pytest.mark.parametrize("how", ["callback", "task"])
async def test_an_executor_whose_event_loop_is_left_is_no_more(tmp_path: Path, how: str) -> None:
    """User code that ends the process from beside its run: it is gone in seconds, and the run goes on elsewhere."""
    cup = tmp_path / "cup"
    cup.touch()
    async with running_suite(tmp_path / "store") as suite, suite.client() as client:
        run = await client.start("leave", {"cup": str(cup), "how": how})
        assert await asyncio.wait_for(suite.executors[0].ended(), 15) == BROKEN
        cup.unlink()
        await suite.add_executor("--drain-grace=1")
        assert await run.result(timeout=15) == "survived"
        lost = attempts([event async for event in run.follow()])[1]
        assert lost.attempt_started.cause == ATTEMPT_CAUSE_EXECUTOR_LOST


async def test_a_run_that_has_to_be_alone_gets_an_executor_where_all_are_busy(tmp_path: Path) -> None:
    """The last executor would never be idle by itself: it gets nothing new until it is, and dies with nobody in it."""
    cup = tmp_path / "cup"
    options = ["--slots=2"]
    async with (
        running_suite(tmp_path / "store", executors=3, executor_options=options) as suite,
        suite.client() as client,
    ):
        others = [await client.start("wait", {"seconds": 2}) for _ in range(3)]
        for run in others:
            await eventually(lambda run=run: _is_held(run))  # type: ignore[misc]
        cup.touch()
        poison = await client.start("poison", {"cup": str(cup)})

        async def crowd() -> None:
            while True:
                others.append(await client.start("wait", {"seconds": 0.5}))
                await asyncio.sleep(0.1)

        crowding = asyncio.create_task(crowd())
        stopped = await client.wait_for(poison.run_id, timeout=30)
        crowding.cancel()
        assert stopped.error.reason == "EXECUTOR_LOST"
        await suite.add_executor("--drain-grace=1")
        for run in others:
            assert await run.result(timeout=30) == "waited"


@pytest.mark.parametrize("cancelled", ["before", "after"])
async def test_a_cancelled_run_whose_executor_dies_cleans_up_elsewhere(suite: Suite, cancelled: str) -> None:
    """Whether it was cancelled before its executor died or while nobody had it: the code is cancelled where it was."""
    async with suite.client() as client:
        run = await client.start("saga", {"seconds": 60})
        seen = []
        async for event in run.follow():
            seen.append(event)
            if event.component_started.name == "pause" and event.attempt == 1:
                victim = await holder_of(suite, (await run.get()).executor_id)
                suite.executors.remove(victim)
                if cancelled == "before":
                    os.kill(victim.pid, signal.SIGSTOP)
                    assert (await run.cancel("enough")).state == RUN_STATE_CANCELLING
                    await suite.kill(victim)
                else:
                    await suite.kill(victim)
                    await eventually(lambda: _is_queued(run))
                    assert (await run.cancel("enough")).state == RUN_STATE_CANCELLING
                await suite.add_executor("--drain-grace=1")
        check_log(seen)
        assert seen[-1].run_state_changed.state == RUN_STATE_CANCELLED
        assert attempts(seen)[1].attempt_started.cause == ATTEMPT_CAUSE_CANCELLED
        assert [status.message for status in fold(seen).statuses] == ["undoes 2", "undoes 4"]
        second = [event for event in seen if event.attempt == 2]
        started = [event.component_started.name for event in second if event.HasField("component_started")]
        assert started == ["double", "double"], "pause does not begin again, and what is to be undone is undone"
        outcomes = [event.component_finished.outcome for event in second if event.HasField("component_finished")]
        assert OUTCOME_CANCELLED not in outcomes


async def _is_held(run: RunHandle) -> bool:
    return (await run.get()).executor_id != ""


async def _is_queued(run: RunHandle) -> bool:
    return not await _is_held(run)


async def test_a_run_is_resumed_on_fixed_code(tmp_path: Path) -> None:
    """PAUSED because the code no longer fits its log; on a build that does, it goes on from what it has."""
    code = tmp_path / "code.py"
    code.write_text(CODE.format(call="step(2)"))
    async with running_suite(tmp_path / "store", target=code, executors=0) as suite, suite.client() as client:
        first = await suite.add_executor("--deployment=first", "--drain-grace=1")
        run = await client.start("flow", {"gate": str(tmp_path / "gate")})
        async for event in run.follow():
            if event.component_started.name == "gated":
                break
        await suite.kill(first)
        code.write_text(CODE.format(call="step(1 + 2)"))
        wrong = await suite.add_executor("--deployment=first", "--drain-grace=1")
        stopped = await client.wait_for(run.run_id, timeout=15)
        assert (stopped.state, stopped.error.reason) == (RUN_STATE_PAUSED, "NON_DETERMINISTIC")
        await suite.kill(wrong)
        code.write_text(CODE.format(call="step(2)") + "# fixed\n")
        await suite.add_executor("--deployment=fixed", "--drain-grace=1")
        (tmp_path / "gate").touch()
        resumed = await run.resume("fixed")
        assert resumed.deployment == "fixed"
        assert await run.result(timeout=15) == 3
        events = [event async for event in run.follow()]
        check_log(events)
        assert fold(events).state == "SUCCEEDED"


async def test_a_run_whose_build_is_gone_says_so_and_can_be_moved(tmp_path: Path) -> None:
    """It waits, as another build may not fit: for an executor of its own, or for a person who names another one."""
    code, gate = tmp_path / "code.py", tmp_path / "gate"
    code.write_text(CODE.format(call="step(2)"))
    async with running_suite(tmp_path / "store", target=code, executors=0) as suite, suite.client() as client:
        first = await suite.add_executor("--deployment=first", "--drain-grace=1")
        run = await client.start("flow", {"gate": str(gate)})
        async for event in run.follow():
            if event.component_started.name == "gated":
                break
        await suite.kill(first)
        gate.touch()
        await suite.add_executor("--deployment=second", "--drain-grace=1")

        async def says_so() -> bool:
            [listed] = [each async for each in client.list_runs()]
            return (await run.get()).waiting_for == listed.waiting_for == "an executor of deployment first"

        await eventually(says_so)
        moved = await run.resume("second")
        assert (moved.deployment, moved.waiting_for) == ("second", "")
        assert await run.result(timeout=15) == 3
        assert (await run.get()).waiting_for == ""
        events = [event async for event in run.follow()]
        check_log(events)
        reasons = [event.run_state_changed.reason for event in events if event.HasField("run_state_changed")]
        assert "moved to deployment second" in reasons


CODE = """
import asyncio
import os
import signal
from pathlib import Path
from onward import component, workflow

@component
async def step(number: int) -> int:
    return number

@component
async def gated(gate: str) -> int:
    while not Path(gate).exists():
        await asyncio.sleep(0.02)
    return 1

@workflow
async def flow(gate: str) -> int:
    two = await {call}
    return two + await gated(gate)
"""


async def test_in_dev_a_paused_run_goes_on_in_the_code_as_it_is_now(tmp_path: Path) -> None:
    """Code that kills its executors, mended while the run is PAUSED: resumed without naming a build, it succeeds."""
    code = tmp_path / "flow.py"
    code.write_text(DEADLY.format(what="os._exit(3)"))
    async with begun(tmp_path, "flow.py", "--executors=2") as dev:
        await dev.told("^ready ")
        async with dev.client() as client:
            run = await client.start("flow")
            stopped = await client.wait_for(run.run_id, timeout=40)
            assert stopped.error.reason == "EXECUTOR_LOST"
            code.write_text(DEADLY.format(what="return 'mended'"))
            await dev.told("reloaded as deployment")
            resumed = await run.resume()
            assert resumed.deployment != stopped.deployment
            assert await run.result(timeout=20) == "mended"
        assert await dev.interrupt() == 0


DEADLY = """
import os
from onward import component, workflow

@component
async def one() -> int:
    return 1

@workflow
async def flow() -> str:
    await one()
    {what}
"""
