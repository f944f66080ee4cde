"""What the script answers to onboarding.py in place of a model: it picks lines by rules, and makes nothing up."""

import re
from collections.abc import Iterator
from typing import Any

_NUMBERED = re.compile(r"^(\d+)\| (.*)$", re.MULTILINE)
_DULL = re.compile(r"/(legal|login|tags|cookies?|account|cart|search)\b", re.IGNORECASE)
_KINDS = (
    ("price", r"\bcosts?\b|\bpays?\b|price|euros?\b|[€$£]"),
    ("limit", r"up to|at most|limit|in one go|room for"),
    ("integration", r"integration|exchange|asked every"),
    ("support", r"support|help|training"),
    ("security", r"encrypt|backup|certified|privacy"),
    ("company", r"founded|offices|people work"),
    ("feature", r""),
)
FACTS_MAX = 3
_SMALL = re.compile(r"an?|and|are|at|can|do|does|for|how|i|in|is|it|many|much|of|on|or|the|to|wh(at|en|ere|ich|o)|with")


def chosen(prompt: str) -> dict[str, Any]:
    """Choose pages: all but those that say nothing about a product."""
    return {"pages": [int(number) for number, url in _NUMBERED.findall(prompt) if not _DULL.search(url)]}


def facts(prompt: str) -> dict[str, Any]:
    """Find facts: sentences, those with figures first."""
    lines = [(int(number), line) for number, line in _NUMBERED.findall(prompt)]
    said = [(number, line) for number, line in lines if line.endswith((".", "|")) or re.search(r"\d", line)]
    said.sort(key=lambda one: (not re.search(r"\d", one[1]), one[0]))
    return {
        "facts": [{"line": number, "kind": _kind(line), "subject": _subject(line)} for number, line in said[:FACTS_MAX]]
    }


def answer(prompt: str) -> Iterator[str]:
    """Answer a question by quoting the line that has most words in common with it."""
    question, _, rest = prompt.partition("\n")
    asked = _words(question)
    best, score = "", 0.0
    source = ""
    for line in rest.splitlines():
        if header := re.match(r"\[(\d+)\] ", line):
            source = header[1]
        words = _words(line)
        common = len(asked & words) + 0.5 * line.endswith(".") - 0.01 * len(words)
        if not header and len(asked & words) and common > score:
            best, score = f"{line.split('| ', 1)[-1]} [{source}]", common
    text = best or "The pages that were read do not say."
    for word in text.split():
        yield f"{word} "


def _kind(line: str) -> str:
    return next(kind for kind, pattern in _KINDS if re.search(pattern, line, re.IGNORECASE))


def _subject(line: str) -> str:
    return " ".join(line.split()[:4]).rstrip(".,:")


def _words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"\w+", text.casefold()) if not _SMALL.fullmatch(word)}
