"""What an operator may change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


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
    """The tenant whose runs this Gateway serves."""
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
        """Read ONWARD_REDIS_URL, ONWARD_SCHEDULER (addresses, separated by commas), ONWARD_GRPC,
        ONWARD_HTTP, ONWARD_NAMESPACE, ONWARD_STREAM_AGE_S, ONWARD_SLOW_READER_S, ONWARD_SLOW_READER_GRACE_S,
        ONWARD_SHUTDOWN_GRACE_S and ONWARD_ALLOW_UNFIT_STORE.
        """
        return cls(
            redis_url=env.get("ONWARD_REDIS_URL", cls.redis_url),
            schedulers=addresses(env["ONWARD_SCHEDULER"]) if env.get("ONWARD_SCHEDULER") else cls.schedulers,
            grpc=env.get("ONWARD_GRPC", cls.grpc),
            http=env.get("ONWARD_HTTP", cls.http),
            namespace=env.get("ONWARD_NAMESPACE", cls.namespace),
            stream_age_s=float(env.get("ONWARD_STREAM_AGE_S", cls.stream_age_s)),
            slow_reader_s=float(env.get("ONWARD_SLOW_READER_S", cls.slow_reader_s)),
            slow_reader_grace_s=float(env.get("ONWARD_SLOW_READER_GRACE_S", cls.slow_reader_grace_s)),
            shutdown_grace_s=float(env.get("ONWARD_SHUTDOWN_GRACE_S", cls.shutdown_grace_s)),
            allow_unfit_store=env.get("ONWARD_ALLOW_UNFIT_STORE", "") == "1",
        )


def addresses(text: str) -> tuple[str, ...]:
    """Return the addresses of a list that is separated by commas."""
    return tuple(address.strip() for address in text.split(",") if address.strip())
