"""The same component over many items, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import TypeVar

from onward.calls import close_generator
from onward.components import Component
from onward.instance import CURRENT

A = TypeVar("A")
T = TypeVar("T")

CONCURRENCY_DEFAULT = 10


def map(  # noqa: A001 - read as `onward.map`
    component: Callable[[A], Awaitable[T]],
    items: Iterable[A] | AsyncIterable[A],
    *,
    concurrency: int = CONCURRENCY_DEFAULT,
    key: Callable[[A], str] | None = None,
) -> Coroutine[object, object, list[T]]:
    """Call `component` with every item, and return the results in the order of the items.

    The first error cancels the calls that run, begins no other, and is raised once they have cleaned up.

    Args:
        component: A component or any asynchronous function of one argument.
        items: Taken one by one as calls begin, so they may be many, and may come over time.
        concurrency: How many calls run at once, 10 by default.
        key: Names an item's call, unique among the items, for those that come in an order of their own (a set, results
            of a search). By default a call is known by the item's place.

    Raises:
        ValueError: `concurrency` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is 1 or more, not {concurrency}")
    parent = CURRENT.get()
    # By place, not by call: two maps of one component may run at once.
    prefix = "" if parent is None else f"map {parent.count('map')}"
    return _map(component, _aiter(items), concurrency, key, prefix)


async def _map(
    component: Callable[[A], Awaitable[T]],
    items: AsyncIterator[A],
    concurrency: int,
    key: Callable[[A], str] | None,
    prefix: str,
) -> list[T]:
    results: dict[int, T] = {}
    taking = asyncio.Lock()
    taken = 0

    async def work() -> None:
        nonlocal taken
        while True:
            async with taking:
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
                place = taken
                taken += 1
            call = component
            if prefix and isinstance(component, Component):
                call = component.keyed(f"{prefix} {place if key is None else key(item)}")
            results[place] = await call(item)

    workers = [asyncio.create_task(work()) for _ in range(concurrency)]
    try:
        done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await close_generator(items)
    for worker in workers:
        if worker in done:
            worker.result()
    return [results[place] for place in range(taken)]


async def _aiter(items: Iterable[A] | AsyncIterable[A]) -> AsyncIterator[A]:
    if isinstance(items, AsyncIterable):
        source = aiter(items)
        try:
            async for item in source:
                yield item
        finally:
            await close_generator(source)
    else:
        for item in items:
            yield item
