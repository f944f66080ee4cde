"""ListRuns: newest first, each run once, whatever filters, ties and new runs do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import pytest
from tests.gateway import bare_redis, begun
from tests.runlog import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, a_run, append, listed_in

from onward.v1.event_pb2 import Event, RunStateChanged
from onward.v1.run_pb2 import Run, RunError
from onward_runlog import keys, listing
from onward_runlog.listing import Filter, Listing, Page, PageTokenInvalid
from onward_runlog.runs import Runs
from onward_runlog.store import Store


@pytest.fixture
def lister(store: Store) -> Listing:
    return Listing(store)


def wanted(**fields: Any) -> Filter:
    return Filter(**{"namespace": "default", "labels": {}, **fields})


async def submitted(runs: Runs, run_ids: Iterable[str], **fields: Any) -> list[Run]:
    """Submit one run after the other, so that their order is known."""
    return [(await runs.submit(a_run(run_id, **fields)))[0] for run_id in run_ids]


async def pages(lister: Listing, which: Filter, size: int) -> list[Page]:
    found = [await lister.page(which, size=size)]
    while found[-1].next_token:
        found.append(await lister.page(which, size=size, token=found[-1].next_token))
    return found


async def ids(lister: Listing, which: Filter, size: int = 7) -> list[str]:
    return [run.run_id for page in await pages(lister, which, size) for run in page.runs]


async def test_runs_come_newest_first_and_once(lister: Listing, runs: Runs) -> None:
    await submitted(runs, (f"r{i}" for i in range(60)))
    newest_first = [f"r{i}" for i in reversed(range(60))]
    for size in (1, 7, 59, 60, 61, 1_000):
        found = await pages(lister, wanted(), size)
        assert [run.run_id for page in found for run in page.runs] == newest_first
        assert all(len(page.runs) == size for page in found[:-1])
        assert len(found) == -(-60 // size), "the last full page says that it is the last"


async def test_a_listed_run_has_no_input_and_no_output(lister: Listing, store: Store) -> None:
    log = await begun(store)
    last = await log.close()
    [run] = (await lister.page(wanted(), size=10)).runs
    assert (run.state, run.attempt, run.workflow) == (SUCCEEDED, 1, "blog")
    assert (run.log.first_offset, run.log.last_offset, run.log.closed) == (1, last, True)
    assert run.HasField("create_time")
    assert run.HasField("end_time")
    assert not run.HasField("input")
    assert not run.HasField("output")


@pytest.mark.parametrize("what", ["labels", "errors"])
async def test_a_page_is_cut_where_its_runs_are_large(lister: Listing, runs: Runs, store: Store, what: str) -> None:
    """Clients take messages of 4 MiB."""
    error = RunError(reason="COMPONENT_FAILED", message="m" * 4_000, traceback="t" * 8_000)
    labels = {f"{number:02}" + "k" * 62: "v" * 256 for number in range(32)} if what == "labels" else {}
    for number in range(200):
        run, *_ = await runs.submit(a_run(f"r{number}", labels=labels), holder="h", ttl_s=60)
        if what == "errors":
            event = Event(run_state_changed=RunStateChanged(state=FAILED, error=error))
            await append(store, run, 1, 1, event, end=FAILED, error=error.SerializeToString())
    for which in (wanted(), wanted(workflow="blog")):
        found = await pages(lister, which, 1_000)
        assert [run.run_id for page in found for run in page.runs] == [f"r{number}" for number in reversed(range(200))]
        assert len(found) > 1
        for page in found:
            assert sum(run.ByteSize() for run in page.runs) <= listing.PAGE_BYTES_MAX
            assert len(page.runs) > 80 or page is found[-1], "no less than would do"


async def test_a_run_over_a_page_is_a_page(lister: Listing, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE_BYTES_MAX", 10)
    await submitted(runs, "abc")
    found = await pages(lister, wanted(), 50)
    assert [[run.run_id for run in page.runs] for page in found] == [["c"], ["b"], ["a"]]


async def test_nothing_is_listed_where_nothing_is(lister: Listing, runs: Runs) -> None:
    assert await pages(lister, wanted(), 10) == [Page([], "")]
    await submitted(runs, ["r"])
    assert await ids(lister, wanted(namespace="other")) == []
    assert await ids(lister, wanted(workflow="other")) == []


async def test_each_filter_and_all_together(lister: Listing, runs: Runs, store: Store) -> None:
    await submitted(runs, ["plain"])
    await submitted(runs, ["tea1", "tea2"], workflow="tea", labels={"user": "ann", "tier": "gold"})
    await submitted(runs, ["tea3"], workflow="tea", labels={"user": "bob", "tier": "gold"})
    await submitted(runs, ["child"], parent_run_id="tea1", labels={"user": "ann"})
    await submitted(runs, ["theirs"], namespace="other", workflow="tea")
    await runs.cancel("default", "tea2", "")
    assert await ids(lister, wanted(workflow="tea")) == ["tea3", "tea2", "tea1"]
    assert await ids(lister, wanted(labels={"user": "ann"})) == ["child", "tea2", "tea1"]
    assert await ids(lister, wanted(labels={"user": "ann", "tier": "gold"})) == ["tea2", "tea1"]
    assert await ids(lister, wanted(parent_run_id="tea1")) == ["child"]
    assert await ids(lister, wanted(states=frozenset({CANCELLED}))) == ["tea2"]
    assert await ids(lister, wanted(states=frozenset({QUEUED, CANCELLED}))) == [
        "child",
        "tea3",
        "tea2",
        "tea1",
        "plain",
    ]
    everything = wanted(workflow="tea", states=frozenset({QUEUED, RUNNING}), labels={"tier": "gold", "user": "ann"})
    assert await ids(lister, everything) == ["tea1"]
    assert await ids(lister, wanted(namespace="other")) == ["theirs"]


async def test_labels_that_look_alike_are_kept_apart(lister: Listing, runs: Runs) -> None:
    await submitted(runs, ["one"], labels={"a=b": "c"})
    await submitted(runs, ["two"], labels={"a": "b=c"})
    assert await ids(lister, wanted(labels={"a=b": "c"})) == ["one"]
    assert await ids(lister, wanted(labels={"a": "b=c"})) == ["two"]


async def test_runs_of_the_same_microsecond(lister: Listing, runs: Runs, store: Store, redis_url: str) -> None:
    """A page may end, and an index be cut, in the middle of a tie."""
    made = await submitted(runs, (f"r{i:03}" for i in range(120)))
    async with bare_redis(redis_url) as redis:
        for i, run in enumerate(made):
            base, _ = store.place("default", run.run_id)
            for name in await listed_in(store, run):
                await redis.zadd(keys.index(base, "default", name), {run.run_id: 1_000_000 + i // 100})
    expected = [f"r{i:03}" for i in reversed(range(100, 120))] + [f"r{i:03}" for i in reversed(range(100))]
    for size in (1, 3, 17, 120):
        assert await ids(lister, wanted(), size) == expected


async def test_new_runs_do_not_disturb_a_listing_under_way(lister: Listing, runs: Runs) -> None:
    await submitted(runs, (f"old{i}" for i in range(30)))
    seen: list[str] = []
    page = await lister.page(wanted(), size=4)
    for i in range(100):
        seen += [run.run_id for run in page.runs]
        if not page.next_token:
            break
        await submitted(runs, [f"new{i}"])
        page = await lister.page(wanted(), size=4, token=page.next_token)
    assert seen == [f"old{i}" for i in reversed(range(30))]


async def test_runs_that_change_their_state_meanwhile_are_listed_once(
    lister: Listing, runs: Runs, store: Store, redis_url: str
) -> None:
    """A run may stand in the indexes of two states while these are read one after the other."""
    [run] = await submitted(runs, ["moving"])
    base, _ = store.place("default", "moving")
    async with bare_redis(redis_url) as redis:
        score = await redis.zscore(keys.index(base, "default", keys.by_state(QUEUED)), "moving")
        await redis.zadd(keys.index(base, "default", keys.by_state(RUNNING)), {"moving": score})
    assert run.run_id == "moving"
    assert await ids(lister, wanted(states=frozenset({QUEUED, RUNNING}))) == ["moving"]
    assert await ids(lister, wanted(states=frozenset({RUNNING}))) == [], "the record is the truth"


async def test_a_run_that_was_deleted_meanwhile_is_left_out(
    lister: Listing, runs: Runs, store: Store, redis_url: str
) -> None:
    await submitted(runs, ["a", "b", "c"])
    base, ref = store.place("default", "b")
    async with bare_redis(redis_url) as redis:
        await redis.delete(keys.run(base, ref))
    assert await ids(lister, wanted(), 1) == ["c", "a"]


async def test_a_filter_that_keeps_little_costs_little_a_page(
    lister: Listing, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no index is small, a page ends when enough was examined, and says that there is more."""
    monkeypatch.setattr(listing, "EXAMINED_MAX", 2)
    monkeypatch.setattr(listing, "EXAMINED_AT_ONCE", 1)
    for i in range(40):
        await submitted(runs, [f"r{i}"], workflow="tea", labels={"parity": str(i % 2), "third": str(i % 3)})
    which = wanted(workflow="tea", labels={"parity": "0", "third": "0"})
    found = await pages(lister, which, 3)
    assert [run.run_id for page in found for run in page.runs] == [f"r{i}" for i in reversed(range(0, 40, 6))]
    assert len(found) > 2
    assert any(len(page.runs) < 3 for page in found[:-1])


async def test_a_page_reads_what_it_shows_and_little_more(
    lister: Listing, runs: Runs, store: Store, redis_url: str
) -> None:
    await asyncio.gather(*(runs.submit(a_run(f"r{i}", workflow="tea")) for i in range(2_000)))
    await submitted(runs, ["rare"], workflow="tea", labels={"rare": "1"})
    async with bare_redis(redis_url) as redis:

        async def commands() -> dict[str, int]:
            stats = await redis.info("commandstats")
            return {name.removeprefix("cmdstat_"): values["calls"] for name, values in stats.items()}

        before = await commands()
        page = await lister.page(wanted(), size=50)
        after = await commands()
        assert len(page.runs) == 50
        assert after["hmget"] - before["hmget"] == 50
        assert after["zrevrangebyscore"] - before.get("zrevrangebyscore", 0) <= 2 * store.partitions
        assert "scan" not in after
        before = after
        which = wanted(workflow="tea", labels={"rare": "1"}, states=frozenset({QUEUED}))
        assert await ids(lister, which) == ["rare"]
        after = await commands()
        assert after["hmget"] - before["hmget"] == 1, "the smallest index was taken"


async def test_page_tokens_are_of_one_listing(lister: Listing, runs: Runs) -> None:
    await submitted(runs, ["a", "b", "c"])
    token = (await lister.page(wanted(), size=1)).next_token
    for which in (wanted(workflow="blog"), wanted(labels={"a": "b"}), wanted(namespace="other")):
        with pytest.raises(PageTokenInvalid, match="other filters"):
            await lister.page(which, size=1, token=token)
    for bad in ("nonsense!", "é", token[:-2], "B" + token[1:], "AAAA"):
        with pytest.raises(PageTokenInvalid):
            await lister.page(wanted(), size=1, token=bad)
    assert [run.run_id for run in (await lister.page(wanted(), size=5, token=token)).runs] == ["b", "a"]


async def test_random_listings_are_what_a_plain_filter_gives(lister: Listing, runs: Runs) -> None:
    chance = random.Random(7)
    made: list[Run] = []
    for i in range(80):
        fields: dict[str, Any] = {
            "workflow": chance.choice(["tea", "coffee"]),
            "labels": {key: chance.choice("xy") for key in "ab" if chance.random() < 0.7},
            "parent_run_id": chance.choice(["", "p"]),
        }
        made += await submitted(runs, [f"r{i}"], **fields)
        if chance.random() < 0.3:
            made[-1], _ = await runs.cancel("default", f"r{i}", "")
    for _ in range(40):
        which = wanted(
            workflow=chance.choice(["", "tea", "coffee"]),
            labels={key: chance.choice("xy") for key in "ab" if chance.random() < 0.4},
            parent_run_id=chance.choice(["", "p"]),
            states=frozenset(chance.sample([QUEUED, CANCELLED, SUCCEEDED], chance.randrange(3))),
        )
        expected = [run.run_id for run in reversed(made) if which.keeps(run)]
        assert await ids(lister, which, chance.choice([1, 5, 100])) == expected
