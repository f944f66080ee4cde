"""Row 22: what a model call's stream costs, inside a run and by the bare SDK.

`python -m tests.bench.rows.models measure LOOP MODE URL` measures one of them in a process of its own, as an executor
is set up, and prints microseconds.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import openai as bare
import uvloop
from tests.bench.figures import Figure, Rounds
from tests.provider import Reply, serving

from onward import component, testing, workflow
from onward.openai import AsyncOpenAI
from onward_serving.process import collect_rarely

if TYPE_CHECKING:
    from tests.bench.setting import Setting

CALLS = 20
CHUNKS = 400
RATE = 200
"""Chunks a second of each call."""

TARGET_US = 20.0


async def wrapper(setting: Setting) -> list[Figure]:
    """Row 22: processor time for each chunk."""
    rounds = 1 if setting.quick else 5
    taken: dict[str, list[float]] = {mode: [] for mode in MODES}
    async with _provider() as url:
        for turn in range(rounds):
            for mode in MODES if turn % 2 else reversed(MODES):
                taken[mode].append(float(await _printed("measure", setting.loop, mode, url)))
            setting.say("row 22: " + ", ".join(f"{mode} {values[-1]:.1f} µs a chunk" for mode, values in taken.items()))
    figures = []
    for mode, words in (
        ("silent", "below a component that streams"),
        ("shown", "shown by itself, with a log in memory"),
    ):
        both = Rounds(taken[mode], taken["bare"])
        more = statistics.median(a - b for a, b in zip(taken[mode], taken["bare"], strict=True))
        figures.append(
            Figure(
                row=22,
                what=f"a chunk of a model call, {words}",
                value=statistics.median(taken[mode]),
                unit="µs",
                floor=statistics.median(taken["bare"]),
                ratio=both.ratio,
                target="≤ 20 µs more than the SDK",
                met=more <= TARGET_US,
            )
        )
    return figures


MODES = ("bare", "silent", "shown")


@asynccontextmanager
async def _provider() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(*_command("serve"), stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()


async def _printed(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(*_command(*arguments), stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    return printed.decode().strip()


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.bench.rows.models", *arguments]


# In processes of their own


async def _serve() -> None:
    async with serving() as provider:
        provider.default = Reply(" ".join(["word"] * CHUNKS), pause_s=1 / RATE)
        print(provider.url, flush=True)
        await asyncio.Event().wait()


async def _measure(mode: str, url: str) -> float:
    client: bare.AsyncOpenAI = bare.AsyncOpenAI(base_url=url, api_key="none")
    if mode != "bare":
        client = AsyncOpenAI(base_url=url, api_key="none")

    async def read() -> int:
        stream = await client.chat.completions.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        return len([chunk async for chunk in stream])

    async def all_calls() -> int:
        return sum(await asyncio.gather(*(read() for _ in range(CALLS))))

    @component
    async def says() -> AsyncIterator[int]:
        yield await all_calls()

    @workflow
    async def shown() -> int:
        return await all_calls()

    @workflow
    async def silent() -> list[int]:
        return await says()

    async def once() -> None:
        if mode == "bare":
            await all_calls()
        elif mode == "shown":
            await testing.run(shown)
        else:
            await testing.run(silent)

    with testing.no_replay():
        await once()  # What is imported, compiled and connected once is not a chunk's.
        before = os.times()
        await once()
        after = os.times()
    return (after.user + after.system - before.user - before.system) / (CALLS * CHUNKS) * 1e6


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            asyncio.run(_serve())
        case ["measure", loop, mode, url]:
            collect_rarely()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
                print(f"{runner.run(_measure(mode, url)):.2f}")
