"""The commands that serve: dev, gateway, scheduler, executor."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from onward_gateway.settings import Settings as GatewaySettings

from onward_cli import dev
from onward_cli.children import die_with_parent
from onward_cli.valkey import StoreError
from onward_executor import app as executor_app
from onward_executor.settings import Settings as ExecutorSettings
from onward_gateway import app as gateway_app
from onward_runlog.errors import StoreUnfit
from onward_scheduler import app as scheduler_app
from onward_scheduler.settings import Settings as SchedulerSettings
from onward_serving.process import announce, log_to_stderr, stop_on_signals

Redis = Annotated[str | None, Parameter(help="URL of the store. [env: ONWARD_REDIS_URL]")]
Schedulers = Annotated[str | None, Parameter(help="HOST:PORT of Schedulers, comma-separated. [env: ONWARD_SCHEDULER]")]
AllowUnfit = Annotated[
    bool | None,
    Parameter(help="Serve also from a store without append-only file or that evicts keys: accepted runs may be lost."),
]
Target = Annotated[str, Parameter(help="Your code: a Python file or a dotted module with @workflow functions.")]


def serve_commands(app: App) -> None:
    """Add the commands that serve to `app`."""
    for command in (dev_, gateway, scheduler, executor):
        app.command(command, name=command.__name__.rstrip("_"))


def dev_(
    target: Target,
    *,
    data: Annotated[Path, Parameter(help="Where the embedded store keeps everything.")] = dev.Settings.data,
    grpc: Annotated[str, Parameter(help="HOST:PORT for gRPC; port 0 picks a free one.")] = dev.Settings.grpc,
    http: Annotated[str, Parameter(help="HOST:PORT for HTTP; port 0 picks a free one.")] = dev.Settings.http,
    executors: Annotated[int, Parameter(help="Executor processes.")] = dev.Settings.executors,
    slots: Annotated[int, Parameter(help="Runs that each executor takes at a time.")] = dev.Settings.slots,
    reload: Annotated[bool, Parameter(help="Follow changes of the code.")] = True,
) -> None:
    """Run everything on this machine: an embedded store, all services, and your code, reloaded when it changes.

    Example: onward dev blog_writer.py
    """
    settings = dev.Settings(
        target=target, data=data, grpc=grpc, http=http, executors=executors, slots=slots, reload=reload
    )
    _serve(lambda stop: dev.run(settings, stop), quiet=True)


def gateway(
    *,
    redis: Redis = None,
    scheduler: Schedulers = None,
    grpc: Annotated[str | None, Parameter(help="HOST:PORT for gRPC. [env: ONWARD_GRPC]")] = None,
    http: Annotated[str | None, Parameter(help="HOST:PORT for HTTP. [env: ONWARD_HTTP]")] = None,
    namespace: Annotated[str | None, Parameter(help="Tenant whose runs this Gateway serves.")] = None,
    allow_unfit_store: AllowUnfit = None,
) -> None:
    """Serve the public API. Any number of Gateways may run.

    Example: onward gateway --redis redis://127.0.0.1:6379 --scheduler 127.0.0.1:50052
    """
    settings = dataclasses.replace(
        GatewaySettings.from_env(),
        **_given(
            redis_url=redis,
            schedulers=_split(scheduler),
            grpc=grpc,
            http=http,
            namespace=namespace,
            allow_unfit_store=allow_unfit_store,
        ),
    )

    async def run(stop: asyncio.Event) -> None:
        async with gateway_app.opened(settings) as running:
            announce(grpc=running.grpc, http=running.http)
            await stop.wait()

    _serve(run)


def scheduler(
    *,
    redis: Redis = None,
    listen: Annotated[str | None, Parameter(help="HOST:PORT. [env: ONWARD_SCHEDULER_LISTEN]")] = None,
    lease_ttl: Annotated[float | None, Parameter(help="Seconds until a silent executor is replaced.")] = None,
    allow_unfit_store: AllowUnfit = None,
) -> None:
    """Decide which run goes where and when. Any number of Schedulers may run.

    Example: onward scheduler --redis redis://127.0.0.1:6379 --listen 127.0.0.1:50052
    """
    settings = dataclasses.replace(
        SchedulerSettings.from_env(),
        **_given(redis_url=redis, listen=listen, lease_ttl_s=lease_ttl, allow_unfit_store=allow_unfit_store),
    )

    async def run(stop: asyncio.Event) -> None:
        async with scheduler_app.opened(settings) as server:
            announce(grpc=server.address)
            await stop.wait()

    _serve(run)


def executor(
    target: Target,
    *,
    redis: Redis = None,
    scheduler: Schedulers = None,
    listen: Annotated[str | None, Parameter(help="HOST:PORT. [env: ONWARD_EXECUTOR_LISTEN]")] = None,
    advertise: Annotated[str | None, Parameter(help="HOST:PORT at which Schedulers reach it.")] = None,
    slots: Annotated[int | None, Parameter(help="Runs taken at a time. [env: ONWARD_SLOTS]")] = None,
    deployment: Annotated[str | None, Parameter(help="Name of this build of your code.")] = None,
    drain_grace: Annotated[float | None, Parameter(help="Seconds that runs may go on after SIGTERM.")] = None,
    allow_unfit_store: AllowUnfit = None,
) -> None:
    """Run your code. Any number of executors may run.

    Example: onward executor blog_writer.py --redis redis://127.0.0.1:6379 --scheduler 127.0.0.1:50052
    """
    settings = dataclasses.replace(
        ExecutorSettings.from_env(target),
        **_given(
            redis_url=redis,
            schedulers=_split(scheduler),
            listen=listen,
            advertise=advertise,
            slots=slots,
            deployment=deployment,
            drain_grace_s=drain_grace,
            allow_unfit_store=allow_unfit_store,
        ),
    )

    async def run(stop: asyncio.Event) -> None:
        async with executor_app.opened(settings, stop) as running:
            announce(grpc=running.server.address, deployment=running.executor.deployment)
            await stop.wait()

    _serve(run)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _split(addresses: str | None) -> tuple[str, ...] | None:
    return tuple(addresses.split(",")) if addresses else None


def _serve(work: Callable[[asyncio.Event], Awaitable[None]], *, quiet: bool = False) -> None:
    die_with_parent()
    log_to_stderr(os.environ.get("ONWARD_LOG_LEVEL", "WARNING" if quiet else "INFO"))

    async def main() -> None:
        stop = asyncio.Event()
        with stop_on_signals(stop):
            await work(stop)

    try:
        asyncio.run(main())
    except (OSError, StoreError, StoreUnfit) as error:
        sys.exit(f"onward: {error}")
