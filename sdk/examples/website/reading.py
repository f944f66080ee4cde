"""From HTML to what a reader sees: lines of text, in passages of a size that a model can be asked about."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser, LexborNode

from website.addresses import normal
from website.errors import Refused

LINE_CHARS_MAX = 400
PASSAGE_CHARS_MAX = 1_500
PASSAGES_MAX = 40
LINKS_MAX = 500
TITLE_CHARS_MAX = 200
DEPTH_MAX = 5_000
"""Elements inside each other. What parsing costs grows with the square of it, and a page may be made to cost that."""

_UNSEEN = (
    "script, style, noscript, template, svg, iframe, object, canvas, select, button, input, textarea, dialog, "
    "[hidden], [aria-hidden=true], [style*='display:none'], [style*='display: none'], [style*='visibility:hidden'], "
    "[style*='visibility: hidden'], [style*='font-size:0'], [style*='opacity:0']"
)
"""What nobody sees is for nobody to read: it is the usual place of words that are meant for a model."""
_AROUND = "nav, header, footer, aside, form, [role=navigation], [role=banner], [role=contentinfo], [role=search]"
"""What is on every page of a site."""
_HEADINGS = {"h1", "h2", "h3", "h4"}
_BLOCK = re.compile(
    "h[1-6]|address|article|aside|blockquote|body|br|d[dlt]|details|dialog|div|fieldset|figcaption|figure|footer|form|"
    "header|hr|li|main|nav|ol|p|pre|section|summary|table|tbody|td|tfoot|th|thead|tr|ul"
)
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_NOT_NESTED = re.compile("area|base|br|col|dd|dt|embed|hr|img|input|li|link|meta|option|p|source|td|th|tr|track|wbr")
_ORDER = re.compile(
    r"\b(ignore|disregard|forget|override)\b.{0,40}\b(instructions?|rules|prompts?)\b|\bsystem prompt\b", re.IGNORECASE
)
"""What is said to a model and not to people. This finds the clumsy ones; nothing may depend on it."""
_SENTENCE = re.compile(r"(?<=[.!?…])\s+(?=[^\W_a-z])")


@dataclass(frozen=True)
class Passage:
    """A part of a page, to be asked about at once.

    Attributes:
        page: The page's title.
        lines: Its sentences, headings, list items and table rows. None holds a line break.
    """

    page: str
    lines: list[str]


@dataclass(frozen=True)
class Reading:
    """What a page says.

    Attributes:
        title: Its title.
        passages: Its text.
        links: The pages that it leads to, in its order.
    """

    title: str
    passages: list[Passage] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


def read(text: str, url: str, kind: str = "text/html") -> Reading:
    """Read a page.

    Raises:
        Refused: It asks not to be.
    """
    if kind == "text/plain":
        return Reading(url, list(_passages(url, ((line, False) for line in text.splitlines()))))
    if _depth(text) > DEPTH_MAX:
        raise Refused("its elements are nested too deep")
    tree = LexborHTMLParser(text)
    robots = " ".join((node.attributes.get("content") or "") for node in tree.css("meta[name=robots i]")).lower()
    if "noindex" in robots or "none" in robots.replace(",", " ").split():
        raise Refused("it asks not to be indexed")
    links = [] if "nofollow" in robots else _links(tree, url)
    for node in tree.css(_UNSEEN):
        node.decompose()
    heading = tree.css_first("h1")
    named = tree.css_first("title")
    title = _one_line((heading.text() if heading else "") or (named.text() if named else "")) or url
    title = title[:TITLE_CHARS_MAX]
    main = tree.css_first("main, [role=main], article") or tree.body
    for node in main.css(_AROUND) if main else []:
        node.decompose()
    return Reading(title, list(_passages(title, _blocks(main))) if main else [], links)


def _depth(text: str) -> int:
    """Return about how deep the elements are nested, without parsing them."""
    open_: Counter[str] = Counter()
    depth = deepest = 0
    for end, name in _TAG.findall(text):
        tag = name.lower()
        if not end and not _NOT_NESTED.fullmatch(tag):
            open_[tag] += 1
            depth += 1
            deepest = max(deepest, depth)
        elif end and open_[tag]:
            open_[tag] -= 1
            depth -= 1
    return deepest


def _links(tree: LexborHTMLParser, url: str) -> list[str]:
    base = tree.css_first("base[href]")
    start = (base.attributes.get("href") or url) if base else url
    found: dict[str, None] = {}
    try:
        start = normal(start, url)
    except Refused:
        return []
    for node in tree.css("a[href]"):
        if "nofollow" in (node.attributes.get("rel") or "") or len(found) >= LINKS_MAX:
            continue
        try:
            found.setdefault(normal(node.attributes.get("href") or "", start))
        except Refused:
            continue  # mailto:, javascript: and the like
    return list(found)


def _blocks(root: LexborNode) -> Iterator[tuple[str, bool]]:
    """Yield the text of each block, and whether it is a heading. No recursion: pages are nested deep."""
    words: list[str] = []
    todo: list[LexborNode | str] = [root]
    while todo:
        node = todo.pop()
        if isinstance(node, str):  # the end of an element
            if node in ("td", "th"):
                words.append(" | ")
                continue
            if line := _one_line("".join(words)).strip("| "):
                yield line, node in _HEADINGS
            words.clear()
        elif node.is_text_node:
            words.append(node.text_content or "")
        elif node.is_element_node:
            tag = node.tag or ""
            is_block = _BLOCK.fullmatch(tag) is not None
            if is_block and tag not in ("td", "th"):
                if line := _one_line("".join(words)).strip("| "):
                    yield line, False
                words.clear()
            if is_block:
                todo.append(tag)
            todo.extend(reversed(list(node.iter(include_text=True))))
    if line := _one_line("".join(words)).strip("| "):
        yield line, False


def _passages(title: str, blocks: Iterator[tuple[str, bool]]) -> Iterator[Passage]:
    """Cut the text into passages: at a heading, unless only headings came before it, and where one becomes too long."""
    lines: list[str] = []
    size = made = 0
    has_text = False
    for block, is_heading in blocks:
        for line in _lines(block):
            if lines and ((is_heading and has_text) or size + len(line) > PASSAGE_CHARS_MAX):
                yield Passage(title, lines)
                lines, size, made, has_text = [], 0, made + 1, False
                if made == PASSAGES_MAX:
                    return
            lines.append(line)
            size += len(line)
            has_text = has_text or not is_heading
    if lines:
        yield Passage(title, lines)


def _lines(block: str) -> Iterator[str]:
    for sentence in _SENTENCE.split(_one_line(block)):
        if _ORDER.search(sentence):
            continue
        for start in range(0, len(sentence), LINE_CHARS_MAX):
            yield sentence[start : start + LINE_CHARS_MAX]


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
