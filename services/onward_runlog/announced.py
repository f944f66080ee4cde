"""Names that a function announced to all processes, each for a time: so nobody asks the store about any other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from redis.exceptions import RedisError

from onward_runlog.errors import StoreUnavailable
from onward_runlog.store import Store
from onward_runlog.subscription import messages


class Announced:
    """The names of one kind that hold now, as far as this process knows. `name in announced` asks nobody."""

    def __init__(self, store: Store, channel: str, listed: Callable[[str], str]) -> None:
        """Begin with none.

        Args:
            store: Where they are announced.
            channel: On what, as "<milliseconds> <name>".
            listed: Makes, of a partition's base name, the key of a sorted set of its names by when they end.
        """
        self._store = store
        self._channel = channel
        self._listed = listed
        self._until: dict[str, float] = {}
        """By the loop's clock."""

    def __contains__(self, name: str) -> bool:
        until = self._until.get(name)
        if until is None:
            return False
        if until > asyncio.get_running_loop().time():
            return True
        del self._until[name]
        return False

    def add(self, name: str, for_s: float) -> None:
        """Have it hold for so long at least, in this process."""
        until = asyncio.get_running_loop().time() + for_s
        self._until[name] = max(until, self._until.get(name, 0.0))

    def discard(self, name: str) -> None:
        """Have it hold no longer, in this process."""
        self._until.pop(name, None)

    @contextlib.asynccontextmanager
    async def heard(self) -> AsyncIterator[None]:
        """Hear of names until the block ends."""
        hearing = asyncio.create_task(self._hear(), name=f"announced: {self._channel}")
        try:
            yield
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    async def _hear(self) -> None:
        async for message in messages(self._store.url, [self._channel]):
            if message is None:
                with contextlib.suppress(RedisError, StoreUnavailable):
                    await self._catch_up()
                continue
            ttl_ms, _, name = message.data.decode().partition(" ")
            self.add(name, int(ttl_ms) / 1000)

    async def _catch_up(self) -> None:
        seconds, micros = await self._store.command("TIME", patience_s=float("inf"))
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        for base in self._store.bases():
            found = await self._store.command("ZRANGE", self._listed(base), 0, -1, "WITHSCORES")
            for name, until_ms in zip(found[::2], found[1::2], strict=True):
                self.add(name.decode(), (int(until_ms) - now_ms) / 1000)
