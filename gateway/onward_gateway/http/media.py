"""What a client accepts, and which of the forms at hand that is."""

from __future__ import annotations

from collections.abc import Sequence

from onward_gateway.http.problems import Problem

JSON = "application/json"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
TEXT = "text/plain"


def chosen(accept: Sequence[str], offered: Sequence[str]) -> str:
    """Return the media type that a client likes best among those offered; at equal liking the earlier one.

    Args:
        accept: The values of its Accept headers; none accepts everything.
        offered: Media types, without parameters.

    Raises:
        Problem: 406: none will do.
    """
    ranges = [_range(each) for value in accept for each in value.split(",") if each.strip()]
    if not ranges:
        return offered[0]
    best, liking = "", 0.0
    for media_type in offered:
        fits = [(specificity, q) for pattern, specificity, q in ranges if _fits(pattern, media_type)]
        q = max(fits)[1] if fits else 0.0
        if q > liking:
            best, liking = media_type, q
    if not best:
        told = ", ".join(offered)
        raise Problem(406, "NOT_ACCEPTABLE", "No form that is accepted", f"there is {told}", headers={"vary": "accept"})
    return best


def _range(text: str) -> tuple[str, int, float]:
    """Return a media range, how specific it is, and how much it is liked."""
    pattern, *parameters = (part.strip().lower() for part in text.split(";"))
    q = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                q = min(max(float(value), 0.0), 1.0)
            except ValueError:
                q = 0.0
    specificity = 0 if pattern == "*/*" else 1 if pattern.endswith("/*") else 2
    return pattern, specificity, q


def _fits(pattern: str, media_type: str) -> bool:
    if pattern in ("*/*", media_type):
        return True
    return pattern.endswith("/*") and media_type.startswith(pattern[:-1])
