"""A store whose disk is slow, killed in the middle of it: nothing that it acknowledged is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.runlog import a_run, status

from onward_cli.valkey import embedded_valkey
from onward_runlog import keys
from onward_runlog.runs import Runs
from onward_runlog.store import open_store
from onward_runlog.writer import LogWriter

RUNS = 20
SYNC_MS = 60

SLOW_SYNC = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
static int slowly(const char *name, int fd) {{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    usleep({SYNC_MS} * 1000);
    return real(fd);
}}
int fdatasync(int fd) {{ return slowly("fdatasync", fd); }}
int fsync(int fd) {{ return slowly("fsync", fd); }}
"""


@pytest.fixture
def slow_sync(tmp_path: Path) -> Path:
    """A library that makes every sync of a process take SYNC_MS longer."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: a slow disk cannot be made")
    source, library = tmp_path / "slow.c", tmp_path / "slow.so"
    source.write_text(SLOW_SYNC)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


async def test_what_a_slow_store_acknowledged_survives_its_death(
    tmp_path: Path, slow_sync: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill -9 while syncs take their time: every acknowledged event is there after a restart, and the writers go on."""
    monkeypatch.setenv("LD_PRELOAD", os.fspath(slow_sync))
    async with (
        embedded_valkey(tmp_path / "store") as valkey,
        open_store(valkey.url) as store,
        LogWriter(store).opened() as writer,
    ):
        runs = Runs(store)
        logs = []
        for number in range(RUNS):
            _, _, taken = await runs.submit(a_run(str(number)), holder="e1", ttl_s=60)
            assert taken is not None
            logs.append(writer.log("default", str(number), taken.attempt))
        acknowledged = [1] * RUNS
        enough = asyncio.Event()
        went_on = asyncio.Event()

        async def write(number: int) -> None:
            for count in range(30):
                acknowledged[number] = await logs[number].append(status(f"{count}"))
                if sum(acknowledged) > 5 * RUNS:
                    enough.set()
                if count == 29:
                    went_on.set()

        began = asyncio.get_running_loop().time()
        writing = [asyncio.create_task(write(number)) for number in range(RUNS)]
        await enough.wait()
        assert asyncio.get_running_loop().time() - began >= SYNC_MS / 1000, "the syncs were slow indeed"
        await valkey.kill()
        before = list(acknowledged)
        monkeypatch.delenv("LD_PRELOAD")
        await valkey.start()
        for number in range(RUNS):
            base, ref = store.place("default", str(number))
            assert await store.command("XLEN", keys.log(base, ref)) >= before[number]
        await asyncio.gather(*writing)
        assert went_on.is_set()
        for number, log in enumerate(logs):
            events = [event async for event in log.read()]
            assert [event.offset for event in events] == list(range(1, 32))
            assert [event.status_updated.message for event in events[1:]] == [str(i) for i in range(30)], number
