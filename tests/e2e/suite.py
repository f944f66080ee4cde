"""The whole suite as real processes, for tests that kill them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from onward import Client
from onward_cli.children import Child
from onward_cli.valkey import Valkey, embedded_valkey

WORKFLOWS = Path(__file__).with_name("workflows.py")
STOP_S = 15.0


class Suite:
    """Valkey, Schedulers, Gateways and executors on free ports of loopback.

    Attributes:
        valkey: The store.
        schedulers: Scheduler processes.
        gateways: Gateway processes.
        executors: Executor processes.
    """

    def __init__(self, valkey: Valkey, target: Path) -> None:
        self.valkey = valkey
        self.target = target
        self.schedulers: list[Child] = []
        self.gateways: list[Child] = []
        self.executors: list[Child] = []

    @property
    def redis(self) -> str:
        """The store's URL."""
        return self.valkey.url

    @property
    def scheduler_addresses(self) -> str:
        """Comma-separated addresses of all Schedulers."""
        return ",".join(child.addresses["grpc"] for child in self.schedulers)

    @property
    def gateway_addresses(self) -> str:
        """Comma-separated addresses of all Gateways."""
        return ",".join(child.addresses["grpc"] for child in self.gateways)

    def client(self, gateway: int | None = None) -> Client:
        """Return a client of one Gateway, or of all of them."""
        if gateway is None:
            return Client(self.gateway_addresses)
        return Client(self.gateways[gateway].addresses["grpc"])

    async def add_scheduler(self, *options: str, listen: str = "127.0.0.1:0", redis: str = "") -> Child:
        """Start another Scheduler, on the suite's store unless by another way to it."""
        arguments = ["scheduler", f"--redis={redis or self.redis}", f"--listen={listen}", *options]
        return await self._add(self.schedulers, arguments)

    async def add_gateway(self, *options: str, schedulers: str = "") -> Child:
        """Start another Gateway, of all Schedulers unless some are named."""
        arguments = [
            "gateway",
            f"--redis={self.redis}",
            f"--scheduler={schedulers or self.scheduler_addresses}",
            "--grpc=127.0.0.1:0",
            "--http=127.0.0.1:0",
            *options,
        ]
        return await self._add(self.gateways, arguments)

    async def add_executor(self, *options: str, listen: str = "127.0.0.1:0") -> Child:
        """Start another executor."""
        arguments = [
            "executor",
            str(self.target),
            f"--redis={self.redis}",
            f"--scheduler={self.scheduler_addresses}",
            f"--listen={listen}",
            *options,
        ]
        return await self._add(self.executors, arguments)

    async def kill(self, child: Child) -> None:
        """Kill a process with SIGKILL and wait until it is gone."""
        os.kill(child.pid, signal.SIGKILL)
        await child.ended()

    async def stop(self) -> None:
        """End everything that still runs, in the order in which it depends on each other."""
        for group in (self.gateways, self.executors, self.schedulers):
            await asyncio.gather(*(child.stop(STOP_S) for child in group))

    async def _add(self, group: list[Child], arguments: Sequence[str]) -> Child:
        child = await Child.start(arguments)
        if not await child.ready():
            raise RuntimeError(f"onward {' '.join(arguments)} ended with status {await child.ended()}")
        group.append(child)
        return child


@contextlib.asynccontextmanager
async def running_suite(
    data: Path,
    *,
    target: Path = WORKFLOWS,
    schedulers: int = 1,
    gateways: int = 1,
    executors: int = 1,
    lease_ttl_s: float = 2.0,
    executor_options: Sequence[str] = (),
) -> AsyncIterator[Suite]:
    """Start a suite and end it with the block."""
    async with embedded_valkey(data) as valkey:
        suite = Suite(valkey, target)
        try:
            for _ in range(schedulers):
                await suite.add_scheduler(f"--lease-ttl={lease_ttl_s}")
            await asyncio.gather(
                *(suite.add_gateway() for _ in range(gateways)),
                *(suite.add_executor("--drain-grace=1", *executor_options) for _ in range(executors)),
            )
            yield suite
        finally:
            await suite.stop()
