"""What an operator may change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onward_serving import environment
from onward_serving.addresses import address, addresses
from onward_serving.tls import Peers


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything else is a constant next to its use."""

    redis_url: str = "redis://127.0.0.1:6379"
    schedulers: tuple[str, ...] = ("127.0.0.1:50052",)
    """HOST:PORT of each Scheduler; any of them answers any call."""
    grpc: str = "127.0.0.1:50051"
    """HOST:PORT of the gRPC door; port 0 picks a free one."""
    http: str = "127.0.0.1:8080"
    """HOST:PORT of the HTTP door; port 0 picks a free one."""
    namespace: str = "default"
    """The tenant of callers without an API key."""
    keys: Path | None = None
    """The file of API keys. With one, every call needs a key, which also names its tenant."""
    allow_anonymous: bool = False
    """Serve callers without a key elsewhere than on loopback, too: whoever reaches a door may do everything."""
    tls_cert: Path | None = None
    """The certificate of both doors, with its chain, in PEM. With one they encrypt, and without one they do not."""
    tls_key: Path | None = None
    """Its key."""
    peers: Peers = field(default_factory=Peers)
    """How Schedulers know this Gateway, and it them."""
    http_hosts: tuple[str, ...] = ()
    """Names, beside those of loopback, by which callers without a key may know the HTTP door."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages, e.g. https://app.example, whose scripts may use the HTTP door."""
    http_connections_max: int = 10_000
    """Open at a time. One more is refused."""
    streams_max: int = 50_000
    """Runs followed at a time, over both doors, each follower counted."""
    namespace_streams_max: int = 20_000
    """The same, in one namespace."""
    stream_age_s: float = 30 * 60.0
    """A SubscribeRun stream is handed off at this age, give or take a tenth, so that load can move."""
    slow_reader_s: float = 60.0
    """A reader that leaves one message untaken for longer is handed off."""
    slow_reader_grace_s: float = 30.0
    """A reader that does not even take that is cut after this much more."""
    shutdown_grace_s: float = 10.0
    """How long calls under way may take after SIGTERM; compose must wait longer than this."""
    allow_unfit_store: bool = False
    """Serve also from a store that may lose what it acknowledged."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read ONWARD_REDIS_URL, ONWARD_SCHEDULER, ONWARD_GRPC, ONWARD_HTTP, ONWARD_NAMESPACE, ONWARD_KEYS,
        ONWARD_ALLOW_ANONYMOUS, ONWARD_TLS_CERT, ONWARD_TLS_KEY, what Peers read, ONWARD_HTTP_HOSTS,
        ONWARD_CORS_ORIGINS, ONWARD_HTTP_CONNECTIONS_MAX, ONWARD_STREAMS_MAX, ONWARD_NAMESPACE_STREAMS_MAX,
        ONWARD_STREAM_AGE_S, ONWARD_SLOW_READER_S, ONWARD_SLOW_READER_GRACE_S, ONWARD_SHUTDOWN_GRACE_S and
        ONWARD_ALLOW_UNFIT_STORE. Lists are separated by commas.

        Raises:
            SettingInvalid: One of them is not what it should be.
        """
        return cls(
            redis_url=env.get("ONWARD_REDIS_URL", cls.redis_url),
            schedulers=addresses(env.get("ONWARD_SCHEDULER", ""), "ONWARD_SCHEDULER") or cls.schedulers,
            grpc=address(env.get("ONWARD_GRPC") or cls.grpc, "ONWARD_GRPC"),
            http=address(env.get("ONWARD_HTTP") or cls.http, "ONWARD_HTTP"),
            namespace=env.get("ONWARD_NAMESPACE", cls.namespace),
            keys=environment.path(env, "ONWARD_KEYS"),
            allow_anonymous=environment.told(env, "ONWARD_ALLOW_ANONYMOUS"),
            tls_cert=environment.path(env, "ONWARD_TLS_CERT"),
            tls_key=environment.path(env, "ONWARD_TLS_KEY"),
            peers=Peers.from_env(env),
            http_hosts=environment.listed(env, "ONWARD_HTTP_HOSTS"),
            cors_origins=environment.listed(env, "ONWARD_CORS_ORIGINS"),
            http_connections_max=environment.whole(env, "ONWARD_HTTP_CONNECTIONS_MAX", cls.http_connections_max),
            streams_max=environment.whole(env, "ONWARD_STREAMS_MAX", cls.streams_max),
            namespace_streams_max=environment.whole(env, "ONWARD_NAMESPACE_STREAMS_MAX", cls.namespace_streams_max),
            stream_age_s=environment.seconds(env, "ONWARD_STREAM_AGE_S", cls.stream_age_s, least=0.1),
            slow_reader_s=environment.seconds(env, "ONWARD_SLOW_READER_S", cls.slow_reader_s, least=0.1),
            slow_reader_grace_s=environment.seconds(env, "ONWARD_SLOW_READER_GRACE_S", cls.slow_reader_grace_s),
            shutdown_grace_s=environment.seconds(env, "ONWARD_SHUTDOWN_GRACE_S", cls.shutdown_grace_s),
            allow_unfit_store=environment.told(env, "ONWARD_ALLOW_UNFIT_STORE"),
        )
