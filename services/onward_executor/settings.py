"""What an operator may change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from onward_serving import environment
from onward_serving.addresses import address, addresses
from onward_serving.tls import Peers


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything else is a constant next to its use."""

    target: str
    """The user's code: a file or a dotted module."""
    redis_url: str = "redis://127.0.0.1:6379"
    schedulers: tuple[str, ...] = ("127.0.0.1:50052",)
    """HOST:PORT of Schedulers, tried in this order."""
    listen: str = "127.0.0.1:50060"
    advertise: str = ""
    """HOST:PORT at which Schedulers reach this executor; where it listens unless given."""
    slots: int = 100
    """How many runs it takes at a time."""
    deployment: str = ""
    """Name of this build of the user's code; made from its content unless given."""
    drain_grace_s: float = 30.0
    """How long runs may go on after SIGTERM before they are handed over to another executor."""
    peers: Peers = field(default_factory=Peers)
    """How Schedulers know this executor, and it them."""
    allow_unfit_store: bool = False
    """Serve also from a store that may lose what it acknowledged."""

    @classmethod
    def from_env(cls, target: str, env: Mapping[str, str] = os.environ) -> Settings:
        """Read ONWARD_REDIS_URL, ONWARD_SCHEDULER (comma-separated), ONWARD_EXECUTOR_LISTEN, ONWARD_EXECUTOR_ADVERTISE,
        ONWARD_SLOTS, ONWARD_DEPLOYMENT, ONWARD_DRAIN_GRACE_S, ONWARD_ALLOW_UNFIT_STORE, and what Peers read.

        Raises:
            SettingInvalid: One of them is not what it should be.
        """
        advertise = env.get("ONWARD_EXECUTOR_ADVERTISE")
        return cls(
            target=target,
            redis_url=env.get("ONWARD_REDIS_URL", cls.redis_url),
            schedulers=addresses(env.get("ONWARD_SCHEDULER", ""), "ONWARD_SCHEDULER") or cls.schedulers,
            listen=address(env.get("ONWARD_EXECUTOR_LISTEN") or cls.listen, "ONWARD_EXECUTOR_LISTEN"),
            advertise=address(advertise, "ONWARD_EXECUTOR_ADVERTISE") if advertise else cls.advertise,
            slots=environment.whole(env, "ONWARD_SLOTS", cls.slots),
            deployment=env.get("ONWARD_DEPLOYMENT", cls.deployment),
            drain_grace_s=environment.seconds(env, "ONWARD_DRAIN_GRACE_S", cls.drain_grace_s),
            peers=Peers.from_env(env),
            allow_unfit_store=environment.told(env, "ONWARD_ALLOW_UNFIT_STORE"),
        )
