"""Who answers: one provider, or several of which another takes over where one fails."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import choices
from typing import Any, Literal

import httpx2
from pydantic_core import from_json, to_json

from onward import secrets
from onward.openai.budgets import ACCOUNT, Budgeted

SIT_OUT_S = 10.0
"""How long a provider that failed comes after the others, in this process."""


@dataclass(frozen=True)
class Provider:
    """One OpenAI-compatible API.

    Attributes:
        name: What the log, spans and prices call it.
        base_url: Where it is.
        api_key: Its key; empty where it wants none.
        models: Its own name for each model that requests ask for. One that is not here goes by the same name.
        weight: Its share of the calls, where providers are taken by weight.
        headers: Added to every request.
        budget: What all executors together may ask of it in a minute: of each model, or by its names for models.
    """

    name: str
    base_url: str
    api_key: str = field(default="", repr=False)
    models: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    budget: Budgeted = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a provider has a name")
        if self.weight <= 0:
            raise ValueError(f"the weight of {self.name} is above 0, not {self.weight}")
        secrets.register(self.api_key)

    def model(self, asked: str) -> str:
        """Return its own name for a model."""
        return self.models.get(asked, asked)

    def addressed(self, request: httpx2.Request, base_url: httpx2.URL, body: dict[str, Any] | None) -> httpx2.Request:
        """Return a request that was made for another base URL, as this one takes it."""
        path = request.url.raw_path.removeprefix(base_url.raw_path)
        mine = httpx2.URL(self.base_url)
        url = mine.copy_with(raw_path=mine.raw_path.rstrip(b"/") + b"/" + path.lstrip(b"/"))
        headers = httpx2.Headers(request.headers)
        for name in ("host", "cookie", *ACCOUNT):
            headers.pop(name, None)  # They may be somebody else's.
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        headers.update(self.headers)
        if body is None:
            return readdressed(request, url, headers, request.content)
        if isinstance(asked := body.get("model"), str):
            body = {**body, "model": self.model(asked)}
        return readdressed(request, url, headers, to_json(body))


class Providers:
    """Several providers, in the order in which they are asked, or by weight.

    Inside a run, where one fails the next is asked at once; after all of them there is a pause, and another round.
    Outside a run the first alone is asked. A stream that breaks after its first token raises in the caller's code, like
    any error: what was shown is rolled back by the next try of the component around it, and there another provider
    comes first.
    """

    def __init__(self, providers: Iterable[Provider], *, by: Literal["order", "weight"] = "order") -> None:
        """Take them.

        Raises:
            ValueError: There is none, or two have one name.
        """
        self.all = list(providers)
        if not self.all:
            raise ValueError("there is no provider")
        if len({one.name for one in self.all}) < len(self.all):
            raise ValueError("two providers have the same name")
        self._by_weight = by == "weight"
        self._back_at: dict[str, float] = {}

    def ordered(self) -> list[Provider]:
        """Return them in the order in which a call asks them: those that failed just now last."""
        now = time.monotonic()
        order = self._drawn() if self._by_weight else self.all
        return sorted(order, key=lambda one: self._back_at.get(one.name, 0.0) > now)

    def failed(self, provider: Provider) -> None:
        """Let the others come first for a while."""
        self._back_at[provider.name] = time.monotonic() + SIT_OUT_S

    def _drawn(self) -> list[Provider]:
        left, order = list(self.all), []
        while left:
            [one] = choices(left, [one.weight for one in left])
            left.remove(one)
            order.append(one)
        return order


def readdressed(request: httpx2.Request, url: httpx2.URL, headers: httpx2.Headers, content: bytes) -> httpx2.Request:
    """Return a request with another address, headers and body."""
    for name in ("content-length", "transfer-encoding"):
        headers.pop(name, None)
    made = httpx2.Request(request.method, url, headers=headers, content=content)
    made.extensions = {**request.extensions, "timeout": dict(request.extensions.get("timeout") or {})}
    return made


def json_object(request: httpx2.Request) -> dict[str, Any] | None:
    """Return a request's body where it is a JSON object that is at hand."""
    try:
        body = from_json(request.content)
    except (httpx2.RequestNotRead, ValueError):
        return None
    return body if isinstance(body, dict) else None


_NAMES = {
    "openai.com": "openai",
    "azure.com": "azure.ai.openai",
    "googleapis.com": "gcp.gemini",
    "anthropic.com": "anthropic",
    "mistral.ai": "mistral_ai",
    "groq.com": "groq",
    "deepseek.com": "deepseek",
    "x.ai": "x_ai",
    "perplexity.ai": "perplexity",
    "cohere.com": "cohere",
    "amazonaws.com": "aws.bedrock",
}
"""OpenTelemetry's names of providers, by domain."""


def name_of(host: str) -> str:
    """Return what a provider at this host is called."""
    return _NAMES.get(".".join(host.split(".")[-2:]), host)
