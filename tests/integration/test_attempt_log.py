"""The log on Redis keeps every promise that the one in memory keeps: the same suite, against a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from tests.runlog import a_run, log_of
from tests.unit.test_attempt_log import *  # noqa: F403 - the tests
from tests.unit.test_attempt_log import NewRun, RunUnderTest

from onward.log import AttemptLog
from onward.v1.event_pb2 import Event
from onward.v1.gateway_service_pb2 import SignalRunRequest
from onward.v1.run_pb2 import Run, RunState, Usage
from onward_runlog.reader import Reader
from onward_runlog.runs import Runs
from onward_runlog.store import Store
from onward_runlog.writer import LogWriter, RedisAttemptLog


class OnRedis:
    def __init__(self, writer: LogWriter, run: Run) -> None:
        self._writer = writer
        self._run = run
        self._runs = Runs(writer.store)
        self._attempt = 0
        self._log: RedisAttemptLog | None = None

    async def begin(self) -> AttemptLog:
        run = self._run
        if self._attempt:
            await self._runs.lose(run.namespace, run.run_id, self._attempt, "lost")
        base, _ = self._writer.store.place(run.namespace, run.run_id)
        [taken] = await self._runs.claim(base, run.deployment, holder="e1", ttl_s=60, limit=1)
        self._attempt = taken.attempt
        self._log = self._writer.log(run.namespace, run.run_id, taken.attempt, last_offset=taken.run.log.last_offset)
        return self._log

    async def close(self) -> None:
        """A passed deadline is what ends a run over its executor's head."""
        base, ref = self._writer.store.place(self._run.namespace, self._run.run_id)
        await self._writer.store.command("HSET", f"{base}:{ref}:run", "deadline", 1)
        assert await self._runs.expel(self._run.namespace, self._run.run_id)

    async def cancel(self) -> None:
        await self._runs.cancel(self._run.namespace, self._run.run_id, "")

    async def signal(self, name: str) -> None:
        """And notify whoever holds the run, as a Scheduler does."""
        signal = SignalRunRequest(run_id=self._run.run_id, name=name)
        offset, _, holder = await self._runs.signal(self._run.namespace, signal)
        if holder.executor_id and self._log is not None:
            self._log.told(offset)

    async def state(self) -> RunState.ValueType:
        return (await self._runs.get(self._run.namespace, self._run.run_id)).state

    async def events(self) -> list[Event]:
        return await log_of(self._writer.store, self._run)

    async def usage(self) -> Usage:
        return (await Reader(self._writer.store).run(self._run.namespace, self._run.run_id)).usage


@pytest.fixture  # type: ignore[no-redef] # the suite's own gives memory
async def new_run(store: Store) -> AsyncIterator[NewRun]:
    async with AsyncExitStack() as opened:

        async def new_run(*, events_max: int = 10_000, bytes_max: int = 1 << 28) -> RunUnderTest:
            writer = LogWriter(store, log_events_max=events_max, log_bytes_max=bytes_max)
            await opened.enter_async_context(writer.opened())
            run, _, _ = await Runs(store).submit(a_run())
            return OnRedis(writer, run)

        yield new_run
