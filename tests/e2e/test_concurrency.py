"""How many of a component run at once, over real processes: by a ledger that they all write to."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from tests.e2e.suite import running_suite
from tests.runlog import eventually

LIMIT, RUNS, CALLS = 3, 6, 5


def most_at_once(ledger: Path) -> int:
    """Read who began and ended, in the order in which they wrote; who was killed ended then."""
    running: Counter[str] = Counter()
    most = 0
    for line in ledger.read_text().splitlines():
        what, process = line.split()
        if what == "killed":
            running[process] = 0
        else:
            running[process] += 1 if what == "begin" else -1
        most = max(most, running.total())
    assert running.total() == 0
    return most


@pytest.mark.parametrize("killed", [False, True])
async def test_executors_never_run_more_than_the_limit_at_once(tmp_path: Path, killed: bool) -> None:
    """Of each tenant. kill -9 of an executor that holds permits, and they come back; every call has its turn."""
    ledgers = {tenant: tmp_path / f"ledger-{tenant}" for tenant in "ab"}
    async with (
        running_suite(tmp_path / "data", executors=2, executor_options=["--slots=12"]) as suite,
        suite.client() as client,
    ):
        runs = [
            await client.start("limited", {"directory": str(tmp_path), "tenant": tenant})
            for _ in range(RUNS)
            for tenant in ledgers
        ]

        async def full() -> bool:
            return all(ledger.exists() and ledger.read_text().count("begin") == LIMIT for ledger in ledgers.values())

        await eventually(full)
        if killed:
            holder = ledgers["a"].read_text().split()[1]
            await suite.kill(next(child for child in suite.executors if str(child.pid) == holder))
            for ledger in ledgers.values():
                with ledger.open("a") as file:
                    file.write(f"killed {holder}\n")
        (tmp_path / "go").touch()
        async with asyncio.timeout(50):
            outputs = await asyncio.gather(*(run.result() for run in runs))
        assert outputs == [sum(range(CALLS))] * len(runs)
    for ledger in ledgers.values():
        assert most_at_once(ledger) == LIMIT
        assert ledger.read_text().count("end") >= RUNS * CALLS
