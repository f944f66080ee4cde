"""Heartbeats: an executor's leases are renewed from a thread that user code cannot block."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from onward.v1.run_pb2 import RunState
from onward_runlog.store import VERSION, Store

logger = logging.getLogger(__name__)

BEATS = 5
"""How often leases are renewed in the time of one."""

LOST_PAUSE_S = 0.1
"""How soon a renewal that failed is tried again."""

SILENCE = 0.5
"""Part of a lease after which a store that says nothing is asked over another connection: the lease holds still."""

SILENCE_MIN_S = 1.0
"""But a store that is slow for so long is not to be left for that."""

LOOK_S = 0.05
"""How often it is asked whether the loop has turned."""

BLOCKED_WARNING_S = 1.0
"""A loop that has not turned for this long is named in the log."""


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that an executor holds."""

    base: str
    ref: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a heartbeat learned about a held run.

    Attributes:
        held: Whether the lease is still this executor's.
        state: RunState as it stands, so that a lost Cancel is noticed.
        last_offset: How long the log is, so that a lost Notify is.
    """

    lease: Held
    held: bool
    state: int
    last_offset: int


class Heartbeat:
    """Renews leases, each time when the event loop has turned.

    A process whose loop stands still is deaf: it could not even be told to stop. So no lease outlives the moment in
    which its loop stopped turning by more than itself; and a loop that stands still for less than BEATS - 1 of BEATS
    parts of a lease loses none.
    """

    def __init__(self, store: Store, executor_id: str, *, ttl_s: float, on_renewal: Callable[[Renewal], None]) -> None:
        """Args:
        on_renewal: Called in the event loop for leases that are lost, for runs that are not simply running, and where a
            log has grown since the last renewal.
        """
        self._store = store
        self._executor_id = executor_id
        self._ttl_s = ttl_s
        self._on_renewal = on_renewal
        self._leases: dict[str, Held] = {}
        self._told: dict[Held, int] = {}
        """How long each log was at the last renewal."""
        self._lock = threading.Lock()
        self._stopping = False
        self._wake = threading.Event()

    def add(self, base: str, ref: str, attempt: int) -> None:
        """Begin to renew a lease."""
        with self._lock:
            self._leases[ref] = Held(base, ref, attempt)

    def remove(self, ref: str, attempt: int) -> None:
        """Stop renewing a lease."""
        with self._lock:
            held = self._leases.get(ref)
            if held is not None and held.attempt == attempt:
                del self._leases[ref]

    def set_ttl(self, ttl_s: float) -> None:
        """Take the lease time that the Scheduler names. If it is another one, the next heartbeat is now."""
        if ttl_s != self._ttl_s:
            self._ttl_s = ttl_s
            self._wake.set()

    @contextlib.asynccontextmanager
    async def beating(self) -> AsyncIterator[Heartbeat]:
        """Renew until the block ends."""
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._beat, args=(loop, threading.get_ident()), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stopping = True
            self._wake.set()
            await asyncio.to_thread(thread.join, 2.0)

    def _beat(self, loop: asyncio.AbstractEventLoop, loop_thread: int) -> None:
        ttl_s = self._ttl_s
        client = self._client(ttl_s)
        lost = False
        try:
            while self._has_turned(loop, loop_thread):
                if ttl_s != self._ttl_s:
                    client.close()
                    ttl_s = self._ttl_s
                    client = self._client(ttl_s)
                try:
                    self._renew(client, loop)
                    lost = False
                except redis.RedisError as error:
                    if not lost:
                        logger.warning("cannot renew leases, trying on: %s", error)
                    lost = True
                self._wake.wait(self._ttl_s / BEATS if not lost else LOST_PAUSE_S)
                self._wake.clear()
        finally:
            client.close()

    def _client(self, ttl_s: float) -> redis.Redis:
        return redis.Redis.from_url(
            self._store.url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=min(ttl_s, max(ttl_s * SILENCE, SILENCE_MIN_S)),
            socket_connect_timeout=1.0,
            protocol=2,
        )

    def _has_turned(self, loop: asyncio.AbstractEventLoop, loop_thread: int) -> bool:
        """Wait until the loop turns; False if this is to end."""
        turned = threading.Event()
        try:
            loop.call_soon_threadsafe(turned.set)
        except RuntimeError:  # the loop is closed: the process ends
            return False
        began = named = time.monotonic()
        while not turned.wait(LOOK_S):
            now = time.monotonic()
            if self._stopping:
                return False
            if now - named > max(BLOCKED_WARNING_S, self._ttl_s / 2):
                named = now
                self._name_blocker(loop_thread, now - began)
        return not self._stopping

    def _renew(self, client: redis.Redis, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            leases = list(self._leases.values())
        by_base: dict[str, list[Held]] = {}
        for held in leases:
            by_base.setdefault(held.base, []).append(held)
        if not by_base:
            return
        with client.pipeline(transaction=False) as pipeline:
            for base, group in by_base.items():
                arguments: list[str | int] = [int(self._ttl_s * 1000)]
                for held in group:
                    arguments += (held.ref, held.attempt, self._executor_id)
                pipeline.fcall(f"{VERSION}_renew", 1, base, *arguments)
            replies = pipeline.execute()
        told: dict[Held, int] = {}
        for group, reply in zip(by_base.values(), replies, strict=True):
            for held, (ok, state, last_offset) in zip(group, reply, strict=True):
                told[held] = last_offset
                if ok and state == RunState.RUN_STATE_RUNNING and self._told.get(held) == last_offset:
                    continue
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._on_renewal, Renewal(held, bool(ok), int(state), last_offset))
        self._told = told

    def _name_blocker(self, loop_thread: int, still_s: float) -> None:
        frame = sys._current_frames().get(loop_thread)  # noqa: SLF001 - the documented way to another thread's stack
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        logger.warning(
            "the event loop has not turned for %.1f s: user code blocks it. Make the function synchronous, so that it "
            "runs in a thread, or await. It stands here:\n%s",
            still_s,
            stack,
        )
