"""Results kept across runs: whoever calls a component with the same input, in whichever run, gets the one result.

A cache is a saving and never a need: where it does not answer, the component runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onward.cache import Cache, Owner, StillMade
from onward.durations import Duration, seconds
from onward.signature import dump_any

if TYPE_CHECKING:
    from onward.instance import Instance

logger = logging.getLogger(__name__)

TTL_DEFAULT = "1h"
TTL_MAX_S = 30 * 24 * 3600.0
"""A kept result always expires."""

VALUE_BYTES_MAX = 1024 * 1024
"""A longer result, as JSON, is not kept."""

HOLDER_WAITS_S = 60.0
"""How long a call waits for another that makes what it wants, while a caller of its own makes something too. After that
it runs: two runs that wait for each other do not wait for ever."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What is kept, and for whom.

    Attributes:
        ttl_s: For how long, in seconds.
        version: Another version finds nothing of this one.
        key: Makes of the arguments what a call is known by, instead of all of them.
    """

    ttl_s: float
    version: str = ""
    key: Callable[..., Any] | None = None

    @classmethod
    def of(cls, ttl: Duration, *, version: str, key: Callable[..., Any] | None) -> CachePolicy:
        """Return the policy as `Component.cache` takes it.

        Raises:
            ValueError: The time is no duration above 0, or too long.
        """
        ttl_s = seconds(ttl)
        if not 0 < ttl_s <= TTL_MAX_S:
            raise ValueError(f"a result is kept for more than nothing and at most 30 days, not {ttl!r}")
        return cls(ttl_s, str(version), key)

    def identity(self, name: str, canonical: bytes | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return what a call of the component `name` is known by; empty where it cannot be: its input has no JSON form.

        Raises:
            Exception: What `key` raises, or that it gives has no JSON form.
        """
        if self.key is not None:
            canonical = dump_any(self.key(*args, **kwargs), f"the cache key of {name}")
        if canonical is None:
            return b""
        return b"\0".join((name.encode(), self.version.encode(errors="surrogatepass"), canonical))


class Flight:
    """The making of one result. Ends with `keep` or `release`, whichever comes first."""

    def __init__(self, cache: Cache, key: str, owner: Owner, ttl_s: float) -> None:
        self.key = key
        self._cache: Cache | None = cache
        self._owner = owner
        self._ttl_s = ttl_s

    @property
    def landed(self) -> bool:
        """Whether it has ended."""
        return self._cache is None

    def keep(self, value: bytes) -> None:
        cache, self._cache = self._cache, None
        if cache is None:
            return
        if len(value) > VALUE_BYTES_MAX:
            logger.warning("a result of %d bytes is not cached: over %d", len(value), VALUE_BYTES_MAX)
            cache.release(self.key, self._owner)
        else:
            cache.keep(self.key, self._owner, value, self._ttl_s)

    def release(self) -> None:
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.release(self.key, self._owner)


@dataclass(frozen=True, slots=True)
class Kept:
    """What the cache had."""

    value: Any


async def take(
    policy: CachePolicy, instance: Instance, identity: bytes, load: Callable[[bytes], Any]
) -> Kept | Flight | None:
    """Return the kept result of a call, or its making; None where it is to run as if there were no cache.

    Args:
        policy: That of the component.
        instance: The call.
        identity: What it is known by; empty is by nothing.
        load: Makes the value of what is kept; raises ValueError where it cannot.
    """
    journal = instance.journal
    if journal.cache is None or not identity:
        return None
    key = f"{journal.namespace}/{journal.digest(identity).hex()}"
    if key in instance.flights:
        return None  # Its own making calls it.
    owner = Owner(f"{journal.namespace}/{journal.run_id}/{instance.id}", journal.attempt)
    try:
        data = await journal.cache.take(key, owner, patience_s=HOLDER_WAITS_S if instance.flights else None)
    except StillMade:
        logger.warning("%s runs without the cache: another call has been making its result for long", instance.name)
        return None
    except ConnectionError as error:
        logger.warning("%s runs without the cache: %s", instance.name, error)
        return None
    if data is not None:
        try:
            return Kept(load(data))
        except ValueError as error:
            logger.warning("%s does not read its cached result and makes it again: %s", instance.name, error)
    return Flight(journal.cache, key, owner, policy.ttl_s)
