"""What a run begins with that is more than one event: brought to where the run will be, piece by piece.

It is made the run's own when that is accepted, in one step: a run is never there without what it has from others.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import Payload
from onward_runlog.connection import Argument
from onward_runlog.store import Store
from onward_runlog.writer import BATCH_BYTES_MAX, BATCH_EVENTS_MAX

STAGED_S = 600.0
"""How long it is kept for the call that accepts the run."""


@dataclass(frozen=True, slots=True)
class Staged:
    """What waits in the store for the run that begins with it.

    Attributes:
        token: Names it.
        attempt: The attempt that the run's own count on from.
        last_offset: How many events there are.
        size: Their bytes.
        errands: What is asked of other runs in the step that accepts the run, as serialized Errands.
    """

    token: str
    attempt: int
    last_offset: int
    size: int
    errands: tuple[bytes, ...] = ()


class Staging:
    """Brings it there in pieces: no call holds the server up for long.

    Args:
        store: The store.
        namespace: Of the run.
        run_id: The run that is to begin with it.

    Attributes:
        token: Names what is brought.
    """

    def __init__(self, store: Store, namespace: str, run_id: str) -> None:
        self.token = secrets.token_hex(8)
        self._store = store
        self._base, self._ref = store.place(namespace, run_id)
        self._next = 1
        self._events: list[Argument] = []
        self._memo: list[Argument] = []
        self._blobs: list[Argument] = []
        self._signals: list[Argument] = []
        self._waiting = 0
        self._size = 0

    async def add_event(self, data: bytes) -> None:
        """Add an event; the log sets its offset."""
        await self._room(len(data))
        self._events.append(data)

    async def add_signal(self, event: Event) -> None:
        """Add a SignalReceived. One that is sent with its request_id later is a repeat."""
        await self.add_event(event.SerializeToString())
        signal = event.signal_received
        place = f"{self._next + len(self._events) - 1}:{signal_digest(signal.name, signal.value)}"
        self._signals += (signal.request_id, place)

    async def add_memo(self, name: bytes, value: bytes) -> None:
        """Add a value for later attempts."""
        await self._room(len(value))
        self._memo += (name, value)

    async def add_blob(self, name: bytes, value: bytes) -> None:
        """Add a value that lies beside the log."""
        await self._room(len(value))
        self._blobs += (name, value)

    async def done(self) -> tuple[int, int]:
        """Send what is left, and return how many events there are, and their bytes."""
        await self._send()
        return self._next - 1, self._size

    async def _room(self, size: int) -> None:
        if self._waiting + size > BATCH_BYTES_MAX or len(self._events) + len(self._memo) >= BATCH_EVENTS_MAX:
            await self._send()
        self._waiting += size

    async def _send(self) -> None:
        n = len(self._events)
        self._size = await self._store.call(
            "stage",
            self._base,
            self._ref,
            self.token,
            int(STAGED_S * 1000),
            self._next,
            n,
            *self._events,
            len(self._memo) // 2,
            *self._memo,
            len(self._blobs) // 2,
            *self._blobs,
            len(self._signals) // 2,
            *self._signals,
        )
        self._next += n
        self._events, self._memo, self._blobs, self._signals, self._waiting = [], [], [], [], 0


def signal_digest(name: str, value: Payload) -> str:
    """Return what the repeat of a signal has in common with the first."""
    data = value.SerializeToString(deterministic=True)
    return hashlib.blake2b(name.encode() + b"\0" + data, digest_size=16).hexdigest()
