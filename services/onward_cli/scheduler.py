"""`onward scheduler`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from cyclopts import Parameter

from onward_cli.children import tell_ready
from onward_cli.serving import AllowUnfit, Redis, address_of, at_least, given, serve
from onward_scheduler.app import opened
from onward_scheduler.settings import Settings


def scheduler(
    *,
    redis: Redis = None,
    listen: Annotated[
        str | None, Parameter(help=f"HOST:PORT; {Settings.listen} by default. [env: ONWARD_SCHEDULER_LISTEN]")
    ] = None,
    lease_ttl: Annotated[
        float | None,
        Parameter(
            help=f"Seconds until a silent executor is replaced; {Settings.lease_ttl_s:g} by default. "
            "[env: ONWARD_LEASE_TTL_S]",
            validator=at_least(0.1),
        ),
    ] = None,
    adopt_after: Annotated[
        float | None,
        Parameter(
            help="Seconds that a build may have no executor until its waiting runs go on in the newest one; without it "
            "they wait. [env: ONWARD_ADOPT_AFTER_S]",
            validator=at_least(0),
        ),
    ] = None,
    allow_unfit_store: AllowUnfit = None,
) -> None:
    """Decide which run goes where and when. Any number of Schedulers may run.

    Example: onward scheduler --redis redis://127.0.0.1:6379 --listen 127.0.0.1:50052
    """
    settings = dataclasses.replace(
        Settings.from_env(),
        **given(
            redis_url=redis,
            listen=address_of("--listen", listen),
            lease_ttl_s=lease_ttl,
            adopt_after_s=adopt_after,
            allow_unfit_store=allow_unfit_store,
        ),
    )

    serve("onward-scheduler", lambda _: opened(settings), lambda server: tell_ready(grpc=server.address))
