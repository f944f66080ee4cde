"""`onward gateway`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onward_cli.children import tell_ready
from onward_cli.serving import AllowUnfit, Redis, Schedulers, address_of, addresses_of, given, listed, serve
from onward_gateway.access import KeysInvalid
from onward_gateway.app import Unprotected, opened
from onward_gateway.settings import Settings


def gateway(
    *,
    redis: Redis = None,
    scheduler: Schedulers = None,
    grpc: Annotated[
        str | None, Parameter(help=f"HOST:PORT for gRPC; {Settings.grpc} by default. [env: ONWARD_GRPC]")
    ] = None,
    http: Annotated[
        str | None, Parameter(help=f"HOST:PORT for HTTP; {Settings.http} by default. [env: ONWARD_HTTP]")
    ] = None,
    keys: Annotated[
        str | None,
        Parameter(help="File of API keys, see `onward keys new`: then every call needs one. [env: ONWARD_KEYS]"),
    ] = None,
    allow_anonymous: Annotated[
        bool | None,
        Parameter(
            help="Ask for no API keys elsewhere than on loopback, too: whoever can connect may do everything. "
            "[env: ONWARD_ALLOW_ANONYMOUS=1]",
            negative="",
        ),
    ] = None,
    tls_cert: Annotated[
        str | None,
        Parameter(help="Certificate of both ports, with its chain, in PEM: then they encrypt. [env: ONWARD_TLS_CERT]"),
    ] = None,
    tls_key: Annotated[str | None, Parameter(help="Its key, in PEM. [env: ONWARD_TLS_KEY]")] = None,
    namespace: Annotated[
        str | None, Parameter(help="Tenant of callers without an API key. [env: ONWARD_NAMESPACE]")
    ] = None,
    cors_origin: Annotated[
        str | None,
        Parameter(
            help="Origins of web pages that may use the HTTP door, comma-separated, e.g. https://app.example. "
            "[env: ONWARD_CORS_ORIGINS]"
        ),
    ] = None,
    http_host: Annotated[
        str | None,
        Parameter(
            help="Names by which callers without an API key may know the HTTP door, beside localhost, comma-separated. "
            "[env: ONWARD_HTTP_HOSTS]"
        ),
    ] = None,
    allow_unfit_store: AllowUnfit = None,
) -> None:
    """Serve the public API. Any number of Gateways may run.

    Example: onward gateway --redis redis://127.0.0.1:6379 --scheduler 127.0.0.1:50052
    """
    settings = dataclasses.replace(
        Settings.from_env(),
        **given(
            redis_url=redis,
            schedulers=addresses_of("--scheduler", scheduler),
            grpc=address_of("--grpc", grpc),
            http=address_of("--http", http),
            keys=Path(keys) if keys else None,
            tls_cert=Path(tls_cert) if tls_cert else None,
            tls_key=Path(tls_key) if tls_key else None,
            allow_anonymous=allow_anonymous,
            namespace=namespace,
            cors_origins=listed(cors_origin),
            http_hosts=listed(http_host),
            allow_unfit_store=allow_unfit_store,
        ),
    )

    serve(
        "onward-gateway",
        lambda _: opened(settings),
        lambda doors: tell_ready(grpc=doors.grpc, http=doors.http),
        Unprotected,
        KeysInvalid,
    )
