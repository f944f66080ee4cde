"""What a model's answer says, read off its JSON: chat completions and responses, whole or chunk by chunk.

Only what the run needs is looked at: text, reasoning and tool calls to show, whether the answer came to its end, and
what was used. Whatever else is in it passes through to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from onward.journal import inline, pieces
from onward.log import INLINE_BYTES_MAX
from onward.v1.event_pb2 import CHANNEL_REASONING, CHANNEL_TEXT, CHANNEL_TOOL, Channel
from onward.v1.run_pb2 import Payload, Usage

_CHAT_TEXTS = (
    ("content", CHANNEL_TEXT),
    ("refusal", CHANNEL_TEXT),
    ("reasoning_content", CHANNEL_REASONING),
    ("reasoning", CHANNEL_REASONING),
)
"""Where a chat completion's text stands. OpenAI does not show reasoning; those that do use one of two names."""

_RESPONSE_TEXTS = {
    "response.output_text.delta": CHANNEL_TEXT,
    "response.refusal.delta": CHANNEL_TEXT,
    "response.reasoning_text.delta": CHANNEL_REASONING,
    "response.reasoning_summary_text.delta": CHANNEL_REASONING,
}
_RESPONSE_ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
_INDEXES = ("output_index", "content_index", "summary_index")


class Unreadable(ValueError):
    """The provider sent what is no JSON."""


class ErrorChunk(Exception):
    """The provider sent an error in the place of a chunk.

    Attributes:
        error: What it said of it.
    """

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message") or "the provider reports an error"))
        self.error = error


def parsed(data: bytes) -> Any:
    """Return the data of a server-sent event, parsed.

    Raises:
        Unreadable: It is no JSON.
    """
    try:
        return from_json(data)
    except ValueError as error:
        raise Unreadable(f"the provider sent a chunk that is no JSON: {error}") from None


@dataclass(slots=True)
class _Tool:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Shown(NamedTuple):
    """The fields of an OutputDelta. That is made in its event: to copy it there costs as much again."""

    channel: Channel.ValueType
    part: int
    text: str = ""
    value: Payload | None = None


class Answer:
    """What an answer has said so far.

    Attributes:
        known: It is one that is understood here. Where its end is, is known of such an answer alone.
        begun: The first token came.
        complete: It came to its end: nothing but its usage may be missing.
        model: Who answered, by the provider's own name for it.
        id: The provider's name for the answer.
        finish_reasons: Why it ended, one for each choice.
        usage: Tokens.
        texts: Answer text, piece by piece.
        shown: Whether anybody sees it as it comes; else `chunk` tells of nothing.
        parts: The number of each of its parts, by where it stands.
    """

    def __init__(self, before: Answer | None = None) -> None:
        """Begin one, or go on with one that broke off: its parts keep their numbers, and its text counts."""
        self.known = False
        self.shown = True
        self.begun = False
        self.complete = False
        self.model = ""
        self.id = ""
        self.usage = Usage()
        self.texts: list[str] = [] if before is None else before.texts[:]
        self._finish: dict[int, str] = {}
        self.parts: dict[tuple[object, ...], int] = {} if before is None else before.parts.copy()
        self._tools: dict[tuple[int, int], _Tool] = {}

    @property
    def finish_reasons(self) -> list[str]:
        return [reason for _, reason in sorted(self._finish.items()) if reason]

    # Whole

    def whole(self, data: bytes) -> None:
        """Take in an answer that came in one piece.

        Raises:
            Unreadable: It is no JSON.
        """
        try:
            body = from_json(data)
        except ValueError as error:
            raise Unreadable(f"the provider's answer is no JSON: {error}") from None
        self.complete = True
        if not isinstance(body, dict):
            return
        self._head(body)
        for choice in _dicts(body.get("choices")):
            self._finish[len(self._finish)] = str(choice.get("finish_reason") or "")
            message = choice.get("message")
            text = message.get("content") if isinstance(message, dict) else choice.get("text")
            if isinstance(text, str):
                self.texts.append(text)
        for item in _dicts(body.get("output")):
            self.texts += [part["text"] for part in _dicts(item.get("content")) if isinstance(part.get("text"), str)]
        if isinstance(body.get("status"), str) and body.get("object") == "response":
            self._finish[0] = body["status"]

    # Chunk by chunk

    def chunk(self, body: Any) -> list[Shown]:
        """Take in the next chunk, and return what it shows.

        Raises:
            ErrorChunk: It is an error.
        """
        shown: list[Shown] = []
        if not isinstance(body, dict):
            return shown
        if isinstance(error := body.get("error"), dict):
            raise ErrorChunk(error)
        kind = body.get("type")
        if isinstance(kind, str):
            if kind == "error":
                raise ErrorChunk(body)
            if kind.startswith("response."):
                self.known = True
                self._event(kind, body, shown)
            else:
                self.begun = True
            return shown
        choices = body.get("choices")
        if not isinstance(choices, list):
            self.begun = True
            return shown
        self.known = True
        if not self.model or body.get("usage"):
            self._head(body)
        for choice in choices:
            if isinstance(choice, dict):
                self._choice(choice, shown)
        self.complete = bool(self._finish) and all(self._finish.values())
        return shown

    def _choice(self, choice: dict[str, Any], shown: list[Shown]) -> None:
        index = choice.get("index") or 0
        reason = choice.get("finish_reason")
        if reason or index not in self._finish:
            self._finish[index] = str(reason or "")
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = {"content": choice.get("text")}
        for name, channel in _CHAT_TEXTS:
            text = delta.get(name)
            if text and isinstance(text, str):
                self._text((index, name), channel, text, shown)
        if calls := delta.get("tool_calls"):
            self.begun = True
            for call in _dicts(calls):
                tool = self._tools.setdefault((index, call.get("index") or 0), _Tool())
                function = call.get("function") or {}
                tool.id = call.get("id") or tool.id
                tool.name = function.get("name") or tool.name
                tool.arguments.append(function.get("arguments") or "")
        if reason:
            for key in [key for key in self._tools if key[0] == index]:
                tool = self._tools.pop(key)
                shown.append(self._tool(("tool", *key), tool.id, tool.name, "".join(tool.arguments)))

    def _event(self, kind: str, body: dict[str, Any], shown: list[Shown]) -> None:
        channel = _RESPONSE_TEXTS.get(kind)
        if channel is not None:
            if text := body.get("delta"):
                self._text((kind, *(body.get(name) for name in _INDEXES)), channel, text, shown)
            return
        if kind.endswith(".delta"):
            self.begun = True
        elif kind == "response.output_item.done":
            item = body.get("item")
            if isinstance(item, dict) and str(item.get("type")).endswith("_call"):
                arguments = item.get("arguments") or item.get("input") or ""
                name = item.get("name") or item["type"]
                key = ("tool", body.get("output_index"))
                shown.append(self._tool(key, item.get("call_id") or "", name, arguments))
        elif isinstance(response := body.get("response"), dict):
            self._head(response)
            if kind in _RESPONSE_ENDS:
                self.complete = True
                self._finish[0] = kind.removeprefix("response.")

    def _text(self, key: tuple[object, ...], channel: Channel.ValueType, text: str, shown: list[Shown]) -> None:
        self.begun = True
        if channel == CHANNEL_TEXT:
            self.texts.append(text)
        if self.shown:
            part = self._part(key)
            for piece in pieces(text):
                shown.append(Shown(channel, part, piece))  # noqa: PERF401 - it is one piece, but for very long ones

    def _tool(self, key: tuple[object, ...], id: str, name: str, arguments: str) -> Shown:
        self.begun = True
        call = to_json({"id": id, "name": name, "arguments": _json_or_text(arguments)})
        value = inline(call) if len(call) <= INLINE_BYTES_MAX else Payload(size=len(call))
        return Shown(CHANNEL_TOOL, self._part(key), value=value)

    def _part(self, key: tuple[object, ...]) -> int:
        return self.parts.setdefault(key, len(self.parts))

    def _head(self, body: dict[str, Any]) -> None:
        self.model = str(body.get("model") or self.model)
        self.id = str(body.get("id") or self.id)
        usage = body.get("usage")
        if isinstance(usage, dict):
            self.usage = usage_from(usage)


class Splice:
    """Takes from the front of a new answer what an earlier attempt had given of another one.

    Text is counted in characters for each place where it stands, everything else by its kind and place.
    """

    def __init__(self) -> None:
        self._given: dict[tuple[object, ...], int] = {}

    def gave(self, body: Any) -> None:
        """Count a chunk that was given."""
        for key, holder, name in _strings(body):
            self._given[key] = self._given.get(key, 0) + (len(holder[name]) if name else 1)

    def cut(self, body: Any) -> Any:
        """Return what of a chunk was not given; None where all of it was."""
        left = False
        known = False
        for key, holder, name in _strings(body):
            given = self._given.get(key, 0)
            known = known or bool(given)
            if not name:
                self._given[key] = max(0, given - 1)
                left = left or not given
                continue
            taken = min(given, len(holder[name]))
            self._given[key] = given - taken
            holder[name] = holder[name][taken:]
            left = left or bool(holder[name])
        return body if left or not known else None


def _strings(body: Any) -> Iterator[tuple[tuple[object, ...], dict[str, Any], str]]:
    """Yield where text stands in a chunk, each with a key for the place; without a name what counts as a whole."""
    if not isinstance(body, dict):
        return
    kind = body.get("type")
    if isinstance(kind, str):
        key = (kind, *(body.get(name) for name in _INDEXES))
        yield key, body, "delta" if isinstance(body.get("delta"), str) else ""
        return
    for choice in _dicts(body.get("choices")):
        index = choice.get("index") or 0
        if choice.get("finish_reason"):
            yield (index, "finish"), choice, ""
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = choice
        if delta.get("role"):
            yield (index, "role"), delta, ""
        for name in ("text", *(name for name, _ in _CHAT_TEXTS)):
            if isinstance(delta.get(name), str) and delta[name]:
                yield (index, name), delta, name
        for call in _dicts(delta.get("tool_calls")):
            function = call.get("function")
            if call.get("id"):
                yield (index, "tool", call.get("index"), "id"), call, ""
            if isinstance(function, dict) and function.get("arguments"):
                yield (index, "tool", call.get("index")), function, "arguments"


def usage_from(reported: dict[str, Any]) -> Usage:
    """Return the tokens that a provider reports, in either API's names."""
    details = reported.get("prompt_tokens_details") or reported.get("input_tokens_details") or {}
    return Usage(
        input_tokens=_count(reported.get("prompt_tokens", reported.get("input_tokens"))),
        output_tokens=_count(reported.get("completion_tokens", reported.get("output_tokens"))),
        cached_input_tokens=_count(details.get("cached_tokens") if isinstance(details, dict) else 0),
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for one in value:
            if isinstance(one, dict):
                yield one


def _json_or_text(arguments: str) -> Any:
    try:
        return from_json(arguments)
    except ValueError:
        return arguments
