"""`onward executor`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from cyclopts import Parameter

from onward.loading import LoadError
from onward_cli.children import tell_ready
from onward_cli.serving import AllowUnfit, Redis, Schedulers, Target, address_of, addresses_of, at_least, given, serve
from onward_executor.app import opened
from onward_executor.settings import Settings


def executor(
    target: Target,
    *,
    redis: Redis = None,
    scheduler: Schedulers = None,
    listen: Annotated[
        str | None, Parameter(help=f"HOST:PORT; {Settings.listen} by default. [env: ONWARD_EXECUTOR_LISTEN]")
    ] = None,
    advertise: Annotated[
        str | None,
        Parameter(
            help="HOST:PORT at which Schedulers reach it; where it listens by default. [env: ONWARD_EXECUTOR_ADVERTISE]"
        ),
    ] = None,
    slots: Annotated[
        int | None,
        Parameter(
            help=f"Runs taken at a time; {Settings.slots} by default. [env: ONWARD_SLOTS]", validator=at_least(1)
        ),
    ] = None,
    deployment: Annotated[
        str | None,
        Parameter(help="Name of this build of your code; made from its content by default. [env: ONWARD_DEPLOYMENT]"),
    ] = None,
    drain_grace: Annotated[
        float | None,
        Parameter(
            help="Seconds that runs may go on after SIGTERM before another executor takes them; "
            f"{Settings.drain_grace_s:g} by default. [env: ONWARD_DRAIN_GRACE_S]",
            validator=at_least(0),
        ),
    ] = None,
    allow_unfit_store: AllowUnfit = None,
) -> None:
    """Run your code. Any number of executors may run.

    Example: onward executor blog_writer.py --redis redis://127.0.0.1:6379 --scheduler 127.0.0.1:50052
    """
    settings = dataclasses.replace(
        Settings.from_env(target),
        **given(
            redis_url=redis,
            schedulers=addresses_of("--scheduler", scheduler),
            listen=address_of("--listen", listen),
            advertise=address_of("--advertise", advertise),
            slots=slots,
            deployment=deployment,
            drain_grace_s=drain_grace,
            allow_unfit_store=allow_unfit_store,
        ),
    )

    serve(
        "onward-executor",
        lambda stop: opened(settings, stop),
        lambda running: tell_ready(grpc=running.server.address, deployment=running.executor.deployment),
        LoadError,
    )
