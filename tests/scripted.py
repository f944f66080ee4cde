"""The examples' script behind a provider on a socket, as slow as one likes. Others ask it, and it counts."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from tests.provider import Provider, Reply, serving

import scripted_reader


class Scripted:
    """What a model's provider is asked.

    Attributes:
        url: Its base URL, for OPENAI_BASE_URL.
        asked: How often each question came. Each is paid for, whether its answer is still wanted or not.
        most: The most questions that it ever had to think about at the same time.
    """

    def __init__(self, provider: Provider) -> None:
        self.url = provider.url
        self.asked: Counter[str] = Counter()
        self.most = 0
        self._provider = provider
        self._before = 0

    def forget(self) -> None:
        """Begin to count anew."""
        self.asked.clear()
        self.most = 0
        self._before = len(self._provider.requests)

    def takes(self, latency_s: float) -> None:
        """Take so long for each answer from now on, in seconds."""
        self._provider.default = Reply(answer=self._answer, delay_s=latency_s)

    async def reached(self, asked: int) -> None:
        """Wait until so many questions have come."""
        await self._provider.until(lambda provider: len(provider.requests) - self._before >= asked)

    def _answer(self, question: dict[str, Any]) -> str:
        prompt = question["messages"][-1]["content"]
        self.asked[prompt] += 1
        self.most = max(self.most, self._provider.open)
        if question.get("stream"):
            return "".join(scripted_reader.answer(prompt)).strip()
        is_choice = question["response_format"]["json_schema"]["name"] == "Choice"
        return json.dumps(scripted_reader.chosen(prompt) if is_choice else scripted_reader.facts(prompt))


@contextlib.asynccontextmanager
async def scripted(latency_s: float = 0.0) -> AsyncIterator[Scripted]:
    """Serve it on loopback until the block ends."""
    async with serving() as provider:
        model = Scripted(provider)
        model.takes(latency_s)
        yield model
