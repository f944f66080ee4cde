"""Secrets: values that nobody may read in a log, an error, a trace or a line of a process's log.

A registered value is replaced wherever it turns up in what a run shows: inputs and results, statuses, published values,
errors with their tracebacks and details, spans. `onward.openai` registers the keys of its clients itself. What a later
attempt works with stays as it is, and so does what the run gives: its output, and what its components stream.
"""

from __future__ import annotations

import json
import logging
from threading import Lock

MASK = "•••"
"""What stands in the place of a secret."""

CHARS_MIN = 8
"""A shorter value is no secret: masking it would tear holes into ordinary text."""

PASSING_MAX = 64
"""So many of the values that pass are masked, the newest ones."""

_lock = Lock()
_lasting: set[str] = set()
_passing: dict[str, None] = {}
"""Oldest first."""
_forms: list[tuple[str, bytes]] = []
"""How all of them may be written, the longest first: one may begin another."""


def register(value: str, *, passing: bool = False) -> str:
    """Mask `value` from here on, in this process. One of fewer than 8 characters is left alone. Returns it.

    Args:
        value: The secret.
        passing: It is one of many that come one after the other, such as a key made for each request.
    """
    global _forms  # noqa: PLW0603 - one set of secrets per process
    if len(value) < CHARS_MIN or value in _lasting:
        return value
    with _lock:
        known = value in _passing
        _passing.pop(value, None)
        if passing:
            _passing[value] = None
            if known:
                return value
            if len(_passing) > PASSING_MAX:
                del _passing[next(iter(_passing))]
        else:
            _lasting.add(value)
        # As JSON writes it too, with and without escaping what is not ASCII.
        forms = {
            form
            for one in (*_lasting, *_passing)
            for form in (one, json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1])
        }
        _forms = [(one, one.encode(errors="surrogatepass")) for one in sorted(forms, key=len, reverse=True)]
    return value


def masked(text: str) -> str:
    """Return `text` without secrets."""
    for form, _ in _forms:
        if form in text:
            text = text.replace(form, MASK)
    return text


def masked_bytes(data: bytes) -> bytes:
    """Return UTF-8 text or JSON without secrets; the same object where there are none in it."""
    for _, form in _forms:
        if form in data:
            data = data.replace(form, MASK.encode())
    return data


class MaskingFilter(logging.Filter):
    """Takes secrets out of log records, tracebacks included. For handlers, set by whoever configures logging."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the record. Never drops one."""
        if not _forms:
            return True
        message = record.getMessage()
        if (clean := masked(message)) != message:
            record.msg, record.args = clean, None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = masked(record.exc_text)
        return True
