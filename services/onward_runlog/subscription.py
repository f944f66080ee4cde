"""Messages on channels, over a connection of their own that comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from redis.exceptions import RedisError

from onward_runlog.connection import BACKOFF_S, pool_for

logger = logging.getLogger(__name__)

READ_BYTES = 256 * 1024
"""Read from the socket at a time: wake-ups carry events, and come in bursts."""


@dataclass(frozen=True, slots=True)
class Message:
    """What was published."""

    channel: str
    data: bytes


async def messages(url: str, channels: Sequence[str]) -> AsyncGenerator[Message | None, None]:
    """Yield what is published on `channels`, and None whenever the subscription begins: what came before is lost.

    The connection has no read time-out, since silence is normal here; whoever depends on a message must also ask the
    store from time to time.
    """
    names = {channel.encode(): channel for channel in channels}
    failures = 0
    while True:
        wire = pool_for(url, socket_read_size=READ_BYTES).make_connection()  # type: ignore[no-untyped-call]
        try:
            await wire.connect()
            await wire.send_command("SUBSCRIBE", *channels, check_health=False)
            for _ in channels:
                await wire.read_response(disable_decoding=True, timeout=math.inf)
            failures = 0
            yield None
            while True:
                kind, channel, data = await wire.read_response(disable_decoding=True, timeout=math.inf)
                if kind == b"message":
                    yield Message(names[channel], data)
        except (RedisError, OSError) as error:
            if failures == 0:
                logger.info("subscription lost, subscribing again: %s", error)
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1
        finally:
            with contextlib.suppress(RedisError, OSError):
                await wire.disconnect(nowait=True)
