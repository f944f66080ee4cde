"""Runs by create_time, newest first: the partitions' indexes merged, never a scan over keys."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import heapq
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
            size: Runs on the page, at most.
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
        examined, more = 0, True
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
                place = entry[0]
                examined += 1
                run = records.get(entry)
                if run is not None and wanted.keeps(run):
                    runs.append(run)
            else:
                more = more and bool(await merge.peek())
                continue
            break
        return Page(runs, _token(place, wanted) if more and place else "")

    async def _smallest(self, namespace: str, choices: list[list[str]]) -> list[str]:
        if len(choices) == 1:
            return choices[0]
        sizes = [
            self._store.command("ZCARD", keys.index(base, namespace, name))
            for choice in choices
            for name in choice
            for base in self._store.bases()
        ]
        counted = iter(await asyncio.gather(*sizes))
        totals = [sum(next(counted) for _ in range(len(choice) * self._store.partitions)) for choice in choices]
        return choices[totals.index(min(totals))]

    async def _standing(
        self, namespace: str, entries: Sequence[tuple[Place, str]], choices: Sequence[Sequence[str]]
    ) -> set[tuple[Place, str]]:
        """Return the entries that stand in one index at least of every choice."""
        standing = set(entries)
        by_base: dict[str, list[tuple[Place, str]]] = {}
        for entry in entries:
            by_base.setdefault(entry[1], []).append(entry)
        for choice in choices:
            found: set[tuple[Place, str]] = set()
            asked = [
                (each, self._store.command("ZMSCORE", keys.index(base, namespace, name), *(run[0][1] for run in each)))
                for base, each in by_base.items()
                for name in choice
            ]
            for each, call in asked:
                found.update(entry for entry, score in zip(each, await call, strict=True) if score is not None)
            standing &= found
        return standing

    async def _runs(self, namespace: str, entries: Sequence[tuple[Place, str]]) -> list[Run | None]:
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
        each = max(FETCH_MIN, 2 * size // store.partitions)
        self._branches = [
            _Branch(store, base, keys.index(base, namespace, name), place, each)
            for name in names
            for base in store.bases()
        ]
        self._heads: list[tuple[_Descending, _Branch]] | None = None
        self._last: Place | None = None

    async def peek(self) -> Place | None:
        """Return the place of the next entry; None at the end."""
        if self._heads is None:
            await asyncio.gather(*(branch.fill() for branch in self._branches))
            self._heads = [(_Descending(branch.entries[-1]), branch) for branch in self._branches if branch.entries]
            heapq.heapify(self._heads)
        while self._heads and self._heads[0][0].place == self._last:
            await self._pop()  # a run that changes its state meanwhile may stand in two indexes
        return self._heads[0][0].place if self._heads else None

    async def take(self, count: int) -> list[tuple[Place, str]]:
        """Return the next `count` entries, each with its partition's base name; fewer only at the end."""
        taken: list[tuple[Place, str]] = []
        while len(taken) < count and (place := await self.peek()):
            taken.append((place, await self._pop()))
            self._last = place
        return taken

    async def _pop(self) -> str:
        assert self._heads is not None
        branch = self._heads[0][1]
        branch.entries.pop()
        if not branch.entries:
            await branch.fill()
        if branch.entries:
            heapq.heapreplace(self._heads, (_Descending(branch.entries[-1]), branch))
        else:
            heapq.heappop(self._heads)
        return branch.base


class _Descending:
    """A place, for a heap whose smallest is the newest."""

    __slots__ = ("place",)

    def __init__(self, place: Place) -> None:
        self.place = place

    def __lt__(self, other: _Descending) -> bool:
        return self.place > other.place


class _Branch:
    """One index of one partition, read piece by piece after a place."""

    def __init__(self, store: Store, base: str, key: str, place: Place | None, each: int) -> None:
        self.base = base
        self.entries: list[Place] = []
        """Read and not yet taken, the next one last."""
        self._store = store
        self._key = key
        self._place = place
        self._each = each
        self._ended = False

    async def fill(self) -> None:
        """Read the next piece; nothing is left where `entries` stays empty."""
        skipped = 0
        while not self.entries and not self._ended:
            most = self._place[0] if self._place else "+inf"
            reply = await self._store.command(
                "ZREVRANGEBYSCORE", self._key, most, "-inf", "WITHSCORES", "LIMIT", skipped, self._each
            )
            read = [(int(float(score)), run_id.decode()) for run_id, score in zip(reply[::2], reply[1::2], strict=True)]
            # Those of the very same microsecond come again: a score is where to begin, run_id breaks the tie.
            self.entries = [place for place in reversed(read) if self._place is None or place < self._place]
            self._ended = len(read) < self._each
            skipped += len(read)
        if self.entries:
            self._place = self.entries[0]


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
