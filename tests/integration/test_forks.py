"""ForkRun, through a Gateway and a Scheduler into a real store, on logs that the engine has written."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from tests.gateway import Door, refused, serve_workflow
from tests.integration.test_gateway import door, scheduler  # noqa: F401 - fixtures
from tests.runlog import a_run, all_keys, log_of, told

from onward import component, fold, status, workflow
from onward.engine import Attempt
from onward.v1.gateway_service_pb2 import ForkRunRequest, GetRunRequest, StartRunRequest
from onward.v1.run_pb2 import Payload, Run, RunState
from onward_runlog import keys
from onward_runlog.runs import Runs, new_run_id
from onward_runlog.staging import Staged
from onward_runlog.store import Store
from onward_runlog.writer import LogWriter

LARGE = "x" * 300_000
broken: set[str] = set()
ran: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()
    broken.clear()


@component
async def write(name: str) -> str:
    ran.append(name)
    status(f"writes {name}")
    if name in broken:
        raise ValueError(f"no {name}")
    return name


@component
async def large() -> str:
    ran.append("large")
    return LARGE


@workflow
async def blog(topic: str) -> dict[str, Any]:
    first = await write("first")
    text = await large()
    second = await write("second")
    return {"topic": topic, "size": len(text), "parts": [first, second]}


async def execute(store: Store, writer: LogWriter, run_id: str) -> Run:
    """Claim a run and run it to its end."""
    runs = Runs(store)
    base, _ = store.place("default", run_id)
    [taken] = await runs.claim(base, "build", holder="hand", ttl_s=60, limit=1)
    await Attempt(
        blog,
        run=taken.run,
        log=writer.log("default", run_id, taken.attempt),
        attempt=taken.attempt,
        cause=taken.cause,
        executor_id="hand",
        deployment="build",
        digest_key=store.digest_key,
    ).run()
    return await runs.get("default", run_id)


@pytest.fixture
async def failed(door: Door, store: Store, writer: LogWriter) -> Run:  # noqa: F811
    """A run whose second `write` has failed, after 300 KB that are kept beside the log."""
    broken.add("second")
    request = StartRunRequest(
        workflow="blog", input=Payload(data=b'{"topic": "tea"}'), run_id="source", priority=3, labels={"a": "b"}
    )
    request.fairness_key = "tenant"
    await door.stub.StartRun(request)
    run = await execute(store, writer, "source")
    assert run.state == RunState.RUN_STATE_FAILED
    broken.clear()
    ran.clear()
    return run


async def test_retry_goes_on_from_what_failed(door: Door, store: Store, writer: LogWriter, failed: Run) -> None:  # noqa: F811
    """In a new run with the same input, labels and place in line; what had finished is not done again."""
    fork = (await door.stub.ForkRun(ForkRunRequest(run_id="source", from_failure=True))).run
    assert (fork.forked_from_run_id, fork.workflow, fork.state) == ("source", "blog", RunState.RUN_STATE_QUEUED)
    assert (dict(fork.labels), fork.priority, fork.fairness_key) == ({"a": "b"}, 3, "tenant")
    assert fork.HasField("input") is False
    waiting = (await door.stub.GetRun(GetRunRequest(run_id=fork.run_id))).run
    assert waiting.input == failed.input
    assert waiting.log.last_offset == fork.log.last_offset == 6
    ended = await execute(store, writer, fork.run_id)
    assert ended.output.data == b'{"topic":"tea","size":300000,"parts":["first","second"]}'
    assert ran == ["second"]
    events = await log_of(store, ended)
    assert told(events)[0] == "QUEUED"
    assert events[0].run_state_changed.reason == "forked from run source"
    assert [one.message for one in fold(events).statuses] == ["writes first", "writes second"]
    assert (await door.stub.GetRun(GetRunRequest(run_id="source"))).run == failed, "the source is as it was"


async def test_a_fork_lives_on_without_its_source(door: Door, store: Store, writer: LogWriter, failed: Run) -> None:  # noqa: F811
    """Blobs included; and nothing of what was copied is left lying about, or expires."""
    fork = (await door.stub.ForkRun(ForkRunRequest(run_id="source", from_failure=True, new_run_id="fork"))).run
    base, ref = store.place("default", "source")
    for key in await store.command("KEYS", f"{base}:{ref}:*"):
        await store.command("DEL", key)
    ended = await execute(store, writer, fork.run_id)
    assert ended.state == RunState.RUN_STATE_SUCCEEDED
    assert ran == ["second"]
    mine = [key for key in await all_keys(store) if "default/fork:" in key]
    assert not any(":fork:" in key for key in mine)
    assert [await store.command("PTTL", key) for key in mine] == [-1] * len(mine)


async def test_a_fork_from_the_start_has_nothing_of_its_source(
    door: Door,  # noqa: F811
    store: Store,
    writer: LogWriter,
    failed: Run,
) -> None:
    fork = (await door.stub.ForkRun(ForkRunRequest(run_id="source"))).run
    assert (fork.log.last_offset, fork.attempt, fork.forked_from_run_id) == (1, 0, "source")
    await execute(store, writer, fork.run_id)
    assert ran == ["first", "large", "second"]


async def test_a_fork_of_a_fork_is_a_fork(door: Door, store: Store, writer: LogWriter, failed: Run) -> None:  # noqa: F811
    """Names made from attempts do not meet: the second large value is not the first one's."""
    log = await log_of(store, failed)
    [at] = [event.component_id for event in log if event.component_started.name == "large"]
    one = (await door.stub.ForkRun(ForkRunRequest(run_id="source", component_id=at, new_run_id="one"))).run
    await execute(store, writer, one.run_id)
    assert ran == ["large", "second"]
    two = (await door.stub.ForkRun(ForkRunRequest(run_id="one", component_id=at, new_run_id="two"))).run
    await execute(store, writer, two.run_id)
    assert ran == ["large", "second"] * 2
    events = await log_of(store, Run(run_id="two", namespace="default"))
    assert fold(events).output["size"] == 300_000
    assert [event.attempt for event in events if event.HasField("attempt_started")] == [3]


async def test_a_fork_is_made_once_per_request_id(door: Door, store: Store, writer: LogWriter, failed: Run) -> None:  # noqa: F811
    """A repeat is answered also when its source is gone; the id stands for one source and place."""
    request = ForkRunRequest(run_id="source", from_failure=True, request_id="again")
    several = await asyncio.gather(*(door.stub.ForkRun(request) for _ in range(3)))
    assert {one.run.run_id for one in several} == {new_run_id("default", "again")}
    assert sorted(one.replayed for one in several) == [False, True, True]
    assert len(await log_of(store, several[0].run)) == 6
    base, ref = store.place("default", "source")
    await store.command("DEL", keys.run(base, ref))
    assert (await door.stub.ForkRun(request)).replayed
    failure = await refused(door.stub.ForkRun(ForkRunRequest(run_id="source", request_id="again")))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_what_cannot_be_forked_is_told(door: Door, store: Store, writer: LogWriter, failed: Run) -> None:  # noqa: F811
    """And leaves nothing behind."""
    await door.stub.StartRun(StartRunRequest(workflow="blog", input=Payload(data=b'{"topic": "a"}'), run_id="going"))
    before = await all_keys(store)
    going = await refused(door.stub.ForkRun(ForkRunRequest(run_id="going", new_run_id="new")))
    assert (going.reason, going.metadata) == ("RUN_STATE", {"state": "QUEUED"})
    missing = await refused(door.stub.ForkRun(ForkRunRequest(run_id="nobody", new_run_id="new")))
    assert missing.reason == "RUN_NOT_FOUND"
    unknown = await refused(door.stub.ForkRun(ForkRunRequest(run_id="source", component_id="xyz", new_run_id="new")))
    assert unknown.reason == "REQUEST_INVALID"
    assert "(large)" in unknown.violations["component_id"]
    both = ForkRunRequest(run_id="source", component_id="xyz", from_failure=True)
    assert (await refused(door.stub.ForkRun(both))).reason == "REQUEST_INVALID"
    other = ForkRunRequest(run_id="source", deployment="other", new_run_id="new")
    assert (await refused(door.stub.ForkRun(other))).reason == "DEPLOYMENT_NOT_FOUND"
    assert await all_keys(store) == before
    await execute(store, writer, "going")
    done = await refused(door.stub.ForkRun(ForkRunRequest(run_id="going", from_failure=True)))
    assert done.metadata == {"state": "SUCCEEDED"}, "nothing of it failed"


async def test_a_fork_runs_on_the_build_that_is_asked_for(door: Door, store: Store, failed: Run) -> None:  # noqa: F811
    await serve_workflow(store, deployment="fixed", executor="e2")
    fork = (await door.stub.ForkRun(ForkRunRequest(run_id="source", from_failure=True, deployment="fixed"))).run
    assert fork.deployment == "fixed"


@pytest.mark.usefixtures("one_partition")
async def test_what_a_fork_asks_of_others_is_asked_in_the_step_that_accepts_it(store: Store, runs: Runs) -> None:
    """Once; nobody is asked for a run that is not accepted."""
    base = keys.base(0)
    await store.call("stage", base, "default/new", "token", 60_000, 1, 1, b"\x1a\x00", 0, 0, 0)
    assert await runs.take(base, busy_s=60) == []
    staged = Staged("token", 3, 1, 4, errands=(b"one", b"two"))
    for _ in range(2):
        await runs.submit(a_run("new"), staged=staged)
    entries = await runs.take(base, busy_s=60)
    assert [(entry.kind, entry.run, entry.what) for entry in entries] == [
        ("errand", ("default", "new"), b"one"),
        ("errand", ("default", "new"), b"two"),
    ]


@pytest.mark.usefixtures("one_partition")
async def test_what_was_staged_in_vain_goes_by_itself(store: Store, runs: Runs) -> None:
    """And a piece that is sent again, its reply lost, is there once."""
    base = keys.base(0)
    piece = ("default/new", "token", 60_000, 1, 1, b"\x1a\x00", 1, "name", b"value", 1, "1-1", b"blob")
    first = await store.call("stage", base, *piece)
    assert await store.call("stage", base, *piece) == first
    assert first == len(b"\x1a\x00" + b"\x08\x01" + b"name" + b"value" + b"blob")
    staged = await store.command("KEYS", "*default/new:fork:token:*")
    assert len(staged) == 5
    for key in staged:
        assert 0 < await store.command("PTTL", key) <= 60_000
