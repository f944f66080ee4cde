"""Row 13: runs that wait, and what each costs the store meanwhile."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING

from redis.asyncio import Redis
from tests.bench.figures import Figure

import onward
from onward import component, workflow
from onward.engine import Attempt
from onward.v1.event_pb2 import ATTEMPT_CAUSE_STARTED
from onward.v1.run_pb2 import RUN_STATE_WAITING, Payload, Run
from onward.waits import PACE, Pace
from onward_runlog.runs import Runs
from onward_runlog.store import Store, open_store
from onward_runlog.writer import LogWriter

if TYPE_CHECKING:
    from tests.bench.setting import Setting

AT_ONCE = 100
"""As many as an executor has slots."""

TARGET_BYTES = 2_560


@component
async def draft(topic: str) -> str:
    """Do something before."""
    return f"about {topic}"


@workflow
async def approval(topic: str) -> bool:
    """Do one thing, then ask a person who has three days."""
    await draft(topic)
    return await onward.request_input("approval", bool, prompt="May it be sent?", timeout="3d")


async def memory(setting: Setting) -> list[Figure]:
    """Park runs by the engine, in this process, and ask the server how much of its memory they take."""
    count = 500 if setting.quick else 10_000
    token = PACE.set(Pace(quiet_s=0.0))
    url = setting.engine.valkey.url
    try:
        async with open_store(url) as store, LogWriter(store).opened() as writer, Redis.from_url(url) as redis:
            await _park(store, writer)
            before = await _used(redis)
            began = time.perf_counter()
            for _ in range(0, count, AT_ONCE):
                await asyncio.gather(*(_park(store, writer) for _ in range(AT_ONCE)))
            took_s = time.perf_counter() - began
            each = (await _used(redis) - before) / count - len(INPUT)
    finally:
        PACE.reset(token)
    setting.say(f"row 13: parked {count:,} runs in {took_s:.1f} s")
    return [
        Figure(
            row=13,
            what=f"{count:,} parked runs: memory of the store each, beyond the input",
            value=each / 1024,
            unit="KiB",
            target="≤ 2.5 KiB",
            met=each <= TARGET_BYTES,
        ),
        Figure(row=13, what="the same: parked by one process", value=count / took_s, unit="/s"),
    ]


INPUT = b'{"topic":"tea"}'


async def _park(store: Store, writer: LogWriter) -> None:
    run = Run(
        run_id=secrets.token_hex(13),
        namespace="default",
        workflow="approval",
        deployment="bench-3f2a9c1d",
        request_id=secrets.token_hex(16),
        input=Payload(data=INPUT, size=len(INPUT)),
    )
    _, _, taken = await Runs(store).submit(run, holder="bench", ttl_s=3_600)
    assert taken is not None
    attempt = Attempt(
        approval,
        run=taken.run,
        log=writer.log(run.namespace, run.run_id, taken.attempt, last_offset=1),
        attempt=taken.attempt,
        cause=ATTEMPT_CAUSE_STARTED,
        executor_id="bench",
        deployment=run.deployment,
    )
    await attempt.run()
    assert attempt.state == RUN_STATE_WAITING


async def _used(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory_dataset"])
