"""Hooks: a run's end and its pauses are told at least once, whatever the receiver does, and nothing waits for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import httpx2
import pytest
from tests.runlog import PAUSED, a_run, all_keys, append, ended, eventually

from onward import workflow
from onward.v1.errand_pb2 import Errand
from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import StartRunRequest, Workflow
from onward.v1.run_pb2 import Run
from onward.v1.scheduler_service_pb2 import StopRunRequest, SubmitRunRequest
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from onward_runlog import keys, registry
from onward_runlog.errors import QueueFull, RunNotFound
from onward_runlog.runs import Entry, Runs
from onward_runlog.store import Store
from onward_scheduler import app
from onward_scheduler.notifying import Notifier, signature, signing_key
from onward_scheduler.outbox import ERRAND, HOOK, Care, Later, Outbox
from onward_scheduler.settings import Settings

pytestmark = pytest.mark.usefixtures("one_partition")

BASE = keys.base(0)
KEY = base64.b64encode(b"a secret of 24 bytes ...").decode()


class Receiver:
    """An HTTP server that keeps what it gets, and answers with the next of these."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.url = ""
        self.away = ""
        """Where a redirect leads."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.got.append((head[0], headers, body))
        answer = self.answers.pop(0) if self.answers else 204
        away = f"location: {self.away}\r\n" if self.away else ""
        writer.write(f"HTTP/1.1 {answer} so\r\n{away}content-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, body in self.got]

    async def has(self, count: int) -> None:
        async def there() -> bool:
            return len(self.got) >= count

        await eventually(there)


@contextlib.asynccontextmanager
async def receiver(*answers: int) -> AsyncIterator[Receiver]:
    made = Receiver(*answers)
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        yield made


@pytest.fixture
async def scheduler(redis_url: str, store: Store) -> AsyncIterator[SchedulerServiceStub]:
    settings = Settings(redis_url=redis_url, listen="127.0.0.1:0", webhook_secret=f"whsec_{KEY}")
    async with app.opened(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        yield SchedulerServiceStub(channel)


async def serve(store: Store, *workflows: Workflow) -> None:
    executor = Executor(executor_id="e1", deployment="build", address="127.0.0.1:1", workflows=workflows)
    await registry.register(store, executor, ttl_s=60)


async def never(request: SubmitRunRequest) -> tuple[Run, bool]:
    raise AssertionError


async def start(scheduler: Any, run_id: str = "run", workflow: str = "blog") -> Run:
    start = StartRunRequest(workflow=workflow, run_id=run_id, labels={"team": "tea"})
    run: Run = (await scheduler.SubmitRun(SubmitRunRequest(namespace="default", start=start))).run
    return run


async def left(store: Store) -> list[str]:
    """What is in the outbox, or about it."""
    return [key for key in await all_keys(store) if ":outbox" in key or ":hooks" in key]


async def is_empty(store: Store) -> bool:
    return await left(store) == []


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for the next try does not wait long."""
    monkeypatch.setattr("onward_scheduler.outbox.AGAIN_FIRST_S", 0.01)
    monkeypatch.setattr("onward_scheduler.app.HOOK", replace(HOOK, again_max_s=0.01))
    monkeypatch.setattr("onward_scheduler.outbox.LOOK_S", 0.02)


@pytest.fixture
def soon_given_up(soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onward_scheduler.app.HOOK", replace(HOOK, again_max_s=0.01, tries_max=3))


@pytest.fixture
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onward_scheduler.outbox.DOING_MAX", 2)


async def test_the_end_of_a_run_is_told_signed(store: Store, scheduler: Any) -> None:
    """With an id for repeats, the time and a signature over both and the body, as Standard Webhooks says."""
    async with receiver() as hook:
        await serve(store, Workflow(name="blog", on_run_end=[hook.url], on_run_paused=["http://127.0.0.1:1/never"]))
        run = await start(scheduler)
        await scheduler.StopRun(StopRunRequest(namespace="default", run_id=run.run_id))
        await hook.has(1)
        [(line, headers, body)] = hook.got
        assert line == "POST /hook HTTP/1.1"
        told = json.loads(body)
        assert told["type"] == "run.ended"
        data = told["data"]
        assert (data["run_id"], data["workflow"], data["state"]) == ("run", "blog", "CANCELLED")
        assert data["labels"] == {"team": "tea"}
        assert {"create_time", "end_time"} <= data.keys()
        message = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.digest(base64.b64decode(KEY), message, hashlib.sha256)).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        await eventually(lambda: is_empty(store))


def test_a_signature_is_that_of_the_specification() -> None:
    """The example of Standard Webhooks' own libraries."""
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected
    assert signing_key("plain") == b"plain"
    with pytest.raises(ValueError, match="base64"):
        signing_key("whsec_???")


@pytest.mark.usefixtures("soon")
async def test_a_receiver_that_fails_is_asked_again_with_the_same_id(store: Store, scheduler: Any) -> None:
    """An error, and a redirect, which is not followed; another hook of the run is told meanwhile, and once."""
    async with receiver(500, 307) as failing, receiver() as sound:
        failing.away = sound.url
        await serve(store, Workflow(name="blog", on_run_end=[failing.url, sound.url]))
        await start(scheduler)
        await scheduler.StopRun(StopRunRequest(namespace="default", run_id="run"))
        await failing.has(3)
        await eventually(lambda: is_empty(store))
        assert len({headers["webhook-id"] for _, headers, _ in failing.got}) == 1
        assert len(failing.got) == 3
        assert len(sound.got) == 1


@pytest.mark.usefixtures("soon_given_up")
async def test_who_never_answers_is_given_up_and_holds_up_nothing(store: Store, scheduler: Any) -> None:
    await serve(store, Workflow(name="blog", on_run_end=["http://127.0.0.1:1/"]))
    await start(scheduler)
    await scheduler.StopRun(StopRunRequest(namespace="default", run_id="run"))
    await eventually(lambda: is_empty(store))


async def test_nobody_is_told_of_a_run_that_is_past_its_retention(runs: Runs) -> None:
    """Nothing is left to tell, and nothing is wrong."""
    async with httpx2.AsyncClient() as http:
        notifier = Notifier(runs, never, http, b"")
        with pytest.raises(RunNotFound):
            await notifier.tell(Entry(BASE, "end.1:default/gone", b"", 1))


async def test_what_a_receiver_answers_is_not_read(store: Store, scheduler: Any) -> None:
    """Only whether it took the message counts: an answer without end is no reason to wait or to tell it again."""
    told = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        told.set()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not reader.at_eof():
                writer.write(bytes(65536))
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        await serve(store, Workflow(name="blog", on_run_end=[url]))
        await start(scheduler)
        await scheduler.StopRun(StopRunRequest(namespace="default", run_id="run"))
        async with asyncio.timeout(5):
            await told.wait()
        await eventually(lambda: is_empty(store), within_s=5)


@pytest.mark.usefixtures("two_at_once")
async def test_who_hangs_is_in_the_way_of_no_run_that_asks_for_another(store: Store, scheduler: Any) -> None:
    """Sixty ends are told to a receiver that takes them and says nothing: a child starts meanwhile."""
    hung: list[asyncio.StreamWriter] = []

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hung.append(writer)

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        await serve(store, Workflow(name="blog", on_run_end=[url]), Workflow(name="part"))
        for number in range(60):
            await start(scheduler, f"run-{number}")
            await scheduler.StopRun(StopRunRequest(namespace="default", run_id=f"run-{number}"))
        runs = Runs(store)
        parent, _, _ = await runs.submit(a_run("parent"), holder="hand", ttl_s=60)
        child = StartRunRequest(workflow="part", run_id="child")
        errand = Errand(start_child=SubmitRunRequest(start=child, depth=1))
        await append(store, parent, 1, 1, outbox=[errand.SerializeToString()])

        async def is_started() -> bool:
            return await runs.state("default", "child") is not None

        await eventually(is_started)
        assert hung
        for writer in hung:
            writer.close()


async def test_each_pause_is_told(store: Store, scheduler: Any) -> None:
    """With the reason; a second pause is another message."""
    async with receiver() as hook:
        await serve(store, Workflow(name="blog", on_run_paused=[hook.url]))
        run = await start(scheduler)
        runs = Runs(store)
        for attempt in (1, 2):
            await runs.claim(BASE, "build", holder="hand", ttl_s=60, limit=1)
            error = b"\n\tLOG_LIMIT"
            await append(store, run, attempt, 1, ended(PAUSED), end=PAUSED, error=error)
            await hook.has(attempt)
            await runs.resume("default", "run")
        assert [told["type"] for told in hook.documents()] == ["run.paused"] * 2
        assert hook.documents()[0]["data"]["error"] == {"reason": "LOG_LIMIT"}
        assert len({headers["webhook-id"] for _, headers, _ in hook.got}) == 2


async def test_a_run_that_dies_into_a_pause_is_told(store: Store, scheduler: Any) -> None:
    async with receiver() as hook:
        await serve(store, Workflow(name="blog", on_run_paused=[hook.url]))
        run = await start(scheduler)
        runs = Runs(store)
        for attempt, queue in enumerate(("build", "build", keys.alone("build")), 1):
            await runs.claim(BASE, queue, holder="hand", ttl_s=60, limit=1)
            await append(store, run, attempt, 1)
            await runs.lose("default", "run", attempt, "lost")
        await hook.has(1)
        assert hook.documents()[0]["data"]["error"]["reason"] == "EXECUTOR_LOST"


async def test_a_workflow_is_started_with_the_run(store: Store, scheduler: Any) -> None:
    """Once, however often the entry is done; and of its own end nobody is told."""
    await serve(
        store,
        Workflow(name="blog", on_run_end=["announce"]),
        Workflow(name="announce", on_run_end=["announce"]),
    )
    await start(scheduler)
    await scheduler.StopRun(StopRunRequest(namespace="default", run_id="run"))
    runs = Runs(store)

    async def is_started() -> bool:
        return bool(await store.command("ZCARD", keys.index(BASE, "default", keys.by_workflow("announce"))))

    await eventually(is_started)
    await eventually(lambda: is_empty(store))
    await store.command("ZADD", f"{BASE}:hooks", 1, "end.1:default/run")
    await eventually(lambda: is_empty(store))
    [run_id] = await store.command("ZRANGE", keys.index(BASE, "default", keys.by_workflow("announce")), 0, -1)
    announced = await runs.get("default", run_id.decode())
    assert json.loads(announced.input.data)["run"]["state"] == "CANCELLED"
    await scheduler.StopRun(StopRunRequest(namespace="default", run_id=announced.run_id))
    assert await is_empty(store)


async def test_an_operator_is_told_of_every_run(redis_url: str, store: Store) -> None:
    """Beside those that the workflow names, and each once."""
    async with receiver() as everything, receiver() as own:
        settings = Settings(redis_url=redis_url, listen="127.0.0.1:0", on_run_end=(everything.url, own.url))
        await serve(store, Workflow(name="blog", on_run_end=[own.url]))
        async with app.opened(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = SchedulerServiceStub(channel)
            await start(stub)
            await stub.StopRun(StopRunRequest(namespace="default", run_id="run"))
            await everything.has(1)
            await own.has(1)
            await eventually(lambda: is_empty(store))
            assert (len(everything.got), len(own.got)) == (1, 1)
            assert "webhook-signature" not in own.got[0][1], "without a secret there is nothing to sign with"


def test_a_workflow_says_who_is_told() -> None:
    @workflow
    async def announce(run: dict[str, Any]) -> None: ...

    @workflow.run_timeout("1h").on_run_end("https://example.com/hook", announce)
    async def blog() -> None: ...

    told = blog.on_run_paused("announce").to_proto()
    assert (list(told.on_run_end), list(told.on_run_paused)) == (["https://example.com/hook", "announce"], ["announce"])
    assert told.run_timeout.seconds == 3600
    assert list(blog.retry(2).to_proto().on_run_end) == list(told.on_run_end)
    with pytest.raises(ValueError, match="ftp"):
        blog.on_run_end("ftp://example.com")


# The outbox itself


Handled = Callable[[Entry], Awaitable[None]]

SOON = replace(ERRAND, again_max_s=0.01)


@contextlib.asynccontextmanager
async def emptying(store: Store, handle: Handled, care: Care = SOON) -> AsyncIterator[None]:
    outbox = Outbox(store, Runs(store), care, {"errand": handle})
    tasks = [asyncio.create_task(outbox.empty_for_ever()), asyncio.create_task(outbox.listen())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("error", [Later("not now"), QueueFull("full")])
async def test_an_entry_of_an_append_is_done_until_it_works_out(store: Store, error: Exception) -> None:
    """It is there with the events, once though the append is repeated, and holds up no other."""
    run, _, _ = await Runs(store).submit(a_run(), holder="hand", ttl_s=60)
    for _ in range(2):
        await append(store, run, 1, 1, outbox=[b"one", b"two"])
    done: list[tuple[bytes, int]] = []

    async def handle(entry: Entry) -> None:
        done.append((entry.what, entry.tries))
        assert entry.run == ("default", "run")
        if entry.what == b"one" and entry.tries < 3:
            raise error

    async with emptying(store, handle):
        await eventually(lambda: is_empty(store))
    assert sorted(done) == [(b"one", 1), (b"one", 2), (b"one", 3), (b"two", 1)]


@pytest.mark.usefixtures("soon")
async def test_what_cannot_be_done_is_left(store: Store) -> None:
    run, _, _ = await Runs(store).submit(a_run(), holder="hand", ttl_s=60)
    await append(store, run, 1, 1, outbox=[b"one"])

    async def handle(entry: Entry) -> None:
        raise RunNotFound("gone")

    async with emptying(store, handle):
        await eventually(lambda: is_empty(store))


@pytest.mark.usefixtures("soon")
async def test_what_runs_ask_of_each_other_is_not_given_up_for_a_bug(store: Store) -> None:
    """A run would wait for ever: a Scheduler without the bug does it."""
    run, _, _ = await Runs(store).submit(a_run(), holder="hand", ttl_s=60)
    await append(store, run, 1, 1, outbox=[b"one"])

    async def handle(entry: Entry) -> None:
        if entry.tries < 3:
            raise ValueError("a bug")

    async with emptying(store, handle):
        await eventually(lambda: is_empty(store))


async def test_an_entry_belongs_to_one_scheduler_at_a_time(store: Store) -> None:
    run, _, _ = await Runs(store).submit(a_run(), holder="hand", ttl_s=60)
    await append(store, run, 1, 1, outbox=[b"one", b"two", b"three"])
    runs = Runs(store)
    taken = await asyncio.gather(*(runs.take(BASE, busy_s=60) for _ in range(4)))
    assert sorted(entry.what for entries in taken for entry in entries) == [b"one", b"three", b"two"]
    assert await runs.take(BASE, busy_s=60) == []


async def test_a_refused_append_posts_nothing(store: Store) -> None:
    run, _, _ = await Runs(store).submit(a_run(), holder="hand", ttl_s=60)
    await append(store, run, 2, 1, outbox=[b"zombie"])
    await append(store, run, 1, 2, outbox=[b"jump"])
    assert await is_empty(store)


async def test_the_end_of_a_run_that_has_kin_is_posted(store: Store) -> None:
    """A child's, and that of a run that has asked something of another; of others nothing is."""
    runs = Runs(store)
    for run in (a_run("alone"), a_run("child", parent_run_id="mother")):
        await runs.submit(run)
        await runs.cancel("default", run.run_id, "")
    asking, _, _ = await runs.submit(a_run("asking"), holder="hand", ttl_s=60)
    await append(store, asking, 1, 1, outbox=[b"x"])
    await append(store, asking, 1, 2, ended(), end=6)
    posted = [entry.id for entry in await runs.take(BASE, busy_s=60)]
    assert sorted(posted) == ["ended:default/asking", "ended:default/child", "errand.1.1.1:default/asking"]
