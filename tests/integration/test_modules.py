"""`python -m onward_scheduler` and the like, where they cannot serve: one line says why, and no traceback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import pytest

from onward_cli.valkey import embedded_valkey
from onward_runlog.store import open_store

ANYWHERE = {"ONWARD_SCHEDULER_LISTEN": "127.0.0.1:0", "ONWARD_EXECUTOR_LISTEN": "127.0.0.1:0"}


async def fails(*words: str, **env: str) -> str:
    """Return the line that it ends with."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *words),
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            out, told = await running.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.wait()
    assert (running.returncode, out) == (1, b"")
    [line] = told.decode().splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "variable"),
    [
        (["onward_gateway"], "ONWARD_STREAMS_MAX"),
        (["onward_scheduler"], "ONWARD_LEASE_TTL_S"),
        (["onward_executor", "tests.e2e.workflows"], "ONWARD_SLOTS"),
    ],
    ids=["gateway", "scheduler", "executor"],
)
async def test_a_setting_that_makes_no_sense_is_named(words: list[str], variable: str) -> None:
    line = await fails(*words, **{variable: "many"})
    assert line.startswith(f"{words[0].replace('_', ' ')}: {variable}=many: a ")


@pytest.mark.parametrize("words", [["onward_scheduler"], ["onward_executor", "tests.e2e.workflows"]])
async def test_a_store_that_may_lose_runs_is_refused(tmp_path: Path, words: list[str]) -> None:
    async with (
        embedded_valkey(tmp_path, extra={"maxmemory-policy": "allkeys-lru"}) as valkey,
        open_store(valkey.url, allow_unfit=True),
    ):
        assert "--allow-unfit-store" in await fails(*words, ONWARD_REDIS_URL=valkey.url, **ANYWHERE)


async def test_code_that_cannot_be_loaded_is_told() -> None:
    assert (await fails("onward_executor", "no.such.module")).startswith("onward executor: ")
    assert (await fails("onward_executor")).startswith("usage: ")


@pytest.mark.parametrize("words", [["onward_scheduler"], ["onward_executor", "tests.e2e.workflows"]])
@pytest.mark.parametrize("url", ["foo", "redis://:secret@localhost:99999", "redis://localhost?colour=red"])
async def test_a_url_that_is_none_of_a_store_is_told_and_not_shown(words: list[str], url: str) -> None:
    """Its password would be in the log."""
    line = await fails(*words, ONWARD_REDIS_URL=url, **ANYWHERE)
    assert "the URL of the store (--redis, ONWARD_REDIS_URL) is none" in line
    assert url not in line
