"""Waiting for a run's end, as GetRun and InvokeWorkflow do."""

from __future__ import annotations

import asyncio

from onward.v1.run_pb2 import Run, RunState
from onward_runlog.errors import StoreUnavailable
from onward_runlog.feed import Feed
from onward_runlog.reader import Reader
from onward_serving.errors import draining

AGAIN_S = 0.5
"""Pause before the store is asked again for a run whose end is known."""


class Waiting:
    """Waits for runs to end."""

    def __init__(self, reader: Reader, feed: Feed) -> None:
        self._reader = reader
        self._feed = feed
        self._waiting: set[_Waiter] = set()
        self._draining = False

    def drain(self) -> None:
        """End every wait."""
        self._draining = True
        for waiter in self._waiting:
            waiter.wake()

    async def end_of(
        self,
        namespace: str,
        run_id: str,
        wait_s: float | None,
        *,
        input: bool = False,
        output: bool = False,
    ) -> Run:
        """Return a run when it is terminal, or PAUSED and so does not end by itself, or `wait_s` seconds have passed.

        Args:
            wait_s: None waits without end.

        Raises:
            RunNotFound: There is no such run, or no longer.
            Refused: This Gateway drains.
        """
        waiter = _Waiter()
        self._waiting.add(waiter)
        try:
            with self._feed.follow(namespace, run_id, waiter) as followed:
                run = await self._reader.run(namespace, run_id, input=input, output=output)
                followed.learn(run)
                if run.log.closed or run.state == RunState.RUN_STATE_PAUSED:
                    return run
                try:
                    async with asyncio.timeout(wait_s):
                        while followed.end is None and followed.failure is None and not self._draining:
                            if followed.paused:
                                break
                            await waiter.woken()
                except TimeoutError:
                    pass  # then as it stands now
                if followed.failure is not None:
                    raise followed.failure
                if self._draining and followed.end is None and not followed.paused:
                    raise draining()
                return await self._read(namespace, run_id, input=input, output=output)
        finally:
            self._waiting.discard(waiter)

    async def _read(self, namespace: str, run_id: str, *, input: bool, output: bool) -> Run:
        while True:
            try:
                return await self._reader.run(namespace, run_id, input=input, output=output)
            except StoreUnavailable:
                if self._draining:
                    raise
                await asyncio.sleep(AGAIN_S)


class _Waiter:
    def __init__(self) -> None:
        self._news = asyncio.Event()

    def wake(self) -> None:
        """See Follower.wake."""
        self._news.set()

    async def woken(self) -> None:
        """Return when there are news since the last call."""
        await self._news.wait()
        self._news.clear()
