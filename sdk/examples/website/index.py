"""What is known of a site, in one file, so that it can be searched while it grows: SQLite with its full-text search.

Every write is one transaction and may be repeated. Readers never wait for writers, and never see half a page.
"""

import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

from website.addresses import is_site
from website.reading import Passage

BUSY_S = 10.0
WORDS_MAX = 20
"""Words of a question that are looked for."""

_SCHEMA = """
CREATE TABLE pages (
    url TEXT PRIMARY KEY, title TEXT NOT NULL, passages TEXT NOT NULL, links TEXT NOT NULL, digest TEXT NOT NULL,
    etag TEXT NOT NULL, modified TEXT NOT NULL, refusal TEXT NOT NULL, fetched_s REAL NOT NULL
);
CREATE INDEX pages_by_digest ON pages (digest);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, url TEXT NOT NULL, digest TEXT NOT NULL, title TEXT NOT NULL, lines TEXT NOT NULL,
    facts TEXT, UNIQUE (url, digest)
);
CREATE VIRTUAL TABLE words USING fts5 (title, lines, facts, tokenize = 'porter unicode61 remove_diacritics 2');
CREATE TABLE site (id INTEGER PRIMARY KEY CHECK (id = 1), wanted INTEGER NOT NULL, robots TEXT NOT NULL);
PRAGMA user_version = 1
"""


@dataclass(frozen=True)
class Fact:
    """Something that a page says.

    Attributes:
        kind: What sort of fact it is.
        subject: What it is about.
        text: The page's own words: one line of it.
    """

    kind: str
    subject: str
    text: str


@dataclass(frozen=True)
class Page:
    """A page as it was fetched last.

    Attributes:
        url: Its URL.
        title: Its title.
        passages: Its text.
        links: Where it leads to.
        etag: Names the version; empty where the site names none.
        modified: When it had last changed, as the site says it.
        refusal: Why it is not for us; empty where it is.
        fetched_s: When the site was last asked about it, in seconds since 1970.
    """

    url: str
    title: str
    passages: list[Passage]
    links: list[str]
    etag: str = ""
    modified: str = ""
    refusal: str = ""
    fetched_s: float = 0.0

    @property
    def digest(self) -> str:
        """Names what it says: two pages that say the same have the same."""
        return _digest([line for passage in self.passages for line in passage.lines])


@dataclass(frozen=True)
class Source:
    """A passage that may answer a question.

    Attributes:
        url: Its page.
        title: That page's title.
        lines: What it says.
        facts: What the model found in it; none where it has not been asked yet.
    """

    url: str
    title: str
    lines: list[str]
    facts: list[Fact]


@dataclass(frozen=True)
class Coverage:
    """How much of a site is known by now.

    Attributes:
        pages: Pages whose text can be searched.
        learned: Pages whose facts are known, too.
        wanted: Pages that were chosen to be read.
    """

    pages: int
    learned: int
    wanted: int


class Index:
    """The file of one site. Each call is on its own, so that threads, processes and runs can share it.

    Args:
        folder: Where the files are.
        site: The site's name, as `addresses.site_of` gives it.

    Raises:
        ValueError: That is no site's name.
    """

    def __init__(self, folder: Path, site: str) -> None:
        if not is_site(site):
            raise ValueError(f"{site!r} is no site's name")
        self.file = folder / f"{site}.sqlite"

    @property
    def exists(self) -> bool:
        """Whether anything is known of the site."""
        return self.file.exists()

    def page(self, url: str) -> Page | None:
        """Return a page as it was fetched last; None if it never was."""
        with self._read() as database:
            row = database.execute("SELECT * FROM pages WHERE url = ?", (url,)).fetchone()
        if row is None:
            return None
        return Page(
            url,
            row["title"],
            [Passage(**passage) for passage in json.loads(row["passages"])],
            json.loads(row["links"]),
            row["etag"],
            row["modified"],
            row["refusal"],
            row["fetched_s"],
        )

    def put(self, page: Page) -> None:
        """Keep a page that was just fetched. It can be searched when it is `admit`ted."""
        values = (
            *(page.url, page.title, json.dumps([asdict(passage) for passage in page.passages])),
            *(json.dumps(page.links), page.digest, page.etag, page.modified, page.refusal, time.time()),
        )
        with self._opened() as database:
            database.execute("INSERT OR REPLACE INTO pages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def unchanged(self, url: str) -> None:
        """Note that the site was asked, and that the page is as it was."""
        with self._opened() as database:
            database.execute("UPDATE pages SET fetched_s = ? WHERE url = ?", (time.time(), url))

    def admit(self, page: Page) -> tuple[str, list[Passage]]:
        """Let a page be found, and what it said before no longer.

        Returns:
            The URL of another page that says the same, if one could be found before, else ""; and the passages whose
            facts are not known.
        """
        with self._opened() as database:
            twin = database.execute(
                "SELECT url FROM pages WHERE digest = ? AND url IN (SELECT url FROM passages WHERE url != ?) LIMIT 1",
                (page.digest, page.url),
            ).fetchone()
            wanted = {} if twin else {_digest(passage.lines): passage for passage in page.passages}
            known = {
                row["digest"]: row
                for row in database.execute("SELECT id, digest, facts FROM passages WHERE url = ?", (page.url,))
            }
            _drop(database, [row["id"] for digest, row in known.items() if digest not in wanted])
            for digest, passage in wanted.items():
                if digest not in known:
                    row = database.execute(
                        "INSERT INTO passages (url, digest, title, lines) VALUES (?, ?, ?, ?)",
                        (page.url, digest, passage.page, json.dumps(passage.lines)),
                    )
                    words = (row.lastrowid, passage.page, "\n".join(passage.lines))
                    database.execute("INSERT INTO words (rowid, title, lines, facts) VALUES (?, ?, ?, '')", words)
        unknown = [one for digest, one in wanted.items() if digest not in known or known[digest]["facts"] is None]
        return twin["url"] if twin else "", unknown

    def learn(self, url: str, passage: Passage, facts: Sequence[Fact]) -> None:
        """Keep the facts of a passage."""
        with self._opened() as database:
            where = (url, _digest(passage.lines))
            row = database.execute("SELECT id FROM passages WHERE url = ? AND digest = ?", where).fetchone()
            if row is not None:
                said = json.dumps([asdict(fact) for fact in facts])
                database.execute("UPDATE passages SET facts = ? WHERE id = ?", (said, row["id"]))
                words = "\n".join(f"{fact.kind} {fact.subject}" for fact in facts)
                database.execute("UPDATE words SET facts = ? WHERE rowid = ?", (words, row["id"]))

    def forget(self, url: str) -> None:
        """Drop a page that is gone."""
        with self._opened() as database:
            _drop(database, [row["id"] for row in database.execute("SELECT id FROM passages WHERE url = ?", (url,))])
            database.execute("DELETE FROM pages WHERE url = ?", (url,))

    def begin(self, robots: str) -> None:
        """Note that the site is being read, and what it asks of robots."""
        with self._opened() as database:
            database.execute(
                "INSERT INTO site VALUES (1, 0, ?) ON CONFLICT (id) DO UPDATE SET robots = excluded.robots", (robots,)
            )

    def want(self, pages: int) -> None:
        """Note how many pages are to be read."""
        with self._opened() as database:
            database.execute("UPDATE site SET wanted = ?", (pages,))

    def robots(self) -> str | None:
        """Return what the site asks of robots; None if it was not asked."""
        with self._read() as database:
            row = database.execute("SELECT robots FROM site").fetchone()
        return row["robots"] if row else None

    def coverage(self) -> Coverage:
        """Return how much is known by now."""
        if not self.exists:
            return Coverage(0, 0, 0)
        with self._read() as database:
            pages, learned = database.execute(
                "SELECT count(*), coalesce(sum(whole), 0) FROM"
                " (SELECT min(facts IS NOT NULL) AS whole FROM passages GROUP BY url)"
            ).fetchone()
            wanted = database.execute("SELECT wanted FROM site").fetchone()
        return Coverage(pages, learned, wanted["wanted"] if wanted else 0)

    def search(self, question: str, at_most: int) -> list[Source]:
        """Return the passages that have most to do with a question, best first."""
        words = list(dict.fromkeys(word.casefold() for word in re.findall(r"\w+", question) if len(word) > 1))
        if not words or not self.exists:
            return []
        # Each word in quotes: a question is no expression of the search's own language.
        asked = " OR ".join(f'"{word}"' for word in words[:WORDS_MAX])
        with self._read() as database:
            rows = database.execute(
                "SELECT url, passages.title, passages.lines, passages.facts FROM words"
                " JOIN passages ON passages.id = words.rowid"
                " WHERE words MATCH ? ORDER BY bm25(words, 3.0, 1.0, 2.0), url, passages.id LIMIT ?",
                (asked, at_most),
            ).fetchall()
        return [
            Source(
                row["url"],
                row["title"],
                json.loads(row["lines"]),
                [Fact(**fact) for fact in json.loads(row["facts"] or "[]")],
            )
            for row in rows
        ]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the file open in the block, for all of this process: opening it costs more than most of what is done."""
        with _lock:
            idle = _kept.setdefault(self.file, _Idle())
            idle.users += 1
        try:
            yield
        finally:
            with _lock:
                idle.users -= 1
                if not idle.users:
                    del _kept[self.file]
                    for database in idle.databases:
                        database.close()

    @contextmanager
    def _opened(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """Open the file for one transaction, which is rolled back where the block fails."""
        database = self._taken()
        try:
            database.execute(begin)
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
        finally:
            with _lock:
                idle = _kept.get(self.file)
                if idle is not None and not database.in_transaction:
                    idle.databases.append(database)
                else:
                    database.close()

    def _taken(self) -> sqlite3.Connection:
        with _lock:
            idle = _kept.get(self.file)
            if idle is not None and idle.databases:
                return idle.databases.pop()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # One thread at a time uses it, though not always the same.
        database = sqlite3.connect(self.file, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA synchronous = NORMAL")
            if not _is_made(database):
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("BEGIN IMMEDIATE")
                if not _is_made(database):  # nobody else was quicker
                    for statement in _SCHEMA.split(";"):
                        database.execute(statement)
                database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database

    def _read(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._opened("BEGIN")


@dataclass
class _Idle:
    """Connections to one file that nobody uses just now."""

    users: int = 0
    databases: list[sqlite3.Connection] = field(default_factory=list)


_kept: dict[Path, _Idle] = {}
_lock = threading.Lock()


def _is_made(database: sqlite3.Connection) -> bool:
    return bool(database.execute("PRAGMA user_version").fetchone()[0])


def _drop(database: sqlite3.Connection, ids: Iterable[int]) -> None:
    for id_ in ids:
        database.execute("DELETE FROM words WHERE rowid = ?", (id_,))
        database.execute("DELETE FROM passages WHERE id = ?", (id_,))


def _digest(lines: Iterable[str]) -> str:
    return blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
