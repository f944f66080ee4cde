"""What the suite promises, shown on real processes that get real signals."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from tests.e2e.suite import Suite, running_suite
from tests.runlog import eventually

from onward import WrongState, fold
from onward.v1.event_pb2 import ATTEMPT_CAUSE_EXECUTOR_LOST, ATTEMPT_CAUSE_HANDED_OVER, Event
from onward.v1.executor_service_pb2 import WatchRequest, WatchResponse
from onward.v1.executor_service_pb2_grpc import ExecutorServiceStub
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, RUN_STATE_QUEUED, RUN_STATE_RUNNING, RUN_STATE_SUCCEEDED
from onward.v1.scheduler_service_pb2 import ListExecutorsRequest
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from onward_cli.children import Child

TALK = {"count": 40, "pause_s": 0.02}
TEXT = "".join(f"word{i} " for i in range(20)) * 2


def attempts(events: list[Event]) -> list[Event]:
    return [event for event in events if event.HasField("attempt_started")]


def check_log(events: list[Event]) -> None:
    """Every log: dense offsets, attempts that never go back, one end, and nothing after it."""
    assert [event.offset for event in events] == list(range(1, len(events) + 1))
    written = [event.attempt for event in events if event.attempt]
    assert written == sorted(written)
    ends = [event for event in events if event.run_state_changed.state >= RUN_STATE_SUCCEEDED]
    assert ends == events[-1:]


async def test_a_run_is_followed_to_its_end(suite: Suite) -> None:
    """The whole path: start, follow, output, and the same log for one who comes later."""
    async with suite.client() as client:
        run = await client.start("talk", TALK)
        live = [event async for event in run.follow()]
        assert await run.result() == TEXT
        later = [event async for event in run.follow()]
    check_log(live)
    assert live == later
    view = fold(live)
    assert [status.message for status in view.statuses] == ["begins", "goes on"]
    assert view.states["progress"] == {"half": True}
    assert view.state == "SUCCEEDED"


async def test_a_killed_gateway_costs_its_followers_nothing(tmp_path: Path) -> None:
    """Kill -9 of the Gateway at a random offset: the client goes on at another one, offsets 1 to N, once each."""
    async with running_suite(tmp_path, gateways=2) as suite, suite.client() as client:
        run = await client.start("talk", TALK)
        killed_at = random.randint(3, 30)
        victims = list(suite.gateways)
        seen = []
        async for event in run.follow():
            seen.append(event)
            if event.offset == killed_at:
                # Whichever serves the stream: kill one; at the other one nothing is lost either.
                await suite.kill(victims[0])
        check_log(seen)
        assert await run.result() == TEXT


async def test_every_gateway_gives_the_same_events(tmp_path: Path) -> None:
    """Offsets belong to the log: a stream that begins on one Gateway goes on, on another one, at any offset."""
    async with running_suite(tmp_path, gateways=2) as suite, suite.client(0) as one, suite.client(1) as other:
        run = await one.start("talk", {"count": 10, "pause_s": 0.0})
        whole = [event async for event in run.follow()]
        for after in range(len(whole) + 1):
            rest = [event async for event in other.follow(run.run_id, after=after)]
            assert whole[after:] == rest


async def test_a_killed_executor_is_replaced_and_the_view_is_whole(suite: Suite) -> None:
    """Kill -9 in mid-stream: another executor begins again, and the fold is as if nothing had happened."""
    await suite.add_executor("--drain-grace=1")
    async with suite.client() as client:
        run = await client.start("talk", TALK)
        seen = []
        killed_at = 0.0
        began_again = 0.0
        async for event in run.follow():
            seen.append(event)
            if event.offset == 15 and not killed_at:
                holder = (await client.get(run.run_id)).executor_id
                victim = await holder_of(suite, holder)
                killed_at = time.monotonic()
                await suite.kill(victim)
            if event.attempt == 2 and not began_again:
                began_again = time.monotonic()
        check_log(seen)
        assert [event.attempt for event in attempts(seen)] == [1, 2]
        assert attempts(seen)[1].attempt_started.cause == ATTEMPT_CAUSE_EXECUTOR_LOST
        assert await run.result() == TEXT
        view = fold(seen)
        assert view == fold([event async for event in run.follow(view="settled")])
        assert [status.message for status in view.statuses] == ["begins", "goes on"]
        assert began_again - killed_at < 2.0, "a refused connection proves death: nobody waits for the lease"


async def holder_of(suite: Suite, executor_id: str) -> Child:
    """Return the executor process with an id."""
    for child in suite.executors:
        async with grpc.aio.insecure_channel(child.addresses["grpc"]) as channel:
            call = ExecutorServiceStub(channel).Watch(WatchRequest())
            first = await call.read()
            call.cancel()
            assert isinstance(first, WatchResponse)
            if first.executor.executor_id == executor_id:
                return child
    raise LookupError(executor_id)


async def test_a_frozen_executor_can_write_nothing_once_it_was_replaced(suite: Suite) -> None:
    """SIGSTOP past the lease, a second executor takes over, SIGCONT: not one event of the zombie follows."""
    zombie = suite.executors[0]
    async with suite.client() as client:
        run = await client.start("talk", {"count": 200, "pause_s": 0.02})
        seen = []
        async for event in run.follow():
            seen.append(event)
            if event.offset == 10:
                os.kill(zombie.pid, signal.SIGSTOP)
                await suite.add_executor("--drain-grace=1")
            if event.attempt > 1 and event.HasField("attempt_started"):
                os.kill(zombie.pid, signal.SIGCONT)
        check_log(seen)
        second = attempts(seen)[1].offset
        assert all(event.attempt != 1 for event in seen[second:])
        assert len(attempts(seen)) == 2
        assert fold(seen).state == "SUCCEEDED"


async def test_a_deaf_executor_is_replaced(tmp_path: Path) -> None:
    """User code that blocks the event loop for longer than a lease loses its run, though its process lives."""
    async with running_suite(tmp_path, lease_ttl_s=1.0, executors=2) as suite, suite.client() as client:
        run = await client.start("deaf", {"seconds": 4.0})
        blocked = (await run.get()).executor_id
        async with asyncio.timeout(8.0):
            async for event in run.follow():
                if event.attempt > 1:
                    break
        assert event.attempt_started.executor_id not in ("", blocked)


async def test_what_the_store_acknowledged_survives_its_death(tmp_path: Path) -> None:
    """Kill -9 of Valkey in mid-run: what was seen is there after its restart, and attempt and clients go on."""
    async with running_suite(tmp_path) as suite, suite.client() as client:
        runs = [await client.start("talk", {"count": 150, "pause_s": 0.02}) for _ in range(5)]
        seen: dict[str, list[Event]] = {run.run_id: [] for run in runs}
        enough = asyncio.Event()

        async def follow(run_id: str) -> None:
            async for event in client.follow(run_id):
                seen[run_id].append(event)
                if len(seen[run_id]) > 20:
                    enough.set()

        following = [asyncio.create_task(follow(run.run_id)) for run in runs]
        await enough.wait()
        await suite.valkey.kill()
        before = {run_id: list(events) for run_id, events in seen.items()}
        await asyncio.sleep(0)
        await suite.valkey.start()
        await asyncio.gather(*following)
        for run in runs:
            whole = [event async for event in run.follow()]
            check_log(whole)
            assert whole == seen[run.run_id]
            assert before[run.run_id] == whole[: len(before[run.run_id])]
            assert len(attempts(whole)) == 1, "nobody's lease was judged while the store was away"
            assert fold(whole).state == "SUCCEEDED"


async def test_cancelling_lets_user_code_clean_up(suite: Suite) -> None:
    """CancelRun reaches the code as CancelledError, its `finally` may still say something, and the log is closed."""
    async with suite.client() as client:
        run = await client.start("wait", {"seconds": 60})
        seen = []
        async for event in run.follow():
            seen.append(event)
            if event.HasField("component_started"):
                await client.cancel(run.run_id, "not needed any more")
        check_log(seen)
        assert seen[-1].run_state_changed.state == RUN_STATE_CANCELLED
        assert "cleaned up" in [event.status_updated.message for event in seen]
        again = await client.cancel(run.run_id)
        assert again.state == RUN_STATE_CANCELLED
        with pytest.raises(WrongState):
            await client.resume(run.run_id)


async def test_a_drained_executor_hands_its_runs_over(suite: Suite) -> None:
    """SIGTERM: what does not end within the grace goes to another executor, and nobody counts it as a death."""
    first = suite.executors[0]
    async with suite.client() as client:
        await suite.add_executor("--drain-grace=1", "--slots=1")
        run = await client.start("talk", {"count": 200, "pause_s": 0.02})
        seen = []
        async for event in run.follow():
            seen.append(event)
            if event.offset == 8:
                first.terminate()
        check_log(seen)
        assert await first.ended() == 0
        assert attempts(seen)[1].attempt_started.cause == ATTEMPT_CAUSE_HANDED_OVER
        assert fold(seen).state == "SUCCEEDED"


async def test_a_full_executor_lets_runs_wait(tmp_path: Path) -> None:
    """With two slots the third run stays queued until one ends."""
    async with running_suite(tmp_path, executor_options=["--slots=2"]) as suite, suite.client() as client:
        held = [await client.start("wait", {"seconds": 60}) for _ in range(2)]
        for run in held:
            async for event in run.follow():
                if event.HasField("component_started"):
                    break
        waiting = await client.start("echo", {"value": "at last"})
        assert (await waiting.get()).state == RUN_STATE_QUEUED
        await held[0].cancel()
        assert await waiting.result(timeout=10) == "at last"
        assert (await held[1].get()).state == RUN_STATE_RUNNING


async def test_two_schedulers_make_one_attempt(tmp_path: Path) -> None:
    """Whoever of two Schedulers claims a run, it is begun once; and when one is killed the other one goes on."""
    async with running_suite(tmp_path, schedulers=2, executor_options=["--slots=5"]) as suite, suite.client() as client:
        runs = [await client.start("steps", {"number": i}) for i in range(60)]
        await suite.kill(suite.schedulers[0])
        runs += [await client.start("steps", {"number": i}) for i in range(60, 80)]
        assert [8 * i for i in range(80)] == [await run.result(timeout=30) for run in runs]
        for run in runs:
            events = [event async for event in run.follow()]
            check_log(events)
            assert len(attempts(events)) == 1


async def test_servers_wait_for_the_store(tmp_path: Path) -> None:
    """Without Redis a server says that it waits, and is ready when Redis is there."""
    async with running_suite(tmp_path) as suite:
        await suite.valkey.kill()
        adding = asyncio.create_task(suite.add_scheduler())
        done, _ = await asyncio.wait({adding}, timeout=1.5)
        assert not done
        await suite.valkey.start()
        await asyncio.wait_for(adding, 15)


async def test_a_server_that_waits_ends_on_sigterm(tmp_path: Path) -> None:
    """Also before it ever served."""
    child = await Child.start(["scheduler", f"--redis=unix://{tmp_path}/nobody.sock", "--listen=127.0.0.1:0"])
    await eventually(lambda: _has_handler(child.pid))
    assert await child.stop(10) == 0


async def _has_handler(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


async def test_two_tenants_may_use_one_run_id(suite: Suite) -> None:
    """A run of the same id in another namespace is another run."""
    await suite.add_gateway("--namespace=acme")
    async with suite.client(0) as default, suite.client(1) as acme:
        one = await default.start("echo", {"value": "default's"}, run_id="same")
        other = await acme.start("echo", {"value": "acme's"}, run_id="same")
        assert [await one.result(), await other.result()] == ["default's", "acme's"]
        assert [run.run_id async for run in acme.list_runs()] == ["same"]


async def test_a_delayed_run_starts_when_it_is_due(suite: Suite) -> None:
    """A run with a schedule_time stays queued until then, and starts by itself."""
    due = datetime.now(UTC) + timedelta(seconds=1)
    async with suite.client() as client:
        run = await client.start("echo", {"value": "on time"}, schedule_time=due)
        assert await run.result(timeout=15) == "on time"
        got = await run.get()
        assert got.start_time.ToDatetime(UTC) >= due - timedelta(milliseconds=10)


async def test_a_run_fails_at_its_timeout(suite: Suite) -> None:
    """The Scheduler ends a run at its timeout, and the executor stops its code."""
    async with suite.client() as client:
        run = await client.start("wait", {"seconds": 60}, run_timeout=1.0)
        events = [event async for event in run.follow()]
        check_log(events)
        assert events[-1].run_state_changed.error.reason == "RUN_TIMEOUT"

        async def executor_is_free() -> bool:
            other = await client.start("echo", {"value": ""})
            return bool(await other.result() == "")

        await eventually(executor_is_free)


async def test_a_paused_store_makes_no_stampede(tmp_path: Path) -> None:
    """Valkey stopped for longer than a lease: when it goes on, every run goes on where it was."""
    async with running_suite(tmp_path, lease_ttl_s=1.0) as suite, suite.client() as client:
        runs = [await client.start("talk", {"count": 100, "pause_s": 0.02}) for _ in range(5)]
        async for event in runs[0].follow():
            if event.offset == 10:
                break
        os.kill(suite.valkey.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(2.5 * 1.0)  # the fault itself is time: more than two leases without the store
        finally:
            os.kill(suite.valkey.pid, signal.SIGCONT)
        for run in runs:
            events = [event async for event in run.follow()]
            check_log(events)
            assert len(attempts(events)) == 1


async def test_an_executor_may_come_back_at_the_address_of_a_dead_one(suite: Suite) -> None:
    """A new process on the same port is another executor: it takes runs, and is not taken for the dead one."""
    async with suite.client() as client, grpc.aio.insecure_channel(suite.scheduler_addresses) as channel:
        scheduler = SchedulerServiceStub(channel)
        for _ in range(3):
            old = suite.executors.pop()
            await suite.kill(old)
            address = old.addresses["grpc"]
            new = await suite.add_executor("--drain-grace=1", listen=address)
            assert new.addresses["grpc"] == address
            run = await client.start("talk", {"count": 20, "pause_s": 0.01})
            async for event in run.follow():
                known = await scheduler.ListExecutors(ListExecutorsRequest())
                assert address in [executor.address for executor in known.executors]
                assert event.attempt <= 1
