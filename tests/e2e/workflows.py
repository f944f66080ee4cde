"""Workflows that end-to-end tests run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from onward import component, publish, status, workflow
from onward import map as omap


@component
async def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


@workflow
async def steps(number: int = 1) -> int:
    """Three components, one after another."""
    for _ in range(3):
        number = await double(number)
    return number


@component
async def words(count: int, pause_s: float) -> AsyncIterator[str]:
    """Stream `count` words, one every `pause_s` seconds."""
    for i in range(count):
        await asyncio.sleep(pause_s)
        yield f"word{i} "


@workflow
async def talk(count: int = 20, pause_s: float = 0.02) -> str:
    """Stream words with statuses around them."""
    status("begins", done=0, total=2)
    publish.state("progress", {"half": False})
    text = await words(count // 2, pause_s)
    status("goes on", done=1, total=2)
    publish.patch("progress", [{"op": "replace", "path": "/half", "value": True}])
    text += await words(count - count // 2, pause_s)
    return text


@component
async def pause(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return "waited"


@workflow
async def wait(seconds: float = 60.0) -> str:
    """Take a while."""
    status("waiting")
    try:
        return await pause(seconds)
    finally:
        status("cleaned up")


@component.cache("1m")
async def once(directory: str) -> int:
    """Take its time, once for everybody."""
    made = Path(directory) / "made"
    with made.open("a") as file:
        file.write("x")
    while not (Path(directory) / "go").exists():  # noqa: ASYNC110 - the test is another process
        await asyncio.sleep(0.01)
    return os.getpid()


@workflow
async def share(directory: str = "") -> int:
    """Say which process made what all runs share."""
    status("asks")
    return await once(directory)


@component.concurrency(3, key=lambda directory, tenant, number: tenant)
async def guarded(directory: str, tenant: str, number: int) -> int:
    """Say in a ledger when it begins and when it ends, and do not end before it may."""
    with (Path(directory) / f"ledger-{tenant}").open("a", buffering=1) as ledger:
        ledger.write(f"begin {os.getpid()}\n")
        while not (Path(directory) / "go").exists():  # noqa: ASYNC110 - the test is another process
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        ledger.write(f"end {os.getpid()}\n")
    return number


@workflow
async def limited(directory: str = "", tenant: str = "") -> int:
    """Call often what may not run often at once."""
    return sum(await asyncio.gather(*(guarded(directory, tenant, number) for number in range(5))))


@workflow
async def many(count: int = 10) -> list[int]:
    """Call a component on many items at a time."""
    return await omap(double, range(count), concurrency=4)


@component
async def block(seconds: float) -> str:
    """Block the event loop, as user code must not."""
    time.sleep(seconds)  # noqa: ASYNC251 - the point of it
    return "blocked"


@workflow
async def deaf(seconds: float = 5.0) -> str:
    """Make the executor deaf for a while."""
    return await block(seconds)


@workflow
async def fail(message: str = "no") -> str:
    """Raise."""
    raise ValueError(message)


@workflow
async def echo(value: str = "") -> str:
    """Return what it was given."""
    return value


@component
async def drink(cup: str) -> str:
    """Kill the process as long as there is poison in the cup."""
    if Path(cup).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@workflow
async def poison(cup: str) -> str:
    """Take whoever runs it down."""
    await double(1)
    return await drink(cup)


@workflow
async def saga(seconds: float = 60.0) -> int:
    """Do two things, take a while, and undo both when it is called off."""
    done: list[int] = []
    try:
        done += [await double(1)]
        done += [await double(2)]
        await pause(seconds)
    finally:
        for number in done:
            status(f"undoes {number}")
            await double(-number)
    return sum(done)


async def _exit() -> None:
    sys.exit(2)


@workflow
async def leave(cup: str, how: str = "callback") -> str:
    """Have the event loop of whoever runs it be left, as long as there is poison in the cup."""
    await double(1)
    if Path(cup).exists():
        if how == "callback":
            asyncio.get_running_loop().call_soon(sys.exit, 2)
        elif how == "task":
            await asyncio.wait([asyncio.create_task(_exit())])
        elif how == "gather":
            await asyncio.gather(_exit(), _exit())
        elif how == "interrupt":
            raise KeyboardInterrupt
        await asyncio.sleep(60)
    return "survived"
