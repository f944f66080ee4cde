"""`onward dev`: an embedded store, all services, and executors that follow the user's code."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from google.protobuf.duration_pb2 import Duration
from grpc.aio import AioRpcError
from rich.console import Console
from rich.text import Text
from watchfiles import PythonFilter, awatch

from onward.v1.executor_service_pb2 import DrainRequest
from onward.v1.executor_service_pb2_grpc import ExecutorServiceStub
from onward_cli import scraped
from onward_cli.children import Child, tell_ready
from onward_cli.serving import Target, at_least, listed, serve
from onward_cli.valkey import StoreError, Valkey, embedded_valkey
from onward_gateway import app as gateway_app
from onward_gateway.settings import Settings as GatewaySettings
from onward_runlog import registry
from onward_runlog.store import open_store
from onward_scheduler import app as scheduler_app
from onward_scheduler.settings import Settings as SchedulerSettings
from onward_serving.addresses import address
from onward_serving.environment import SettingInvalid
from onward_serving.tls import Peers

RELOAD_GRACE_S = 24 * 3600
"""How long runs in flight may go on in executors with the code before a change."""

RETIRE_TIMEOUT_S = 5.0

ADOPT_AFTER_S = 1.0
"""How long code may have no executor until runs that wait for one go on in the code as it is now."""

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
    cors_origins: tuple[str, ...] = ()
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
    async with contextlib.AsyncExitStack() as stack:
        valkey = await stack.enter_async_context(embedded_valkey(settings.data))
        await stack.enter_async_context(_kept(valkey))
        scheduler = await stack.enter_async_context(
            scheduler_app.opened(
                dataclasses.replace(
                    SchedulerSettings.from_env(),
                    redis_url=valkey.url,
                    listen="127.0.0.1:0",
                    resume_on_newest=True,
                    adopt_after_s=ADOPT_AFTER_S,
                )
            )
        )
        gateway = await stack.enter_async_context(
            gateway_app.opened(
                GatewaySettings(
                    redis_url=valkey.url,
                    schedulers=(scheduler.address,),
                    grpc=settings.grpc,
                    http=settings.http,
                    cors_origins=settings.cors_origins,
                    peers=Peers.from_env(),
                )
            )
        )
        crew = Crew(settings, redis_url=valkey.url, scheduler=scheduler.address)
        await stack.enter_async_context(crew.working())
        tell(f"onward dev  {settings.target}  (deployment {crew.deployment})", "bold")
        tell(f"  gRPC       {gateway.grpc}")
        tell(f"  HTTP       http://{gateway.http}")
        tell(f"  console    http://{gateway.http}/console")
        tell(f"  scheduler  {scheduler.address}")
        tell(f"  store      {valkey.url}  (kept in {settings.data}/)")
        if figures := scraped.address(0):
            tell(f"  figures    {figures}  (Gateway and Scheduler)")
        tell(f"  executors  {settings.executors}, with {settings.slots} slots each")
        tell(f"  try        onward workflows --gateway {gateway.grpc}")
        yield gateway
        tell("stopping: runs in flight are handed over and go on when you start again")


def dev(
    target: Target,
    *,
    data: Annotated[Path, Parameter(help="Where the embedded store keeps everything.")] = Settings.data,
    grpc: Annotated[str, Parameter(help="HOST:PORT for gRPC; port 0 picks a free one.")] = Settings.grpc,
    http: Annotated[str, Parameter(help="HOST:PORT for HTTP; port 0 picks a free one.")] = Settings.http,
    cors_origin: Annotated[
        str,
        Parameter(
            help="Origins of web pages that may use the HTTP door, comma-separated: your front end's own development "
            "server, e.g. http://localhost:5173."
        ),
    ] = "",
    executors: Annotated[int, Parameter(help="Executor processes.", validator=at_least(1))] = Settings.executors,
    slots: Annotated[
        int, Parameter(help="Runs that each executor takes at a time.", validator=at_least(1))
    ] = Settings.slots,
    reload: Annotated[bool, Parameter(help="Follow changes of the code.")] = Settings.reload,
) -> None:
    """Run everything on this machine: an embedded store, all services, and your code, reloaded when it changes.

    Example: onward dev blog_writer.py
    """
    settings = Settings(
        target=target,
        data=data,
        grpc=_own_address("--grpc", grpc),
        http=_own_address("--http", http),
        cors_origins=listed(cors_origin) or (),
        executors=executors,
        slots=slots,
        reload=reload,
    )
    serve(
        "onward-dev",
        lambda _: opened(settings),
        lambda doors: tell_ready(grpc=doors.grpc, http=doors.http),
        StoreError,
        CodeError,
        log_level="WARNING",
        starts_processes=True,
    )


def _own_address(name: str, listen: str) -> str:
    """Return where a door listens. What others reach has to ask for keys, which is nothing for a developer's machine.

    Raises:
        SettingInvalid: It is no address, or others can reach it.
    """
    if not gateway_app.is_loopback(address(listen, name)):
        raise SettingInvalid(
            f"{name}={listen}: others could reach it, and `onward dev` asks for no API keys: it listens on loopback. "
            "`onward gateway` asks for them"
        )
    return listen


def tell(text: str, style: str = "") -> None:
    """Say something to the developer. On stderr: stdout has the ready line and what user code prints."""
    Console(stderr=True).print(Text(text, style), soft_wrap=True)


@contextlib.asynccontextmanager
async def _kept(valkey: Valkey) -> AsyncIterator[None]:
    """Start the store again whenever it ends by itself, until the block ends. It keeps what it acknowledged."""

    async def keep() -> None:
        while True:
            status = await valkey.wait()
            tell(f"the store ended with status {status}; starting it again", "yellow")
            try:
                await valkey.start()
            except StoreError as error:
                tell(str(error), "red")
                await asyncio.sleep(CRASH_PAUSES_S[-1])

    keeping = asyncio.create_task(keep(), name="store")
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


class Crew:
    """The executors of the code as it is now, and those that finish runs of the code as it was.

    Args:
        settings: As given.
        redis_url: The store.
        scheduler: HOST:PORT.
    """

    def __init__(self, settings: Settings, *, redis_url: str, scheduler: str) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._scheduler = scheduler
        self._current: list[Child] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._children: dict[Child, int] = {}
        """Each has a number of its own while it lives, from 1."""
        self._starting = asyncio.Lock()
        self._served = asyncio.Event()
        self.deployment = ""

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[Crew]:
        """Keep executors running until the block ends."""
        try:
            if self._settings.reload:
                self._spawn(self._follow_code())
                await asyncio.sleep(0)  # it watches before the code is read: no change is missed
            if not await self._replace():
                raise CodeError(f"{self._settings.target} cannot be served; the reason stands above")
            self._served.set()
            yield self
        finally:
            self._current = []
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(child.stop(STOP_GRACE_S + 5.0) for child in self._children))

    async def _start(self) -> Child | None:
        async with self._starting:
            number = next(each for each in itertools.count(1) if each not in self._children.values())
            child = await Child.start(
                [
                    "executor",
                    self._settings.target,
                    f"--redis={self._redis_url}",
                    f"--scheduler={self._scheduler}",
                    "--listen=127.0.0.1:0",
                    f"--slots={self._settings.slots}",
                    f"--drain-grace={STOP_GRACE_S}",
                ],
                scraped.port(number),
            )
            self._children[child] = number
        if await child.ready():
            if figures := scraped.address(number):
                tell(f"figures of an executor: {figures}")
            return child
        await child.ended()
        del self._children[child]
        return None

    async def _replace(self) -> bool:
        """Serve the code as it is now, and let executors of the code before finish. False if it does not load."""
        first = await self._start()
        if first is None:
            return False
        # After the first one, so that code which does not load says so once.
        others = await asyncio.gather(*(self._start() for _ in range(self._settings.executors - 1)))
        fresh = [first, *(child for child in others if child is not None)]
        if len(fresh) < self._settings.executors:
            tell(f"only {len(fresh)} of {self._settings.executors} executors started", "yellow")
        retired, self._current = self._current, fresh
        self.deployment = first.addresses["deployment"]
        async with open_store(self._redis_url) as store:
            await registry.promote(store, self.deployment)
        self._spawn(_retire(retired))
        for child in self._current:
            self._spawn(self._mind(child))
        return True

    async def _mind(self, child: Child) -> None:
        """Start another one when an executor dies; let it go when it was retired."""
        status = await child.ended()
        del self._children[child]
        if child in self._current:
            tell(f"an executor ended with status {status}; starting another one", "yellow")
        for pause_s in itertools.chain(CRASH_PAUSES_S, itertools.repeat(CRASH_PAUSES_S[-1])):
            await asyncio.sleep(pause_s)
            if child not in self._current:
                return
            fresh = await self._start()
            if fresh is None:
                continue
            if child not in self._current:  # the code has changed meanwhile
                await _retire([fresh])
                return
            self._current[self._current.index(child)] = fresh
            self._spawn(self._mind(fresh))
            return

    async def _follow_code(self) -> None:
        changes = awatch(
            _source(self._settings.target),
            watch_filter=PythonFilter(),
            step=50,
            debounce=300,
            ignore_permission_denied=True,
        )
        try:
            async for _ in changes:
                await self._served.wait()
                before = self.deployment
                if not await self._replace():
                    tell("the changed code does not load; the code before goes on", "red")
                elif self.deployment != before:
                    tell(
                        f"reloaded as deployment {self.deployment}; "
                        f"runs in flight finish on {before}, those that wait go on here",
                        "green",
                    )
        except OSError as error:  # too many folders to watch, mostly
            tell(f"changes of the code are not followed: {error}", "red")

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _retire(executors: Sequence[Child]) -> None:
    """Have executors finish the runs that they hold, take no other, and end."""
    grace = Duration()
    grace.FromSeconds(RELOAD_GRACE_S)
    for executor in executors:
        async with Peers.from_env().channel(executor.addresses["grpc"]) as channel:
            try:
                await ExecutorServiceStub(channel).Drain(DrainRequest(grace=grace), timeout=RETIRE_TIMEOUT_S)
            except AioRpcError:
                executor.terminate()


def _source(target: str) -> Path:
    """Return the folder whose Python files the user's code is made of. Imports nothing: that is for executors."""
    path = Path(target)
    if path.exists():
        folder = path.resolve() if path.is_dir() else path.resolve().parent
        while (folder.parent / "__init__.py").is_file():  # a part of a package uses other parts
            folder = folder.parent
        return folder
    try:
        spec = importlib.util.find_spec(target.partition(".")[0])
    except ValueError:
        spec = None
    if spec is None or spec.origin is None:
        return Path.cwd()
    return Path(spec.origin).parent
