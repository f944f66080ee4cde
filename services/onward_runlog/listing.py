"""Runs by create_time, newest first: the partitions' indexes merged, never a scan over keys."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from onward.v1.run_pb2 import Run, RunState
from onward_runlog import keys
from onward_runlog.reader import first_offset
from onward_runlog.record import LISTED, run_from
from onward_runlog.store import Store

EXAMINED_MAX = 2_000
"""Entries looked at for one page. A filter that keeps few runs gives pages with few, even none, before the end."""

EXAMINED_AT_ONCE = 512
"""Entries looked at together where more than one index has a say."""

FETCH_MIN = 8
"""Entries asked for at a time from one index of one partition."""

PAGE_BYTES_MAX = 1024 * 1024
"""Runs together, or one run, on a page: a client takes messages of 4 MiB, and a run's labels and error are many KiB."""

_HEAD = struct.Struct(">B8sQ")
_CHECK = struct.Struct(">I")
_VERSION = 1


class PageTokenInvalid(ValueError):
    """The page token is malformed, or of a listing with other filters."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which runs of a namespace to list; what is empty keeps all."""

    namespace: str
    workflow: str = ""
    states: frozenset[RunState.ValueType] = frozenset()
    labels: Mapping[str, str]
    parent_run_id: str = ""

    def keeps(self, run: Run) -> bool:
        """Say whether a run is listed."""
        return (
            (not self.workflow or run.workflow == self.workflow)
            and (not self.states or run.state in self.states)
            and (not self.parent_run_id or run.parent_run_id == self.parent_run_id)
            and all(run.labels.get(key) == value for key, value in self.labels.items())
        )

    def indexes(self) -> list[list[str]]:
        """Return the indexes that hold every run of the listing: any one list of them is enough."""
        choices = []
        if self.workflow:
            choices.append([keys.by_workflow(self.workflow)])
        if self.states:
            choices.append([keys.by_state(state) for state in sorted(self.states)])
        if self.parent_run_id:
            choices.append([keys.by_parent(self.parent_run_id)])
        choices += [[keys.by_label(key, value)] for key, value in sorted(self.labels.items())]
        return choices or [[keys.ALL]]

    @property
    def digest(self) -> bytes:
        """What a page token carries, so that it is not used with other filters."""
        parts = [self.namespace, self.workflow, repr(sorted(self.states)), repr(sorted(self.labels.items()))]
        return hashlib.blake2b("\0".join([*parts, self.parent_run_id]).encode(), digest_size=8).digest()


Place = tuple[int, str]
"""Where a run stands in the order: create_time in microseconds, then run_id, both descending."""

Entry = tuple[Place, str]
"""A run's place, and its partition's base name."""


@dataclass(frozen=True, slots=True)
class Page:
    """Attributes:
    runs: Newest first, without input and output.
    next_token: Empty at the end.
    """

    runs: list[Run]
    next_token: str


class Listing:
    """Lists the runs of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, wanted: Filter, *, size: int, token: str = "") -> Page:
        """Return the next runs.

        Args:
            size: Runs on the page, at most. It has fewer where they are over PAGE_BYTES_MAX.
            token: Page.next_token of the page before; empty for the first.

        Raises:
            PageTokenInvalid: The token is not one of this listing.
            StoreUnavailable: The indexes cannot be read.
        """
        place = _parse(token, wanted) if token else None
        choices = wanted.indexes()
        smallest = await self._smallest(wanted.namespace, choices)
        others = [choice for choice in choices if choice is not smallest]
        at_once = max(size, EXAMINED_AT_ONCE) if others else size
        merge = _Merge(self._store, wanted.namespace, smallest, place, at_once)
        runs: list[Run] = []
        examined, bytes_, more = 0, 0, True
        while more and len(runs) < size and examined < EXAMINED_MAX:
            entries = await merge.take(at_once)
            more = bool(entries)
            # Records are read only of runs that stand in every index: asking the indexes is cheap.
            standing = await self._standing(wanted.namespace, entries, others)
            read = [entry for entry in entries if entry in standing][: size - len(runs)]
            records = dict(zip(read, await self._runs(wanted.namespace, read), strict=True))
            for entry in entries:
                if entry in standing and entry not in records:
                    break  # the page is full; what was taken too much comes again on the next one
                run = records.get(entry)
                if run is not None and wanted.keeps(run):
                    bytes_ += run.ByteSize()
                    if bytes_ > PAGE_BYTES_MAX and runs:
                        break  # so is this one
                    runs.append(run)
                place = entry[0]
                examined += 1
            else:
                more = more and not await merge.ended()
                continue
            break
        return Page(runs, _token(place, wanted) if more and place else "")

    async def _smallest(self, namespace: str, choices: list[list[str]]) -> list[str]:
        if len(choices) == 1:
            return choices[0]
        # In one partition: hashing makes them alike, and where they are small it does not matter which is the smallest.
        base = self._store.bases()[0]
        sizes = [self._store.command("ZCARD", keys.index(base, namespace, name)) for names in choices for name in names]
        counted = iter(await asyncio.gather(*sizes))
        totals = [sum(next(counted) for _ in choice) for choice in choices]
        return choices[totals.index(min(totals))]

    async def _standing(self, namespace: str, entries: Sequence[Entry], choices: Sequence[Sequence[str]]) -> set[Entry]:
        """Return the entries that stand in one index at least of every choice."""
        standing = set(entries)
        by_base: dict[str, list[Entry]] = {}
        for entry in entries if choices else ():
            by_base.setdefault(entry[1], []).append(entry)
        asked = [
            (number, each, self._store.command("ZMSCORE", keys.index(base, namespace, name), *run_ids))
            for base, each in by_base.items()
            for run_ids in [[place[1] for place, _ in each]]
            for number, choice in enumerate(choices)
            for name in choice
        ]
        found: list[set[Entry]] = [set() for _ in choices]
        for number, each, call in asked:
            found[number].update(entry for entry, score in zip(each, await call, strict=True) if score is not None)
        return standing.intersection(*found)

    async def _runs(self, namespace: str, entries: Sequence[Entry]) -> list[Run | None]:
        """Return the runs of entries; None for one that was deleted meanwhile."""
        calls: list[asyncio.Future[Any]] = []
        for (_, run_id), base in entries:
            ref = keys.ref(namespace, run_id)
            calls.append(self._store.command("HMGET", keys.run(base, ref), *LISTED))
            calls.append(self._store.command("XRANGE", keys.log(base, ref), "-", "+", "COUNT", 1))
        replies = await asyncio.gather(*calls)
        runs: list[Run | None] = []
        for values, first in zip(replies[::2], replies[1::2], strict=True):
            if values[0] is None:
                runs.append(None)
                continue
            run = run_from(dict(zip(_LISTED, values, strict=True)))
            run.log.first_offset = first_offset(first, run.log.last_offset)
            runs.append(run)
        return runs


_LISTED = [name.encode() for name in LISTED]


class _Merge:
    """The entries of some indexes over all partitions, in order, each run once."""

    def __init__(self, store: Store, namespace: str, names: Iterable[str], place: Place | None, size: int) -> None:
        # Partitions are alike, but not the same: so much is enough that hardly any has to be asked twice.
        mean = size / store.partitions
        each = max(FETCH_MIN, math.ceil(mean + 3 * math.sqrt(mean)))
        self._branches = [
            _Branch(store, base, keys.index(base, namespace, name), place, each)
            for name in names
            for base in store.bases()
        ]
        self._entries: list[Entry] = []
        """Read and not yet taken, the next one last."""

    async def ended(self) -> bool:
        """Say whether nothing is left to take."""
        await self._read(1)
        return not self._entries

    async def take(self, count: int) -> list[Entry]:
        """Return the next `count` entries; fewer only at the end."""
        await self._read(count)
        taken = self._entries[-count:]
        del self._entries[-count:]
        taken.reverse()
        return taken

    async def _read(self, count: int) -> None:
        """Read on until the next `count` entries are known."""
        while behind := self._behind(count):
            read = await asyncio.gather(*(branch.read() for branch in behind))
            # A run that changes its state meanwhile may stand in two indexes.
            self._entries = sorted({*self._entries, *chain.from_iterable(read)})

    def _behind(self, count: int) -> list[_Branch]:
        """Return the branches that one of the next `count` entries may still come from."""
        unread = [branch for branch in self._branches if not branch.ended]
        if len(self._entries) < count:
            return unread
        last = self._entries[-count][0]
        return [branch for branch in unread if branch.place is None or branch.place > last]


class _Branch:
    """One index of one partition, read piece by piece.

    Attributes:
        place: Where it was read to; None before its beginning.
        ended: Nothing is left to read.
    """

    def __init__(self, store: Store, base: str, key: str, place: Place | None, each: int) -> None:
        self.place = place
        self.ended = False
        self._store = store
        self._base = base
        self._key = key
        self._each = each

    async def read(self) -> list[Entry]:
        """Return the next piece; nothing at the end."""
        entries: list[Entry] = []
        skipped = 0
        after = self.place
        while not entries and not self.ended:
            reply = await self._store.command(
                "ZREVRANGEBYSCORE",
                self._key,
                after[0] if after else "+inf",
                "-inf",
                "WITHSCORES",
                "LIMIT",
                skipped,
                self._each,
            )
            read = [(int(score), run_id.decode()) for run_id, score in zip(reply[::2], reply[1::2], strict=True)]
            # Those of the very same microsecond come again: a score is where to begin, run_id breaks the tie.
            entries = [(place, self._base) for place in read if after is None or place < after]
            self.ended = len(read) < self._each
            skipped += len(read)
        if entries:
            self.place = entries[-1][0]
        return entries


def _token(place: Place, wanted: Filter) -> str:
    data = _HEAD.pack(_VERSION, wanted.digest, place[0]) + place[1].encode()
    return base64.urlsafe_b64encode(data + _CHECK.pack(zlib.crc32(data))).decode().rstrip("=")


def _parse(token: str, wanted: Filter) -> Place:
    try:
        data = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        data, check = data[: -_CHECK.size], data[-_CHECK.size :]
        if _CHECK.unpack(check)[0] != zlib.crc32(data):
            raise PageTokenInvalid("it is malformed")
        version, digest, score = _HEAD.unpack_from(data)
        run_id = data[_HEAD.size :].decode()
    except (UnicodeError, struct.error, binascii.Error):
        raise PageTokenInvalid("it is malformed") from None
    if version != _VERSION:
        raise PageTokenInvalid("it is of another version")
    if digest != wanted.digest:
        raise PageTokenInvalid("it is from a listing with other filters")
    return score, run_id
