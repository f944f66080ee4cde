"""What runs share, on real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.e2e.suite import running_suite
from tests.e2e.test_faults import holder_of
from tests.runlog import eventually


@pytest.mark.parametrize("killed", [False, True])
async def test_executors_make_a_shared_result_once(tmp_path: Path, killed: bool) -> None:
    """Runs on two executors wait for the one that makes it; kill -9 of its executor, and its next attempt does."""
    made = tmp_path / "made"
    async with (
        running_suite(tmp_path / "data", executors=2, executor_options=["--slots=3"]) as suite,
        suite.client() as client,
    ):
        first = await client.start("share", {"directory": str(tmp_path)})

        async def begun() -> bool:
            return made.exists()

        await eventually(begun)
        holder = (await client.get(first.run_id)).executor_id
        runs = [first, *[await client.start("share", {"directory": str(tmp_path)}) for _ in range(2)]]
        for run in runs:
            async for event in run.follow():
                if event.HasField("component_started"):
                    break
        assert made.read_text() == "x"
        if killed:
            await suite.kill(await holder_of(suite, holder))

            async def made_again() -> bool:
                return made.read_text() == "xx"

            await eventually(made_again)
        (tmp_path / "go").touch()
        outputs = await asyncio.gather(*(run.result() for run in runs))
        assert len(set(outputs)) == 1
        hits = 0
        for run in runs:
            async for event in run.follow():
                hits += event.component_finished.cached
        assert hits == 2
        assert made.read_text() == ("xx" if killed else "x")
