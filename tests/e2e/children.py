"""Workflows that start others. What they do to the world is in a ledger: one line for each time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import onward
from onward import ComponentError, component, status, workflow


@component
async def effect(what: str) -> str:
    with open(os.environ["ONWARD_TEST_LEDGER"], "a") as ledger:  # noqa: PTH123, ASYNC230 - a line
        ledger.write(what + "\n")
    return what


@workflow
async def leaf(name: str) -> str:
    status(f"{name} begins")
    await effect(name)
    return f"{name} is done"


@workflow
async def gated(name: str) -> str:
    """Goes on when it is told to."""
    await effect(f"{name} begins")
    try:
        await onward.signal("go")
    except asyncio.CancelledError:
        await effect(f"{name} cleans up")
        raise
    return f"{name} went"


@workflow
async def large(size: int) -> str:
    return "x" * size


@workflow
async def broken(name: str) -> str:
    raise ValueError(f"no {name}")


@workflow
async def family(names: list[str]) -> list[str]:
    children = [await onward.start_child(leaf, name) for name in names]
    return await asyncio.gather(*(child.result() for child in children))


@workflow
async def guardian(fails: bool = False) -> str:
    """Has one child that ends with it and one that does not."""
    own = await onward.start_child.options(labels={"kind": "own"})(gated, "own")
    other = await onward.start_child.options(detached=True, labels={"kind": "detached"})(gated, "detached")
    onward.publish("children", [own.run_id, other.run_id])
    await onward.signal("end")
    if fails:
        raise ValueError("enough")
    return "ended"


@workflow
async def waiter() -> str:
    return await (await onward.start_child(gated, "one")).result()


@workflow
async def measured(size: int) -> int:
    return len(await (await onward.start_child(large, size)).result())


@workflow
async def told() -> list[str]:
    """What goes wrong with children."""
    reasons = []
    for name in ("nobody", "leaf"):
        try:
            await onward.start_child(name, name=3)
        except ComponentError as error:
            reasons.append(error.reason)
    child = await onward.start_child(broken, "luck")
    try:
        await child.result()
    except ComponentError as error:
        reasons.append(f"{error.reason} {error.message}")
    return reasons


@workflow
async def rounds(number: int = 0, until: int = 3) -> str:
    """Goes on as another run, and another; each adds a line."""
    await effect(f"round {number}")
    word = await onward.signal("word", str)
    await effect(word)
    if number < until:
        onward.continue_as(rounds, number + 1, until=until)
    return f"{number} rounds"


@component
async def luck(name: str) -> str:
    """Fails the first time."""
    with open(os.environ["ONWARD_TEST_LEDGER"]) as ledger:  # noqa: PTH123, ASYNC230 - a line
        before = ledger.read().splitlines().count(f"{name} tries its luck")
    await effect(f"{name} tries its luck")
    if not before:
        raise ValueError(f"no luck for {name}")
    return f"{name} was lucky"


@workflow
async def lucky(name: str) -> str:
    await onward.signal("go")
    return await luck(name)


@workflow
async def several() -> list[str]:
    """Has a child that succeeds, one that fails, and one that still waits then."""
    children = [
        await onward.start_child(leaf, "one"),
        await onward.start_child.options(labels={"kind": "lucky"})(lucky, "two"),
        await onward.start_child.options(labels={"kind": "gated"})(gated, "three"),
    ]
    first = await children[0].result()
    return [first, *await asyncio.gather(*(child.result() for child in children[1:]))]


@workflow
async def left_alone() -> str:
    """Fails while its child goes on."""
    child = await onward.start_child.options(detached=True, labels={"kind": "gated"})(gated, "one")
    return await luck("parent") + await child.result()


@component
async def long(size: int) -> str:
    return await effect("long") + "x" * size


@workflow
async def tale(size: int) -> int:
    text = await long(size)
    await luck("tale")
    return len(text)


@component
async def tells(names: list[str]) -> AsyncIterator[str]:
    for name in names:
        yield await (await onward.start_child(leaf, name)).result()


@workflow
async def told_by(names: list[str]) -> str:
    """Reads a stream that waits for children."""
    return ", ".join([piece async for piece in tells(names)])
