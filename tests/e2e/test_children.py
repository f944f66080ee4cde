"""Child runs on real processes: exactly one each, ended with their parent. And runs that go on as others."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from tests.e2e.suite import Suite, running_suite
from tests.e2e.test_faults import check_log
from tests.e2e.test_parking import parked
from tests.runlog import eventually

from onward import Client, RunFailed, fold
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, RUN_STATE_CANCELLING, RUN_STATE_SUCCEEDED, RUN_STATE_WAITING, Run

CHILDREN = Path(__file__).with_name("children.py")


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ledger"
    path.touch()
    monkeypatch.setenv("ONWARD_TEST_LEDGER", str(path))
    return path


def lines(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines()


async def children_of(client: Client, run_id: str) -> list[Run]:
    return [run async for run in client.list_runs(parent_run_id=run_id)]


async def in_state(client: Client, run_id: str, state: int) -> None:
    async def check() -> bool:
        return (await client.get(run_id)).state == state

    await eventually(check, within_s=40)


async def replace_scheduler(suite: Suite) -> None:
    """Kill one, and start another where it was."""
    victim = suite.schedulers.pop(0)
    await suite.kill(victim)
    await suite.add_scheduler("--lease-ttl=1.0", listen=victim.addresses["grpc"])


async def test_a_parent_holds_no_slot_while_its_children_run(tmp_path: Path, ledger: Path) -> None:
    """With one slot for all of them; their logs are their own, and linked both ways."""
    async with (
        running_suite(tmp_path, target=CHILDREN, executor_options=["--slots=1"]) as suite,
        suite.client() as client,
    ):
        assert await client.invoke("told_by", {"names": ["zero"]}) == "zero is done", "in a stream, too"
        ledger.write_text("")
        run = await client.start("family", {"names": ["one", "two", "three"]})
        assert await run.result() == ["one is done", "two is done", "three is done"]
        assert sorted(lines(ledger)) == ["one", "three", "two"]
        events = [event async for event in run.follow()]
        check_log(events)
        view = fold(events)
        children = await children_of(client, run.run_id)
        assert {child.run_id for child in children} == {child.run_id for child in view.child_runs}
        for child in children:
            assert (child.parent_run_id, child.detached, child.depth) == (run.run_id, False, 1)
            assert child.parent_component_id in view.components
            told = [event async for event in client.follow(child.run_id)]
            check_log(told)
            assert next(line.message for line in fold(told).statuses).endswith("begins")


@pytest.mark.parametrize("which", ["executor", "scheduler"])
async def test_there_is_one_child_whoever_is_killed(tmp_path: Path, ledger: Path, which: str) -> None:
    """Kill -9 after each event of the parent's log: the steps between are many, and none starts another child."""
    async with (
        running_suite(tmp_path, target=CHILDREN, schedulers=2, executors=2, lease_ttl_s=1.0) as suite,
        suite.client() as client,
    ):
        for after in range(2, 11, 2):
            name = f"child of {after}"
            run = await client.start("family", {"names": [name]})
            async for event in run.follow():
                if event.offset != after:
                    continue
                if which == "executor":
                    for child in list(suite.executors):
                        suite.executors.remove(child)
                        await suite.kill(child)
                    await asyncio.gather(suite.add_executor(), suite.add_executor())
                else:
                    await replace_scheduler(suite)
                break
            assert await run.result(40) == [f"{name} is done"]
            check_log([event async for event in run.follow()])
            assert len(await children_of(client, run.run_id)) == 1
        # An executor that dies takes what was in flight along: that is done again, in the same child.
        assert set(Counter(lines(ledger)).values()) <= ({1} if which == "scheduler" else {1, 2})


async def test_a_parent_and_its_child_survive_the_death_of_everything(tmp_path: Path, ledger: Path) -> None:
    """Both parked; and then the child's end wakes its parent."""
    async with running_suite(tmp_path, target=CHILDREN) as suite:
        async with suite.client() as client:
            run = await client.start("waiter")
            await parked(run)
            [child] = await children_of(client, run.run_id)
            await in_state(client, child.run_id, RUN_STATE_WAITING)
        for process in (*suite.gateways, *suite.executors, *suite.schedulers):
            await suite.kill(process)
        await suite.valkey.kill()
    async with running_suite(tmp_path, target=CHILDREN) as suite, suite.client() as client:
        assert (await client.get(run.run_id)).waiting_for == "child gated"
        await client.signal(child.run_id, "go")
        assert await client.run(run.run_id).result(40) == "one went"
    assert lines(ledger) == ["one begins"]


@pytest.mark.parametrize("how", ["cancelled", "failed", "succeeded", "timed out"])
async def test_a_child_ends_with_its_parent_and_a_detached_one_does_not(tmp_path: Path, ledger: Path, how: str) -> None:
    """However the parent ends. What had begun cleans up."""
    async with running_suite(tmp_path, target=CHILDREN) as suite, suite.client() as client:
        run = await client.start("guardian", {"fails": how == "failed"}, run_timeout=12 if how == "timed out" else None)
        await parked(run)
        children = {child.labels["kind"]: child.run_id for child in await children_of(client, run.run_id)}
        for child in children.values():
            await in_state(client, child, RUN_STATE_WAITING)
        if how == "cancelled":
            await run.cancel()
        elif how != "timed out":
            await run.signal("end")
        if how == "succeeded":
            assert await run.result() == "ended"
        else:
            with pytest.raises(RunFailed):
                await run.result()
        await in_state(client, children["own"], RUN_STATE_CANCELLED)
        await client.signal(children["detached"], "go")
        assert await client.run(children["detached"]).result() == "detached went"
        assert sorted(lines(ledger)) == ["detached begins", "own begins", "own cleans up"]


async def test_what_goes_wrong_with_a_child_is_told(tmp_path: Path, ledger: Path) -> None:
    """Refused, or failed."""
    async with running_suite(tmp_path, target=CHILDREN) as suite, suite.client() as client:
        assert await client.invoke("told") == ["WORKFLOW_NOT_FOUND", "INPUT_INVALID", "WORKFLOW_FAILED no luck"]


async def test_a_large_output_reaches_the_parent(tmp_path: Path, ledger: Path) -> None:
    """It is kept beside the child's log."""
    async with running_suite(tmp_path, target=CHILDREN) as suite, suite.client() as client:
        for size in (100_000, 1_000_000):
            assert await client.invoke("measured", {"size": size}) == size


async def test_a_run_goes_on_as_another_and_its_signals_with_it(tmp_path: Path, ledger: Path) -> None:
    """Exactly one each, also where its executor and Scheduler are killed; whoever waits for the first gets the last."""
    async with (
        running_suite(tmp_path, target=CHILDREN, schedulers=2, executors=2, lease_ttl_s=1.0) as suite,
        suite.client() as client,
    ):
        run = await client.start("rounds", {"until": 3}, labels={"of": "rounds"})
        for number in range(4):
            await run.signal("word", f"word {number}")
        for _ in range(2):
            await suite.kill(suite.executors.pop())
            await suite.add_executor()
            await replace_scheduler(suite)
        assert await run.result(50) == "3 rounds"
        words = [line for line in lines(ledger) if line.startswith("word")]
        assert sorted(set(words)) == ["word 0", "word 1", "word 2", "word 3"]
        chain = [await run.get()]
        while chain[-1].continued_as_run_id:
            chain.append(await client.get(chain[-1].continued_as_run_id))
        assert [one.state for one in chain] == [RUN_STATE_SUCCEEDED] * 4
        assert [one.continued_from_run_id for one in chain[1:]] == [one.run_id for one in chain[:-1]]
        assert {one.first_run_id for one in chain[1:]} == {run.run_id}
        assert len([one async for one in client.list_runs(labels={"of": "rounds"})]) == 4


async def test_a_run_that_has_gone_on_is_cancelled_as_what_it_is_now(tmp_path: Path, ledger: Path) -> None:
    """By the name of the first; and the last of them is what is returned."""
    async with running_suite(tmp_path, target=CHILDREN) as suite, suite.client() as client:
        run = await client.start("rounds", {"until": 9})
        for number in range(2):
            await run.signal("word", f"word {number}")
        await eventually(lambda: has_begun(ledger, "round 2"), within_s=40)
        cancelled = await run.cancel("enough")
        assert (cancelled.first_run_id, cancelled.state) == (run.run_id, RUN_STATE_CANCELLING)
        await in_state(client, cancelled.run_id, RUN_STATE_CANCELLED)
        assert (await run.get()).state == RUN_STATE_SUCCEEDED
        with pytest.raises(RunFailed, match="cancelled"):
            await run.result()


async def has_begun(ledger: Path, line: str) -> bool:
    return line in lines(ledger)


async def by_kind(client: Client, parent: str) -> dict[str, str]:
    return {child.labels["kind"]: child.run_id for child in await children_of(client, parent) if child.labels}


async def test_a_run_that_failed_by_a_child_is_retried_with_what_succeeded(tmp_path: Path, ledger: Path) -> None:
    """What had a result keeps it; who failed and who was cancelled with its parent is started again, as the fork's."""
    async with running_suite(tmp_path, target=CHILDREN) as suite, suite.client() as client:
        run = await client.start("several")
        await eventually(lambda: there_are(client, run.run_id, 2), within_s=40)
        await client.signal((await by_kind(client, run.run_id))["lucky"], "go")
        with pytest.raises(RunFailed, match="no luck for two"):
            await run.result()
        retried = await client.retry(run.run_id)
        await eventually(lambda: there_are(client, retried.run_id, 2), within_s=40)
        for child in (await by_kind(client, retried.run_id)).values():
            await client.signal(child, "go")
        assert await retried.result(40) == ["one is done", "two was lucky", "three went"]
        check_log([event async for event in retried.follow()])
        assert Counter(lines(ledger)) == {
            "one": 1,
            "two tries its luck": 2,
            "three begins": 2,
            "three cleans up": 1,
        }


async def there_are(client: Client, parent: str, count: int) -> bool:
    return len(await by_kind(client, parent)) == count


async def test_a_fork_learns_of_the_end_of_a_child_that_goes_on(tmp_path: Path, ledger: Path) -> None:
    """It ended after the fork was made, and nobody started it again."""
    async with running_suite(tmp_path, target=CHILDREN) as suite, suite.client() as client:
        run = await client.start("left_alone")
        with pytest.raises(RunFailed, match="no luck"):
            await run.result()
        [child] = await children_of(client, run.run_id)
        retried = await client.retry(run.run_id)
        await in_state(client, retried.run_id, RUN_STATE_WAITING)
        await client.signal(child.run_id, "go")
        assert await retried.result(60) == "parent was luckyone went"
        assert lines(ledger).count("one begins") == 1
