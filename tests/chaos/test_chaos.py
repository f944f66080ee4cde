"""Fifty runs under chaos, of `make chaos`'s thousand; and the checker finds what is planted in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.chaos import workload
from tests.chaos.__main__ import chaos
from tests.chaos.driver import of_all_runs, of_cache
from tests.proxy import proxy_to
from tests.runlog import a_run

from onward import testing
from onward.cache import Owner
from onward.engine import Attempt
from onward.flights import Flight
from onward.memory import MemoryCache, MemoryPermits
from onward.v1.event_pb2 import ATTEMPT_CAUSE_EXECUTOR_LOST, ATTEMPT_CAUSE_STARTED, Event
from onward.v1.run_pb2 import Payload
from onward_runlog import keys
from onward_runlog import store as store_module
from onward_runlog.runs import Runs
from onward_runlog.store import Store, open_store
from onward_runlog.writer import LogWriter

SEED = 7


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("chaos")
async def test_fifty_runs_come_through_chaos(tmp_path: Path) -> None:
    """No lost run, no hole, no duplicate, no zombie byte; raw = settled = output = what an undisturbed run shows."""
    tally = await chaos(SEED, 50, folder=tmp_path, details=True)
    assert not tally.findings, "\n".join(map(str, tally.findings))
    assert tally.runs == 50
    assert tally.faults.total() >= 5
    assert tally.attempts > 50, "nobody was hurt"


def test_a_seed_is_a_workload_and_its_faults() -> None:
    """The same again from the same seed; another one from another."""
    one, again, other = (workload.script(seed, races=True) for seed in ("7-1", "7-1", "7-2"))
    assert one == again
    assert one != other


# Bugs in what runs share


def failures_that_are_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flight, "release", lambda self: self.keep(b'"poison"'))


def values_that_nobody_made(patch: pytest.MonkeyPatch) -> None:
    keep = MemoryCache.keep

    def other(self: MemoryCache, key: str, owner: Owner, value: bytes, ttl_s: float) -> None:
        keep(self, key, owner, b'"{{7+1#00000000}}"', ttl_s)

    patch.setattr(MemoryCache, "keep", other)


def permits_for_everybody(patch: pytest.MonkeyPatch) -> None:
    async def acquire(self: MemoryPermits, name: str, limit: int, holder: str) -> Callable[[], None]:
        return lambda: None

    patch.setattr(MemoryPermits, "acquire", acquire)


SHARING_BUGS: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    failures_that_are_kept: "done once",
    values_that_nobody_made: "acknowledged before used",
    permits_for_everybody: "nothing is unbounded",
}


@pytest.mark.parametrize("bug", [None, *SHARING_BUGS], ids=lambda bug: bug.__name__ if bug else "none")
async def test_what_is_planted_in_what_runs_share_is_found(
    bug: Callable[[pytest.MonkeyPatch], None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that keeps a failure, or gives what nobody made; and more at once than may be."""
    if bug is not None:
        bug(monkeypatch)
    steps: list[workload.Step] = [["map", [["pause", 1]]], ["shared", "7+1"], ["unkept", "7+1"]]
    steps.append(["keyed", [["parallel", [["scarce"]], [["scarce"]]]]])
    with workload.keeping(tmp_path), testing.one_cache(), testing.no_replay():
        results = [await testing.run(workload.scripted, steps) for _ in range(2)]
        made = workload.all_made()
        found = [*of_all_runs(), *(each for result in results for each in of_cache("r", result.events, made))]
        assert sum(event.component_finished.cached for event in results[1].events) >= 1
    if bug is None:
        assert not found, [str(one) for one in found]
    else:
        assert SHARING_BUGS[bug] in {one.invariant for one in found}, [str(one) for one in found]


_FINISHED = b"\x08\x01\x12"
"""In the bytes of a ComponentFinished alone: OUTCOME_OK, and then an output."""


# Bugs in the store's functions


def no_fence(source: str) -> str:
    return source.replace("elseif attempt ~= held or run[3] == '' then", "elseif false then").replace(
        "local expected = tonumber(run[4])", "local expected = seq - 1"
    )


def no_sequence(source: str) -> str:
    return source.replace("local expected = tonumber(run[4])", "local expected = seq - 1")


def offsets_of_the_writer(source: str) -> str:
    return source.replace("events[i] .. '\\8' .. varint(offset) .. tail", "events[i] .. tail")


def nothing_is_closed(source: str) -> str:
    return no_fence(source).replace("elseif terminal(state) then", "elseif false then")


STORE_BUGS: dict[Callable[[str], str], str] = {
    no_fence: "one writer",
    no_sequence: "done once",
    offsets_of_the_writer: "dense offsets",
    nothing_is_closed: "one end",
}


@pytest.mark.parametrize("bug", [None, *STORE_BUGS], ids=lambda bug: bug.__name__ if bug else "none")
async def test_what_is_planted_in_the_store_is_found(
    bug: Callable[[str], str] | None, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zombie that goes on beside its successor, and replies that are lost: harmless, but with a bug in a function."""
    source = store_module.library()
    if bug is not None:
        assert bug(source) != source
        monkeypatch.setattr(store_module, "library", lambda: bug(source))
    with workload.keeping(tmp_path):
        events = await _haunted(redis_url)
        found = testing.check(events, effects=workload.effects("haunted"), marks=workload.MARKS)
    if bug is None:
        assert not found, [str(one) for one in found]
    else:
        assert STORE_BUGS[bug] in {one.invariant for one in found}, [str(one) for one in found]


async def _haunted(url: str) -> list[Event]:
    """Return the log of a run whose first attempt goes on after it was replaced, as replies to the second are lost."""
    steps = [["call", [["status", "a"], ["pause", 20]]], ["stream", [["pause", 20]] * 3], ["thread"], ["thread"]]
    run = a_run("haunted", data=b"", workflow="scripted")
    data = workload.scripted.signature.dump_input({"steps": steps})
    assert data is not None
    run.input.CopyFrom(Payload(data=data, size=len(data)))
    async with proxy_to(url) as proxy, open_store(url) as one, open_store(proxy.url) as other:
        runs = Runs(one)
        _, _, taken = await runs.submit(run, holder="e1", ttl_s=60)
        assert taken is not None
        async with LogWriter(one).opened() as first, LogWriter(other).opened() as second:

            async def attempt(writer: LogWriter, number: int, holder: str) -> None:
                log = writer.log(run.namespace, run.run_id, number)
                cause = ATTEMPT_CAUSE_STARTED if number == 1 else ATTEMPT_CAUSE_EXECUTOR_LOST
                await Attempt(
                    workload.scripted,
                    run=run,
                    log=log,
                    attempt=number,
                    cause=cause,
                    executor_id=holder,
                    deployment=run.deployment,
                ).run()

            zombie = asyncio.create_task(attempt(first, 1, "e1"))
            await _until(one, "call")
            await runs.lose(run.namespace, run.run_id, 1, "lost")
            base, _ = one.place(run.namespace, run.run_id)
            [again] = await runs.claim(base, run.deployment, holder="e2", ttl_s=60, limit=1)
            proxy.lose_reply(_FINISHED, 2)
            async with asyncio.timeout(20):
                await asyncio.gather(zombie, attempt(second, again.attempt, "e2"), return_exceptions=True)
        return await _log(one)


async def _log(store: Store) -> list[Event]:
    base, ref = store.place("default", "haunted")
    return [Event.FromString(fields[1]) for _, fields in await store.command("XRANGE", keys.log(base, ref), "-", "+")]


async def _until(store: Store, name: str) -> None:
    """Wait until a component has begun."""
    async with asyncio.timeout(10):
        while True:
            for event in await _log(store):
                if event.component_started.name == name:
                    return
            await asyncio.sleep(0.002)
