"""`onward gateway`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from cyclopts import Parameter

from onward_cli.children import tell_ready
from onward_cli.serving import AllowUnfit, Redis, Schedulers, addresses, given, serve
from onward_gateway.app import opened
from onward_gateway.settings import Settings


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
        Settings.from_env(),
        **given(
            redis_url=redis,
            schedulers=addresses(scheduler),
            grpc=grpc,
            http=http,
            namespace=namespace,
            allow_unfit_store=allow_unfit_store,
        ),
    )

    serve("onward-gateway", lambda _: opened(settings), lambda doors: tell_ready(grpc=doors.grpc, http=doors.http))
