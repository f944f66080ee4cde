"""Secrets: values that nobody may read in a log, an error, a trace or a line of a process's log.

A registered value is replaced wherever it turns up in what a run shows: inputs and results, statuses, published values,
errors with their tracebacks and details, spans. `onward.openai` registers the keys of its clients itself. What a later
attempt works with stays as it is, and so does what the run gives: its output, and what its components stream.
"""

from __future__ import annotations

import json
import logging
import re

MASK = "•••"
"""What stands in the place of a secret."""

CHARS_MIN = 8
"""A shorter value is no secret: masking it would tear holes into ordinary text."""

_registered: set[str] = set()
_in_text: re.Pattern[str] | None = None
_in_bytes: re.Pattern[bytes] | None = None


def register(value: str) -> str:
    """Mask `value` from here on, in this process. One of fewer than 8 characters is left alone. Returns it."""
    global _in_text, _in_bytes  # noqa: PLW0603 - one set of secrets per process, and a compiled form of it
    if len(value) < CHARS_MIN or value in _registered:
        return value
    _registered.add(value)
    # As JSON writes it too, with and without escaping what is not ASCII. The longest first: one may begin another.
    forms = {
        form for one in _registered for form in (one, json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1])
    }
    ordered = sorted(forms, key=len, reverse=True)
    _in_text = re.compile("|".join(map(re.escape, ordered)))
    _in_bytes = re.compile(b"|".join(re.escape(one.encode(errors="surrogatepass")) for one in ordered))
    return value


def masked(text: str) -> str:
    """Return `text` without secrets."""
    return text if _in_text is None else _in_text.sub(MASK, text)


def masked_bytes(data: bytes) -> bytes:
    """Return UTF-8 text or JSON without secrets; the same object where there are none in it."""
    if _in_bytes is None or _in_bytes.search(data) is None:
        return data
    return _in_bytes.sub(MASK.encode(), data)


class MaskingFilter(logging.Filter):
    """Takes secrets out of log records, tracebacks included. For handlers, set by whoever configures logging."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the record. Never drops one."""
        if _in_text is None:
            return True
        message = record.getMessage()
        if (clean := masked(message)) != message:
            record.msg, record.args = clean, None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = masked(record.exc_text)
        return True
