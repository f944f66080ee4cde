"""A stand-in for a model, where there is none and in tests: it speaks the OpenAI API, and says that it is a script."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from itertools import count
from typing import Any

import httpx2

import scripted_reader
from onward.openai import AsyncOpenAI

TEXT = (
    "No model wrote this: it is a script, sent word by word so that there is something to watch. "
    "Close the terminal, open another and follow the run again: what was said is in its log, and the rest goes on. "
    "Set OPENAI_API_KEY and the same workflow writes a real post."
)
WORDS_PER_SECOND = 25.0
"""`ONWARD_EXAMPLE_SPEED` sets another speed; 0 means without delay."""


async def answer(request: httpx2.Request) -> httpx2.Response:
    """Answer a request for a completion: with the text, or in the shape that was asked for."""
    question: dict[str, Any] = json.loads(request.content)
    prompt = question["messages"][-1]["content"]
    if question.get("stream"):
        if question.get("tools"):
            calls = [] if question.get("tool_choice") == "none" else tool_calls(question["messages"])
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream(calls=calls))
        # Rules stand before what somebody else wrote, and who writes a post gives none.
        words = scripted_reader.answer(prompt) if len(question["messages"]) > 1 else None
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream(words))
    form = question["response_format"]["json_schema"]
    await asyncio.sleep(20 * _pause_s())
    match form["name"]:
        case "Choice":
            content = scripted_reader.chosen(prompt)
        case "Facts":
            content = scripted_reader.facts(prompt)
        case _:
            content = _filled(form["schema"], count(1))
    message = {"role": "assistant", "content": json.dumps(content)}
    return httpx2.Response(200, json=_completion({"message": message, "finish_reason": "stop"}))


def tool_calls(messages: list[dict[str, Any]]) -> list[tuple[str, dict[str, str]]]:
    """Call tools as a researcher does: search for the topic, then read the first two pages that were found."""
    topic = next(message["content"] for message in messages if message["role"] == "user")
    results = [message["content"] for message in messages if message["role"] == "tool"]
    match results:
        case []:
            return [("search", {"query": topic})]
        case [found]:
            return [("read", {"page": hit["page"]}) for hit in json.loads(found)[:2]]
    return []


async def stream(
    words: Iterable[str] | None = None, *, calls: Sequence[tuple[str, dict[str, str]]] = ()
) -> AsyncIterator[bytes]:
    """Yield words as a model sends them, by default the text; or calls of tools."""
    for number, (name, arguments) in enumerate(calls):
        await asyncio.sleep(10 * _pause_s())
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"index": number, "id": f"call-{number}", "type": "function", "function": function}
        yield _line(_completion({"delta": {"tool_calls": [call]}, "finish_reason": None}))
    if calls:
        yield _line(_completion({"delta": {}, "finish_reason": "tool_calls"}))
        yield b"data: [DONE]\n\n"
        return
    for word in words or (f"{word} " for word in TEXT.split()):
        await asyncio.sleep(_pause_s())
        yield _line(_completion({"delta": {"content": word}, "finish_reason": None}))
    yield _line(_completion({"delta": {}, "finish_reason": "stop"}))
    yield b"data: [DONE]\n\n"


def connect(answer: Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]] = answer) -> AsyncOpenAI:
    """Give a client whose requests are answered by the script, without a server in between."""
    return AsyncOpenAI(
        base_url="http://script.invalid/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(answer)),
    )


def _filled(form: dict[str, Any], number: Any, name: str = "answer") -> Any:
    """Fill a JSON Schema with text that is never twice the same."""
    match form["type"]:
        case "object":
            return {key: _filled(value, number, key) for key, value in form["properties"].items()}
        case "array":
            return [_filled(form["items"], number, name) for _ in range(form.get("minItems", 1))]
        case _:
            return f"Scripted {name.removesuffix('s')} {next(number)}"


def _completion(choice: dict[str, Any]) -> dict[str, Any]:
    choices = [{"index": 0} | choice]
    return {"id": "script", "object": "chat.completion", "created": 0, "model": "scripted", "choices": choices}


def _line(message: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(message)}\n\n".encode()


def _pause_s() -> float:
    speed = float(os.environ.get("ONWARD_EXAMPLE_SPEED", WORDS_PER_SECOND))
    return 1 / speed if speed else 0.0
