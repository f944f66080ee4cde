"""What a request says: its parameters, headers and body, checked, with everything that is wrong told at once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from starlette.requests import ClientDisconnect, Request

from onward.v1.gateway_service_pb2 import GapPolicy, Position, View
from onward_gateway.checking import Checks, is_json
from onward_gateway.http.problems import Problem

BODY_S = 60.0
"""How long a client may take to send a body."""

COMMAND_BYTES_MAX = 64 * 1024
"""Of a body that says what to do with a run."""

REQUEST_ID_MAX = 64

ENDED = ".end"
"""What the id of `completed` has behind its cursor: who comes back with it has seen everything."""

_PRINTABLE = re.compile(r"[\x21-\x7e][\x20-\x7e]*", re.ASCII)
IDEMPOTENCY_KEY = r"[!-~\x80-\xff]([ -~\x80-\xff]*[!-~\x80-\xff])?"
"""What one may be: whatever a header holds as text, in ASCII or not."""

_OFFSET = re.compile(r"\d{1,18}", re.ASCII)
_WHOLE = re.compile(r"-?\d{1,9}", re.ASCII)
_SECONDS = re.compile(r"\d{1,12}(\.\d{1,40})?", re.ASCII)
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?\s*(?:$|[,;])", re.ASCII | re.IGNORECASE)

Answer = TypeVar("Answer")


class Query:
    """The parameters of a URL. What nobody asks for is wrong too: a misspelt filter must not keep everything."""

    def __init__(self, request: Request) -> None:
        self.checks = Checks()
        self._given = request.query_params
        self._known: set[str] = set()

    def text(self, name: str) -> str:
        """Return a parameter; empty where it is not given."""
        values = self.texts(name)
        self.checks.that(len(values) < 2, name, "given more than once")
        self.checks.that("" not in values, name, "given, but empty")
        return values[0] if values else ""

    def texts(self, name: str) -> list[str]:
        """Return a parameter that may be given more than once."""
        self._known.add(name)
        return self._given.getlist(name)

    def whole(self, name: str) -> int:
        """Return a whole number; 0 where it is not given."""
        text = self.text(name)
        if not text:
            return 0
        if not _WHOLE.fullmatch(text):
            self.checks.that(False, name, "a whole number")
            return 0
        return int(text)

    def seconds(self, name: str) -> Duration | None:
        """Return a number of seconds."""
        text = self.text(name)
        if not text:
            return None
        if not _SECONDS.fullmatch(text):
            self.checks.that(False, name, "a number of seconds")
            return None
        whole, _, fraction = text.partition(".")
        return Duration(seconds=int(whole), nanos=int(fraction[:9].ljust(9, "0")))

    def time(self, name: str) -> Timestamp | None:
        """Return a time."""
        text = self.text(name)
        if not text:
            return None
        try:
            time = datetime.fromisoformat(text)
            self.checks.that(time.tzinfo is not None, name, "a time with its zone, e.g. 2026-11-22T08:00:00Z")
            moment = Timestamp()
            moment.FromDatetime(time.astimezone(UTC))
        except (ValueError, OverflowError):
            self.checks.that(False, name, "a time, e.g. 2026-11-22T08:00:00Z")
            return None
        return moment

    def word(self, name: str, words: Mapping[str, Any]) -> Any:
        """Return what one of some words stands for; the first where none is given."""
        text = self.text(name)
        if text and text.upper() not in words:
            self.checks.that(False, name, f"one of {', '.join(words)}")
        return words.get(text.upper(), next(iter(words.values())))

    def labels(self) -> dict[str, str]:
        """Return labels, each KEY:VALUE."""
        labels = {}
        for text in self.texts("label"):
            key, colon, value = text.partition(":")
            self.checks.that(bool(colon and key), "label", "KEY:VALUE")
            labels[key] = value
        return labels

    def position(self, last_event_id: str | None = None) -> Position:
        """Return where a read begins.

        Args:
            last_event_id: Where a browser was, which is newer than what the URL said when it first came.
        """
        after, last, log_id = self.text("after"), self.text("last"), self.text("log_id")
        on_gap = self.word("on_gap", {"FAIL": GapPolicy.GAP_POLICY_FAIL, "SKIP": GapPolicy.GAP_POLICY_SKIP})
        position = Position(on_gap=on_gap, log_id=log_id)
        self.checks.that(not (after and last), "last", "not together with after")
        after = last_event_id or after
        if after:
            if _OFFSET.fullmatch(after):
                position.after_offset = int(after)
            else:
                position.after_cursor = after.removesuffix(ENDED)
        elif last:
            self.checks.that(bool(_WHOLE.fullmatch(last)), "last", "a whole number")
            position.last = int(last) if _WHOLE.fullmatch(last) else 0
        return position

    def view(self) -> View.ValueType:
        """Return which events to show."""
        view: View.ValueType = self.word("view", {"RAW": View.VIEW_RAW, "SETTLED": View.VIEW_SETTLED})
        return view

    def done(self) -> None:
        """Raises:
        Refused: REQUEST_INVALID, with everything that was wrong.
        """
        for name in self._given:
            self.checks.that(name in self._known, name, "there is no such parameter here")
        self.checks.done()


def request_id(request: Request) -> str:
    """Return the request_id that an Idempotency-Key stands for; empty where there is none.

    Raises:
        Problem: The key is empty, or has control characters.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return ""
    if not re.fullmatch(IDEMPOTENCY_KEY, key):
        why = "the Idempotency-Key is empty, or has control characters"
        raise Problem(400, "REQUEST_INVALID", "The request is malformed", why)
    if len(key) <= REQUEST_ID_MAX and _PRINTABLE.fullmatch(key):
        return key
    return hashlib.sha256(key.encode("latin-1", "surrogateescape")).hexdigest()  # REQUEST_ID_MAX long


def wait_s(request: Request) -> int | None:
    """Return how long the caller wants to wait, as `Prefer: wait=N` says; None where it says nothing."""
    for value in request.headers.getlist("prefer"):
        found = _WAIT.search(value)
        if found:
            return int(found[1])
    return None


async def json_body(request: Request, limit: int) -> bytes:
    """Return a body that is JSON; empty where there is none.

    Raises:
        Problem: It is not JSON by its type, too large, or late.
    """
    data = await _body(request, limit)
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        _unsupported(f"a body is sent as it is, not in {encoding}")
    media_type = request.headers.get("content-type")
    if data and (media_type is None or not is_json(media_type.strip() or "?")):
        _unsupported(f"a body is application/json, not {media_type or 'of no type'}: with curl, --json does it")
    return data


async def command(request: Request, *known: str) -> dict[str, str]:
    """Return a body that is a JSON object of texts; empty where there is none.

    Raises:
        Problem: It is none.
        Refused: It has other members than those known.
    """
    data = await json_body(request, COMMAND_BYTES_MAX)
    checks = Checks()
    given: Any = {}
    texts: dict[str, str] = {}
    try:
        given = json.loads(data) if data else {}
    except (ValueError, RecursionError) as error:
        checks.that(False, "", f"not JSON: {error}")
    if not isinstance(given, dict):
        checks.that(False, "", "a JSON object")
        given = {}
    for name, value in given.items():
        checks.that(name in known, f"/{name}", "there is no such member here")
        if isinstance(value, str) and _is_text(value):
            texts[name] = value
        else:
            checks.that(False, f"/{name}", "a text")
    checks.done()
    return texts


async def while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Return what `work` gives, unless its client leaves before: then it is cancelled. The body must have been read.

    Raises:
        ClientDisconnect: The client has left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def gone(request: Request) -> None:
    """Return when the client has left, or has its whole answer."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def broken_off(request: Request) -> None:
    """Break a response off, so that it does not look like a whole one."""
    request.state.connection.abort()
    await gone(request)  # else the server takes it for a mistake of ours, and says so


async def _body(request: Request, limit: int) -> bytes:
    if int(request.headers.get("content-length", "0")) > limit:
        _too_large(limit)
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                data += piece
                if len(data) > limit:
                    _too_large(limit)
    except TimeoutError:
        raise Problem(
            408, "TIMEOUT", "Too slow", f"a body takes at most {BODY_S:g} s", headers={"connection": "close"}
        ) from None
    return bytes(data)


def _too_large(limit: int) -> NoReturn:
    raise Problem(
        413,
        "TOO_LARGE",
        "Too large",
        f"the body is over the limit of {limit} bytes",
        metadata={"limit": str(limit)},
    )


def _unsupported(why: str) -> NoReturn:
    raise Problem(415, "UNSUPPORTED_MEDIA_TYPE", "Not this media type", why, headers={"accept": "application/json"})


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
