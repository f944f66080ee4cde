"""A shelf of pages to look things up in: Markdown files in a folder, so that it works without a network.

`ONWARD_EXAMPLE_PAGES` names a folder of your own. A page is asked for by its file's name; its first line is its title.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

FOUND_MAX = 4
PAGE_CHARS_MAX = 6_000
TITLE_WEIGHT = 3


@dataclass(frozen=True)
class Page:
    """A page."""

    name: str
    title: str
    text: str


@dataclass(frozen=True)
class Hit:
    """A page that was found."""

    page: str
    """What `read` takes."""
    title: str
    begins: str


def find(question: str) -> list[Hit]:
    """Find the pages that share most with a question, the best first. A word weighs more where fewer pages have it."""
    pages = {page.name: page for page in _pages()}
    words = {name: _words(page.text) for name, page in pages.items()}
    titles = {name: _words(page.title) for name, page in pages.items()}
    score = dict.fromkeys(pages, 0.0)
    for word in _words(question):
        having = [name for name in pages if word in words[name] | titles[name]]
        for name in having:
            rarity = math.log(len(pages) / len(having)) if len(pages) > 1 else 1.0
            score[name] += rarity * (1 + (word in titles[name]) * TITLE_WEIGHT / len(titles[name]))
    best = sorted((name for name in pages if score[name] > 0), key=lambda name: (-score[name], name))
    return [Hit(name, pages[name].title, pages[name].text.partition(". ")[0] + ".") for name in best[:FOUND_MAX]]


def page(name: str) -> Page:
    """Return a page by its name.

    Raises:
        LookupError: There is none. Whatever the name says, nothing but the folder's pages is looked at.
    """
    for each in _pages():
        if each.name == name:
            return each
    raise LookupError(f"there is no page {name!r}: search for pages first")


def _pages() -> list[Page]:
    folder = Path(os.environ.get("ONWARD_EXAMPLE_PAGES") or Path(__file__).with_name("pages"))
    pages = []
    for file in sorted(folder.glob("*.md")):
        title, _, text = file.read_text(encoding="utf-8").partition("\n")
        pages.append(Page(file.stem, title.lstrip("# ").strip(), text.strip()[:PAGE_CHARS_MAX]))
    return pages


def _words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"\w{3,}", text.casefold())}
