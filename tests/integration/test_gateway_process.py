"""`python -m onward_gateway` as operators run it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.gateway import Door, Reading, begun, client

from onward.v1.gateway_service_pb2 import HandoffReason, SubscribeRunRequest
from onward_cli.valkey import embedded_valkey
from onward_runlog.store import open_store


@contextlib.asynccontextmanager
async def process(redis_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    env = {**os.environ, "ONWARD_REDIS_URL": redis_url, "ONWARD_GRPC": "127.0.0.1:0", "ONWARD_HTTP": "127.0.0.1:0"}
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "onward_gateway",
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.wait()


async def ready(running: asyncio.subprocess.Process) -> dict[str, str]:
    assert running.stdout is not None
    word, *addresses = (await running.stdout.readline()).decode().split()
    assert word == "ready"
    return dict(address.split("=") for address in addresses)


async def waits(running: asyncio.subprocess.Process) -> None:
    """Return when it has said that it waits."""
    assert running.stderr is not None
    while b"waiting for the store" not in (line := await running.stderr.readline()):
        assert line, "it has ended"


async def stopped(running: asyncio.subprocess.Process) -> tuple[int, str, str]:
    running.send_signal(signal.SIGTERM)
    out, err = await running.communicate()
    assert running.returncode is not None
    return running.returncode, out.decode(), err.decode()


async def test_one_line_when_it_serves_and_an_orderly_end(tmp_path: Path) -> None:
    """It waits for Redis, says so, hands its streams over on SIGTERM, and exits with 0."""
    async with embedded_valkey(tmp_path) as valkey:
        await valkey.stop()
        async with process(valkey.url) as running:
            await waits(running)
            await valkey.start()
            async with open_store(valkey.url) as store:
                addresses = await ready(running)
                assert set(addresses) == {"grpc", "http"}
                await begun(store)
                async with client(addresses["grpc"]) as stub:
                    door = Door(stub, addresses["grpc"], addresses["http"])
                    reading = Reading(door, SubscribeRunRequest(run_id="run"))
                    await reading.next()
                    rest = asyncio.create_task(reading.rest())
                    status, out, _ = await stopped(running)
                    assert (status, out) == (0, "")
                    end = (await rest).end
                    assert end is not None
                    assert end.handoff.reason == HandoffReason.HANDOFF_REASON_REBALANCE


async def test_it_stops_while_it_waits(tmp_path: Path) -> None:
    async with embedded_valkey(tmp_path) as valkey:
        await valkey.stop()
        async with process(valkey.url) as running:
            await waits(running)
            status, out, _ = await stopped(running)
            assert (status, out) == (0, "")


async def test_an_unfit_store_is_refused_in_one_line(tmp_path: Path) -> None:
    async with (
        embedded_valkey(tmp_path, extra={"maxmemory-policy": "allkeys-lru"}) as valkey,
        open_store(valkey.url, allow_unfit=True),
        process(valkey.url) as running,
    ):
        out, err = await running.communicate()
        assert (running.returncode, out) == (1, b"")
        [line] = err.decode().splitlines()
        assert "maxmemory-policy" in line
        assert "--allow-unfit-store" in line
