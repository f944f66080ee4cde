"""What an operator may change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from onward_serving import environment
from onward_serving.addresses import address
from onward_serving.tls import Peers


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything else is a constant next to its use."""

    redis_url: str = "redis://127.0.0.1:6379"
    listen: str = "127.0.0.1:50052"
    lease_ttl_s: float = 5.0
    """How long a run waits for an executor that has gone silent before another one takes it."""
    retention_s: float = 7 * 24 * 3600.0
    """How long a finished run, its log and its request_id are kept."""
    cancel_grace_s: float = 10.0
    """How long user code may clean up after a cancellation, and how long it may take until somebody comes to do it."""
    shutdown_grace_s: float = 10.0
    """How long calls under way may take after SIGTERM."""
    resume_on_newest: bool = False
    """A paused run that is resumed without naming a deployment goes on in the one that takes new runs."""
    adopt_after_s: float | None = None
    """A run that waits for a deployment which has had no executor for so long is moved to the newest one that has, and
    serves its workflow. None leaves it: an executor of the build that it began with may come back."""
    on_run_end: tuple[str, ...] = ()
    """Who is told of every run that ends: http(s) URLs or workflows; beside those that its workflow names. Not told of
    are runs that a notification has started."""
    on_run_paused: tuple[str, ...] = ()
    """The same for every run that is PAUSED."""
    webhook_secret: str = field(default="", repr=False)
    """Signs webhooks: "whsec_" and base64, or any text. Empty leaves them unsigned."""
    peers: Peers = field(default_factory=Peers)
    """How Gateways and executors know this Scheduler, and it them."""
    allow_unfit_store: bool = False
    """Serve also from a store that may lose what it acknowledged."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read ONWARD_REDIS_URL, ONWARD_SCHEDULER_LISTEN, ONWARD_LEASE_TTL_S, ONWARD_RETENTION_S,
        ONWARD_CANCEL_GRACE_S, ONWARD_SHUTDOWN_GRACE_S, ONWARD_ADOPT_AFTER_S, ONWARD_ALLOW_UNFIT_STORE,
        ONWARD_ON_RUN_END and ONWARD_ON_RUN_PAUSED (comma-separated), ONWARD_WEBHOOK_SECRET, and what Peers read.

        Raises:
            SettingInvalid: One of them is not what it should be.
        """
        adopts = bool(env.get("ONWARD_ADOPT_AFTER_S"))
        return cls(
            redis_url=env.get("ONWARD_REDIS_URL", cls.redis_url),
            listen=address(env.get("ONWARD_SCHEDULER_LISTEN") or cls.listen, "ONWARD_SCHEDULER_LISTEN"),
            lease_ttl_s=environment.seconds(env, "ONWARD_LEASE_TTL_S", cls.lease_ttl_s, least=0.1),
            retention_s=environment.seconds(env, "ONWARD_RETENTION_S", cls.retention_s),
            cancel_grace_s=environment.seconds(env, "ONWARD_CANCEL_GRACE_S", cls.cancel_grace_s),
            shutdown_grace_s=environment.seconds(env, "ONWARD_SHUTDOWN_GRACE_S", cls.shutdown_grace_s),
            adopt_after_s=environment.seconds(env, "ONWARD_ADOPT_AFTER_S", 0.0) if adopts else None,
            on_run_end=environment.listed(env, "ONWARD_ON_RUN_END"),
            on_run_paused=environment.listed(env, "ONWARD_ON_RUN_PAUSED"),
            webhook_secret=env.get("ONWARD_WEBHOOK_SECRET", ""),
            peers=Peers.from_env(env),
            allow_unfit_store=environment.told(env, "ONWARD_ALLOW_UNFIT_STORE"),
        )
