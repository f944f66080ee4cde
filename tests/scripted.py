"""The examples' script as a server of its own, as slow as one likes: who asks it are other processes, and it counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import scripted_reader

WORDS_PER_SECOND = 1_000


class Scripted:
    """A model's provider.

    Attributes:
        url: Its base URL, for OPENAI_BASE_URL.
        latency_s: How long it takes for an answer, in seconds.
        asked: How often each question came. Each is paid for, whether its answer is still wanted or not.
        in_flight: Questions that it is thinking about.
        most: The most that these ever were.
    """

    def __init__(self, latency_s: float) -> None:
        self.url = ""
        self.latency_s = latency_s
        self.asked: Counter[str] = Counter()
        self.in_flight = self.most = 0
        self._grown = asyncio.Condition()

    async def reached(self, asked: int) -> None:
        """Wait until so many questions have come."""
        async with self._grown:
            await self._grown.wait_for(lambda: self.asked.total() >= asked)

    async def answer(self, question: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Answer one question."""
        prompt = question["messages"][-1]["content"]
        shape = "" if question.get("stream") else question["response_format"]["json_schema"]["name"]
        async with self._grown:
            self.asked[prompt] += 1
            self._grown.notify_all()
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.latency_s)
        finally:
            self.in_flight -= 1
        if not shape:
            writer.write(b"HTTP/1.1 200 -\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            for word in scripted_reader.answer(prompt):
                writer.write(_line({"delta": {"content": word}, "finish_reason": None}))
                await asyncio.sleep(1 / WORDS_PER_SECOND)
            writer.write(_line({"delta": {}, "finish_reason": "stop"}) + b"data: [DONE]\n\n")
            await writer.drain()
            writer.close()
            return
        said = scripted_reader.chosen(prompt) if shape == "Choice" else scripted_reader.facts(prompt)
        message = {"role": "assistant", "content": json.dumps(said)}
        body = json.dumps(_completion({"message": message, "finish_reason": "stop"})).encode()
        writer.write(
            b"HTTP/1.1 200 -\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()


@contextlib.asynccontextmanager
async def scripted(latency_s: float = 0.0) -> AsyncIterator[Scripted]:
    """Serve it on loopback until the block ends."""
    provider = Scripted(latency_s)
    open_: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_[task] = writer
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
                length = next(int(line[15:]) for line in head if line.startswith("content-length:"))
                await provider.answer(json.loads(await reader.readexactly(length)), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # Whoever asked has gone.
        finally:
            del open_[task]
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        yield provider
    finally:
        server.close()
        for writer in open_.values():
            writer.transport.abort()
        await asyncio.gather(*open_, return_exceptions=True)


def _completion(choice: dict[str, Any]) -> dict[str, Any]:
    choices = [{"index": 0} | choice]
    return {"id": "script", "object": "chat.completion", "created": 0, "model": "scripted", "choices": choices}


def _line(choice: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(_completion(choice))}\n\n".encode()
