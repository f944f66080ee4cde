"""Redis as the floor uses it: what is asked in the same moment goes out in one pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import traceback
from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.asyncio import Redis

from onward.v1.wake_pb2 import Wake

CHANNEL = "wake"
"""Where what was appended in one pipeline is told, as a Wake message."""


class Pipe:
    """Commands of a whole process, and news of what they append."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._pending: list[tuple[tuple[Any, ...], asyncio.Future[Any] | None]] = []
        self._news = Wake()
        self._wanted = asyncio.Event()

    def append(self, run_id: str, after: int, events: Sequence[bytes]) -> asyncio.Future[Any]:
        """Write events to a run's log and tell gateways; the reply to the last one is to be awaited."""
        key = log_key(run_id)
        for offset, event in enumerate(events, after + 1):
            reply = self.call("XADD", key, f"{offset}-0", "e", event)
        self._news.appended.add(ref=run_id, after_offset=after, through_offset=offset, events=events)
        return reply

    def send(self, *command: Any) -> None:
        """Send a command whose reply nobody reads."""
        self._pending.append((command, None))
        self._wanted.set()

    def call(self, *command: Any) -> asyncio.Future[Any]:
        """Send a command and return its reply, to be awaited."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.append((command, reply))
        self._wanted.set()
        return reply

    async def serve(self) -> None:
        """Send for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            batch, self._pending = self._pending, []
            pipeline = self.redis.pipeline(transaction=False)
            for command, _ in batch:
                pipeline.execute_command(*command)
            if self._news.appended:
                pipeline.execute_command("PUBLISH", CHANNEL, self._news.SerializeToString())
                self._news.Clear()
            for (_, reply), value in zip(batch, await pipeline.execute(), strict=False):
                if reply is not None and not reply.done():
                    reply.set_result(value)


@contextlib.asynccontextmanager
async def pipe(url: str) -> AsyncIterator[Pipe]:
    """Connect, and serve until the block ends."""
    async with Redis.from_url(url, socket_timeout=None) as redis:  # silence is normal where one listens
        opened = Pipe(redis)
        task = asyncio.create_task(opened.serve())
        task.add_done_callback(end_if_broken)
        try:
            yield opened
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def end_if_broken(task: asyncio.Task[None]) -> None:
    """End the process where a task that serves for ever has failed: a floor that hangs would be a riddle."""
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        os._exit(1)


def log_key(run_id: str) -> str:
    """Return the key of a run's log."""
    return f"log:{run_id}"
