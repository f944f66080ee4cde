"""A Gateway that is restarted again and again under its readers, and what they got of it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.eventsource import EventSource
from tests.ports import lasting_address

from onward import Client
from onward_cli.children import Child

STOP_S = 20.0


class Gateway:
    """A Gateway at addresses that stay, however often it is started."""

    def __init__(self, redis: str, scheduler: str) -> None:
        self._redis = redis
        self._scheduler = scheduler
        self._child: Child | None = None
        self.grpc = lasting_address()
        self.http = lasting_address()

    async def start(self) -> None:
        """Start it, and return when it serves."""
        self._child = await Child.start(
            [
                "gateway",
                f"--redis={self._redis}",
                f"--scheduler={self._scheduler}",
                f"--grpc={self.grpc}",
                f"--http={self.http}",
            ]
        )
        assert await self._child.ready()

    async def end(self, *, kill: bool) -> None:
        """End it: in order, or not."""
        assert self._child is not None
        if kill:
            os.kill(self._child.pid, signal.SIGKILL)
            await self._child.ended()
        else:
            await self._child.stop(STOP_S)


@dataclass
class Outcome:
    """What readers got, beside what there was.

    Attributes:
        readers: How many there were.
        events: Of all runs' logs, counted for each reader.
        lost: Of them, those that a reader did not get.
        doubled: Those that it got again.
        connections: Of the EventSources.
        seen: The offsets that each reader got, with its run.
    """

    readers: int = 0
    events: int = 0
    lost: int = 0
    doubled: int = 0
    connections: int = 0
    seen: list[tuple[str, list[int]]] = field(default_factory=list)


async def restarted(
    gateway: Gateway, run_ids: Sequence[str], *, readers: int, restarts: int, pause_s: float
) -> Outcome:
    """Restart a Gateway under readers of runs that go on meanwhile, every second time by a kill.

    Args:
        gateway: Which serves.
        run_ids: Whom they read; each reader one, in turns.
        readers: How many, of each kind: EventSources, and clients over gRPC.
        restarts: How often.
        pause_s: Between them: the pace of the disturbance.
    """
    outcome = Outcome(readers=2 * readers)
    async with Client(gateway.grpc, patience=60) as client:

        async def by_grpc(run_id: str) -> None:
            outcome.seen.append((run_id, [event.offset async for event in client.run(run_id).follow()]))

        async def by_http(run_id: str) -> None:
            source = EventSource(gateway.http, f"/v1/runs/{run_id}/events")
            offsets = [message.json["offset"] async for message in source.messages() if message.name == "message"]
            outcome.seen.append((run_id, offsets))
            outcome.connections += source.connections

        chosen = [run_ids[i % len(run_ids)] for i in range(readers)]
        reading = [asyncio.create_task(read(run_id)) for run_id in chosen for read in (by_grpc, by_http)]
        try:
            for number in range(restarts):
                await asyncio.sleep(pause_s)
                await gateway.end(kill=number % 2 == 1)
                await gateway.start()
            await asyncio.gather(*reading)
        finally:
            for task in reading:
                task.cancel()
        last = {run_id: (await client.get(run_id)).log.last_offset for run_id in run_ids}
    for run_id, offsets in outcome.seen:
        wanted = range(1, last[run_id] + 1)
        outcome.events += len(wanted)
        outcome.lost += len(set(wanted) - set(offsets))
        outcome.doubled += len(offsets) - len(set(offsets))
        assert offsets == sorted(offsets), "in order"
    return outcome
