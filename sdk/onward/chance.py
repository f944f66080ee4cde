"""The time and chance, for code that runs again after a crash: in a run what they gave is remembered.

Called in a run each gives, in a later attempt, what it gave before. Outside a run they are just the functions.
"""

from __future__ import annotations

import asyncio
import random as _random
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from hashlib import blake2b
from threading import get_ident
from typing import TypeVar
from uuid import UUID, uuid4

from pydantic_core import from_json, to_json

from onward.instance import CURRENT, Instance
from onward.journal import THREAD_WAIT_S, inline
from onward.replay import Diverged
from onward.waits import PACE

T = TypeVar("T")

_RANDOM_BITS = 53
"""What a float in [0, 1) can hold."""


def now() -> datetime:
    """Return the time, in UTC."""
    return _ask(
        "onward.now",
        lambda _: datetime.fromtimestamp(PACE.get().clock(), UTC),
        datetime.isoformat,
        datetime.fromisoformat,
    )


def uuid() -> UUID:
    """Return a random UUID (version 4)."""
    return _ask("onward.uuid", _uuid, str, UUID)


def random() -> float:
    """Return a random number: 0 or more, below 1."""
    return _ask("onward.random", _number, repr, float)


def _ask(name: str, make: Callable[[Instance | None], T], dump: Callable[[T], str], load: Callable[[str], T]) -> T:
    caller = CURRENT.get()
    if caller is None or caller.ended:
        return make(None)
    journal = caller.journal
    if get_ident() == journal.thread:
        return _remembered(caller, name, make, dump, load)
    asked: Future[T] = Future()

    def answer() -> None:
        try:
            asked.set_result(_remembered(caller, name, make, dump, load))
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread
            asked.set_exception(error)

    journal.loop.call_soon_threadsafe(answer)
    return asked.result(THREAD_WAIT_S)


def _remembered(
    caller: Instance,
    name: str,
    make: Callable[[Instance | None], T],
    dump: Callable[[T], str],
    load: Callable[[str], T],
) -> T:
    journal = caller.journal
    instance = caller.child(name, streams=False)
    instance.check()
    if journal.replay is not None:
        try:
            record = journal.replay.meet(instance, b"")
        except Diverged as diverged:
            raise journal.diverged_now(instance, diverged.record) from None
        if record is not None and record.output is not None:
            value: str = from_json(record.output.data)
            return load(value)
    if journal.closed:
        raise asyncio.CancelledError("the attempt is over")
    made = make(instance)
    # Nobody waits until it is in the log: what is committed later is committed after it. Chance that is lost with its
    # executor falls the same way again, so that nothing outside can have seen another.
    journal.told(instance, inline(to_json(dump(made))))
    return made


def _uuid(instance: Instance | None) -> UUID:
    return uuid4() if instance is None else UUID(bytes=_derived(instance), version=4)


def _number(instance: Instance | None) -> float:
    if instance is None:
        return _random.random()
    bits = int.from_bytes(_derived(instance), "big") >> (128 - _RANDOM_BITS)
    return bits / 2.0**_RANDOM_BITS


def _derived(instance: Instance) -> bytes:
    """Return 16 bytes that nobody can guess, the same for the same call in the same tries of the same run."""
    digest = blake2b(instance.id.encode(), digest_size=16, key=instance.journal.secret)
    for number in instance.tries():
        digest.update(b"%d " % number)
    return digest.digest()
