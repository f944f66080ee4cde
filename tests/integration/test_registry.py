"""Which executors live, known by repetition, and which deployments serve what, which is remembered for longer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

import pytest
from tests.proxy import proxy_to
from tests.runlog import eventually

from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import Workflow
from onward_runlog import keys
from onward_runlog.connection import Connection
from onward_runlog.deployments import Deployments
from onward_runlog.errors import StoreUnavailable
from onward_runlog.registry import executors, promote, register, unregister
from onward_runlog.store import Store, open_store
from onward_runlog.subscription import messages


def executor(executor_id: str = "e1", deployment: str = "build", *workflows: str) -> Executor:
    served = [Workflow(name=name) for name in workflows or ("blog",)]
    return Executor(executor_id=executor_id, address="127.0.0.1:1", deployment=deployment, workflows=served, slots=4)


@pytest.fixture
async def deployments(store: Store) -> AsyncIterator[Deployments]:
    async with Deployments(store).following() as deployments:
        yield deployments


async def ids(store: Store) -> set[str]:
    return {executor.executor_id for executor in await executors(store)}


async def test_a_registered_executor_is_known_with_its_load(store: Store) -> None:
    """Its workflows are kept with its deployment, not with every one of its executors."""
    mine = executor()
    mine.running = 3
    await register(store, mine, ttl_s=60)
    [known] = await executors(store)
    assert (known.executor_id, known.address, known.slots, known.running) == ("e1", "127.0.0.1:1", 4, 3)
    assert not known.workflows


async def test_a_registration_lives_by_repetition(store: Store) -> None:
    """One that is not repeated dies, by the server's clock, and leaves nothing."""
    await register(store, executor("brief"), ttl_s=0.03)
    await register(store, executor("steady"), ttl_s=60)

    async def died() -> bool:
        return await ids(store) == {"steady"}

    await eventually(died)
    assert await store.command("HLEN", "onward:{registry}:executors") == 1
    await register(store, executor("brief"), ttl_s=60)
    assert await ids(store) == {"brief", "steady"}


async def test_who_unregisters_is_gone_at_once(store: Store) -> None:
    """Twice is no error."""
    await register(store, executor(), ttl_s=60)
    await unregister(store, "e1")
    await unregister(store, "e1")
    assert await ids(store) == set()


async def test_a_workflow_stays_known_while_no_executor_lives(store: Store, deployments: Deployments) -> None:
    """Its runs wait."""
    await register(store, executor(), ttl_s=60)
    await unregister(store, "e1")
    served = await deployments.choose("blog")
    assert served is not None
    assert (served.deployment, served.workflow.name) == ("build", "blog")


async def test_builds_that_nobody_serves_any_more_are_forgotten(store: Store, deployments: Deployments) -> None:
    """Beyond two hundred those go first that had no executor for longest; never one that had one within a day."""
    registry = "onward:{registry}"
    await register(store, executor("e", "quiet"), ttl_s=60)
    for number in range(200):
        await register(store, executor("e", f"build-{number}"), ttl_s=60)
    assert await store.command("HLEN", f"{registry}:workflows") == 201, "all of them were served of late"
    for age_ms, name in enumerate(("build-7", "quiet", "build-9")):
        await store.command("ZADD", f"{registry}:served", 1 + age_ms, name)
    await register(store, executor("e", "new"), ttl_s=60)
    for name in ("build-7", "quiet"):
        assert await deployments.choose("blog", name) is None
    for name in ("build-9", "build-8", "new"):
        assert await deployments.choose("blog", name) is not None
    for name in ("workflows", "deployments"):
        assert await store.command("HLEN", f"{registry}:{name}") == 200
    assert await store.command("ZCARD", f"{registry}:served") == 200


async def test_an_unknown_workflow_is_looked_up_before_it_is_refused(store: Store, deployments: Deployments) -> None:
    """It may have been registered a moment ago."""
    assert await deployments.choose("blog") is None
    await register(store, executor(), ttl_s=60)
    assert await deployments.choose("blog") is not None
    assert await deployments.choose("blog", "other") is None
    assert await deployments.choose("other") is None


async def test_new_runs_go_to_the_newest_deployment_that_lives(store: Store, deployments: Deployments) -> None:
    """Newest is who was first seen last; where none lives, the newest all the same; unless one is asked for."""
    await register(store, executor("e1", "old", "blog", "extra"), ttl_s=60)
    await store.command("HINCRBY", "onward:{registry}:deployments", "old", -1000)
    await register(store, executor("e2", "new"), ttl_s=60)

    async def chosen(deployment: str) -> bool:
        served = await deployments.choose("blog")
        return served is not None and served.deployment == deployment

    await eventually(lambda: chosen("new"))
    assert [list(workflow.deployments) for workflow in await deployments.all()] == [["new", "old"], ["old"]]
    pinned = await deployments.choose("blog", "old")
    assert pinned is not None
    assert pinned.deployment == "old"
    await unregister(store, "e2")
    await deployments.all()
    assert await chosen("old")
    await unregister(store, "e1")
    await deployments.all()
    assert await chosen("new")


async def test_a_change_while_the_registry_is_being_read_is_not_missed(
    redis_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is from before it, and is not believed for any time."""
    monkeypatch.setattr("onward_runlog.deployments.STALE_S", 3600.0)
    await register(store, executor("e1", "old"), ttl_s=60)
    async with (
        proxy_to(redis_url) as proxy,
        Connection(proxy.url).opened() as slow,
        contextlib.AsyncExitStack() as stack,
    ):
        changes = await stack.enter_async_context(aclosing(messages(redis_url, [f"{keys.REGISTRY}:wake"])))
        assert await anext(changes) is None
        far = Store(redis_url, slow, partitions=store.partitions, digest_key=store.digest_key)
        deployments = await stack.enter_async_context(Deployments(far).following())
        await far.command("PING")
        await store.command("CONFIG", "RESETSTAT")
        proxy.hold_replies()
        reading = asyncio.create_task(deployments.choose("blog"))

        async def is_read() -> bool:
            return b"cmdstat_hgetall:calls=3" in await store.command("INFO", "commandstats")

        async def is_followed() -> bool:
            [_, count] = await store.command("PUBSUB", "NUMSUB", f"{keys.REGISTRY}:wake")
            return int(count) == 2

        await eventually(is_read)
        await eventually(is_followed)
        await register(store, executor("e2", "new"), ttl_s=60)
        await promote(store, "new")
        assert await anext(changes) is not None
        assert await anext(changes) is not None
        await asyncio.wait([reading], timeout=0.05)
        proxy.flow()
        await reading
        served = await deployments.choose("blog")
        assert served is not None
        assert served.deployment == "new"


async def test_a_change_of_what_is_served_is_seen_at_once(
    store: Store, deployments: Deployments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry says so on its channel: nobody waits until what was read is stale, which it never is here."""
    monkeypatch.setattr("onward_runlog.deployments.STALE_S", 3600.0)
    await register(store, executor(), ttl_s=60)
    assert await deployments.choose("blog") is not None
    changed = executor()
    changed.workflows[0].description = "now with pictures"
    await register(store, changed, ttl_s=60)

    async def seen() -> bool:
        served = await deployments.choose("blog")
        return served is not None and served.workflow.description == "now with pictures"

    await eventually(seen)


async def test_what_was_read_once_serves_while_the_store_is_away(
    redis_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has read nothing yet says that the store is away."""
    await register(store, executor(), ttl_s=60)
    async with proxy_to(redis_url) as proxy, open_store(proxy.url) as far:
        deployments, blank = Deployments(far), Deployments(far)
        assert await deployments.choose("blog") is not None
        monkeypatch.setattr("onward_runlog.deployments.STALE_S", -1.0)
        monkeypatch.setattr("onward_runlog.connection.REPLY_TIMEOUT_S", 0.02)
        monkeypatch.setattr(far, "command", partial(far.connection.call, patience_s=0.05))
        proxy.stall()
        assert await deployments.choose("blog") is not None
        with pytest.raises(StoreUnavailable):
            await blank.choose("blog")
        proxy.flow()


async def test_a_read_that_fails_when_its_callers_have_gone_is_nobodys_error(
    redis_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller with a time limit gave up during an outage: asyncio wrote a traceback of an exception nobody saw."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    async with proxy_to(redis_url) as proxy, open_store(proxy.url) as far:
        monkeypatch.setattr("onward_runlog.connection.REPLY_TIMEOUT_S", 0.05)
        monkeypatch.setattr(far, "command", partial(far.connection.call, patience_s=0.05))
        proxy.stall()
        deployments = Deployments(far)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await deployments.choose("blog")
        with pytest.raises(StoreUnavailable):
            await far.command("PING")  # fails after what was asked before it
        await asyncio.sleep(0.1)
        gc.collect()
        proxy.flow()
    assert complaints == []
