"""Texts from user code, made fit for the log."""

from __future__ import annotations


def well_formed(text: str) -> str:
    """Return `text` fit for UTF-8: surrogates that make a pair become its character, lone ones U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def cut(text: str, chars_max: int) -> str:
    """Return well-formed text of at most `chars_max` characters."""
    return well_formed(text if len(text) <= chars_max else text[: chars_max - 1] + "…")
