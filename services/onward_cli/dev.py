"""`onward dev`: an embedded store, all services, and executors that follow the user's code."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from google.protobuf.duration_pb2 import Duration
from grpc import aio
from rich.console import Console
from watchfiles import PythonFilter, awatch

from onward.v1.executor_service_pb2 import DrainRequest
from onward.v1.executor_service_pb2_grpc import ExecutorServiceStub
from onward_cli.children import Child
from onward_cli.serving import Target, serve
from onward_cli.valkey import StoreError, embedded_valkey
from onward_gateway import app as gateway_app
from onward_gateway.settings import Settings as GatewaySettings
from onward_runlog import registry
from onward_runlog.store import open_store
from onward_scheduler import app as scheduler_app
from onward_scheduler.settings import Settings as SchedulerSettings
from onward_serving.process import announce

logger = logging.getLogger(__name__)

RELOAD_GRACE_S = 24 * 3600
"""How long runs in flight may go on in executors with the code before a change."""

RETIRE_TIMEOUT_S = 5.0

STOP_GRACE_S = 3.0
"""How long runs may go on after Ctrl-C; then they are handed over, and the next `onward dev` continues them."""

CRASH_PAUSES_S = (0.2, 1.0, 5.0)
"""Pauses before an executor that died is started again; the last one repeats."""


class CodeError(Exception):
    """The user's code does not load."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a developer may change."""

    target: str
    data: Path = Path(".onward")
    grpc: str = "127.0.0.1:50051"
    http: str = "127.0.0.1:8080"
    executors: int = 1
    slots: int = 100
    reload: bool = True


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[gateway_app.Doors]:
    """Serve until the block ends.

    Raises:
        StoreError: The data directory is in use, or the store does not start.
        OSError: An address is taken.
        CodeError: The user's code does not load.
    """
    console = Console(stderr=True, highlight=False)
    async with contextlib.AsyncExitStack() as stack:
        valkey = await stack.enter_async_context(embedded_valkey(settings.data))
        scheduler = await stack.enter_async_context(
            scheduler_app.opened(SchedulerSettings(redis_url=valkey.url, listen="127.0.0.1:0"))
        )
        gateway = await stack.enter_async_context(
            gateway_app.opened(
                GatewaySettings(
                    redis_url=valkey.url, schedulers=(scheduler.address,), grpc=settings.grpc, http=settings.http
                )
            )
        )
        crew = Crew(settings, redis_url=valkey.url, scheduler=scheduler.address, console=console)
        await stack.enter_async_context(crew.working())
        console.print(f"[bold]onward dev[/]  {settings.target}  (deployment {crew.deployment})")
        console.print(f"  gRPC       {gateway.grpc}")
        console.print(f"  HTTP       http://{gateway.http}")
        console.print(f"  scheduler  {scheduler.address}")
        console.print(f"  store      {valkey.url}  (kept in {settings.data}/)")
        console.print(f"  executors  {settings.executors}, with {settings.slots} slots each")
        console.print(f"  try        onward workflows --gateway {gateway.grpc}")
        yield gateway
        console.print("stopping: runs in flight are handed over and go on when you start again")


def dev(
    target: Target,
    *,
    data: Annotated[Path, Parameter(help="Where the embedded store keeps everything.")] = Settings.data,
    grpc: Annotated[str, Parameter(help="HOST:PORT for gRPC; port 0 picks a free one.")] = Settings.grpc,
    http: Annotated[str, Parameter(help="HOST:PORT for HTTP; port 0 picks a free one.")] = Settings.http,
    executors: Annotated[int, Parameter(help="Executor processes.")] = Settings.executors,
    slots: Annotated[int, Parameter(help="Runs that each executor takes at a time.")] = Settings.slots,
    reload: Annotated[bool, Parameter(help="Follow changes of the code.")] = Settings.reload,
) -> None:
    """Run everything on this machine: an embedded store, all services, and your code, reloaded when it changes.

    Example: onward dev blog_writer.py
    """
    settings = Settings(target=target, data=data, grpc=grpc, http=http, executors=executors, slots=slots, reload=reload)
    serve(
        lambda _: opened(settings),
        lambda doors: announce(grpc=doors.grpc, http=doors.http),
        StoreError,
        CodeError,
        log_level="WARNING",
    )


class Crew:
    """The executors of the code as it is now, and those that finish runs of the code as it was.

    Args:
        settings: As given.
        redis_url: The store.
        scheduler: HOST:PORT.
        console: Where changes are told.
    """

    def __init__(self, settings: Settings, *, redis_url: str, scheduler: str, console: Console) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._scheduler = scheduler
        self._console = console
        self._current: list[Child] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._children: set[Child] = set()
        self._stopping = False
        self.deployment = ""

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[Crew]:
        """Keep executors running until the block ends."""
        try:
            if not await self._replace():
                raise CodeError(f"{self._settings.target} cannot be served; the reason stands above")
            if self._settings.reload:
                self._spawn(self._follow_code())
            yield self
        finally:
            self._stopping = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(child.stop(STOP_GRACE_S + 5.0) for child in self._children))

    async def _start(self) -> Child | None:
        child = await Child.start(
            [
                "executor",
                self._settings.target,
                f"--redis={self._redis_url}",
                f"--scheduler={self._scheduler}",
                "--listen=127.0.0.1:0",
                f"--slots={self._settings.slots}",
                f"--drain-grace={STOP_GRACE_S}",
            ]
        )
        self._children.add(child)
        if await child.ready():
            return child
        await child.ended()
        self._children.discard(child)
        return None

    async def _replace(self) -> bool:
        """Start executors with the code as it is now; once they serve, let those before finish what they hold."""
        started = await asyncio.gather(*(self._start() for _ in range(self._settings.executors)))
        fresh = [child for child in started if child is not None]
        if len(fresh) < len(started):
            await asyncio.gather(*(child.stop(STOP_GRACE_S) for child in fresh))
            self._children.difference_update(fresh)
            return False
        retired, self._current = self._current, fresh
        self.deployment = fresh[0].addresses["deployment"]
        async with open_store(self._redis_url) as store:
            await registry.promote(store, self.deployment)
        await asyncio.gather(*(_retire(child) for child in retired))
        for child in fresh:
            self._spawn(self._mind(child))
        return True

    async def _mind(self, child: Child) -> None:
        """Start another one when an executor dies; let it go when it was retired."""
        status = await child.ended()
        self._children.discard(child)
        tries = 0
        while child in self._current and not self._stopping:
            if tries == 0:
                self._console.print(f"[yellow]an executor ended with status {status}; starting another one[/]")
            await asyncio.sleep(CRASH_PAUSES_S[min(tries, len(CRASH_PAUSES_S) - 1)])
            tries += 1
            fresh = await self._start()
            if fresh is not None and child in self._current:
                self._current[self._current.index(child)] = fresh
                self._spawn(self._mind(fresh))

    async def _follow_code(self) -> None:
        async for _ in awatch(_source(self._settings.target), watch_filter=PythonFilter(), step=50, debounce=300):
            before = self.deployment
            if not await self._replace():
                self._console.print("[red]the changed code does not load; the code before goes on[/]")
            elif self.deployment != before:
                self._console.print(
                    f"[green]reloaded[/] as deployment {self.deployment}; runs in flight finish on {before}"
                )

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _retire(child: Child) -> None:
    """Have an executor finish the runs that it holds, take no other, and end."""
    grace = Duration()
    grace.FromSeconds(RELOAD_GRACE_S)
    async with aio.insecure_channel(child.addresses["grpc"]) as channel:
        try:
            await ExecutorServiceStub(channel).Drain(DrainRequest(grace=grace), timeout=RETIRE_TIMEOUT_S)
        except aio.AioRpcError:
            child.terminate()


def _source(target: str) -> Path:
    """Return the folder whose Python files the user's code is made of."""
    path = Path(target)
    if path.exists():
        return path if path.is_dir() else path.resolve().parent
    spec = importlib.util.find_spec(target.partition(".")[0])
    if spec is None or spec.origin is None:
        return Path.cwd()
    return Path(spec.origin).parent
