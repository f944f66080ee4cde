"""A model call's span, by OpenTelemetry's conventions for generative AI.

What was asked and answered is not on it unless OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT says so.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import httpx2
from opentelemetry.trace import Span
from pydantic_core import to_json

from onward.openai.answers import Answer
from onward.secrets import masked
from onward.text import cut
from onward.v1.run_pb2 import Usage

if TYPE_CHECKING:
    from onward.openai.exchanges import Asked

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CONTENT_CHARS_MAX = 32 * 1024

_OPERATIONS = {
    "chat/completions": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}

_REQUEST = {
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "n": "choice.count",
}


def operation(path: str) -> str:
    """Return what the conventions call a request to this path below the base URL; empty where they do not know it."""
    return _OPERATIONS.get(path.strip("/"), "")


def captures_content() -> bool:
    """Tell whether spans hold what was asked and answered."""
    return os.environ.get(CONTENT, "").strip().upper() in ("TRUE", "SPAN_ONLY", "SPAN_AND_EVENT")


def asked(span: Span, asked: Asked, provider: str, url: httpx2.URL) -> None:
    """Note what is asked."""
    if not span.is_recording():
        return
    body = asked.body or {}
    span.set_attributes({"gen_ai.provider.name": provider, "server.address": url.host})
    if url.port is not None:
        span.set_attribute("server.port", url.port)
    if name := operation(asked.path):
        span.set_attribute("gen_ai.operation.name", name)
    if asked.model:
        span.set_attribute("gen_ai.request.model", asked.model)
    if body.get("stream") is True:
        span.set_attribute("gen_ai.request.stream", True)
    for field, attribute in _REQUEST.items():
        if isinstance(value := body.get(field), int | float):
            span.set_attribute(f"gen_ai.request.{attribute}", value)
    if isinstance(tier := body.get("service_tier"), str):
        span.set_attribute("openai.request.service_tier", tier)
    if stop := body.get("stop"):
        span.set_attribute("gen_ai.request.stop_sequences", [stop] if isinstance(stop, str) else [str(s) for s in stop])
    if captures_content() and not asked.policy.private:
        span.set_attribute("gen_ai.input.messages", _content(_messages(body.get("messages") or body.get("input"))))


def answered(span: Span, answer: Answer, usage: Usage, provider: str, first_token_s: float | None) -> None:
    """Note what came back."""
    if not span.is_recording():
        return
    span.set_attribute("gen_ai.provider.name", provider)
    if answer.model:
        span.set_attribute("gen_ai.response.model", answer.model)
    if answer.id:
        span.set_attribute("gen_ai.response.id", answer.id)
    if answer.finish_reasons:
        span.set_attribute("gen_ai.response.finish_reasons", answer.finish_reasons)
    if first_token_s is not None:
        span.set_attribute("gen_ai.response.time_to_first_chunk", first_token_s)
    if usage.input_tokens or usage.output_tokens:
        span.set_attribute("gen_ai.usage.input_tokens", usage.input_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)
    if usage.cached_input_tokens:
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_input_tokens)
    if usage.cost_usd_micros:
        span.set_attribute("onward.cost_usd_micros", usage.cost_usd_micros)
    if answer.texts and captures_content():
        finish = answer.finish_reasons[0] if answer.finish_reasons else "error"
        said = {"role": "assistant", "parts": [_text("".join(answer.texts))], "finish_reason": finish}
        span.set_attribute("gen_ai.output.messages", _content([said]))


def _messages(given: Any) -> list[dict[str, Any]]:
    """Return the messages of a request in the form of the conventions."""
    if isinstance(given, str):
        return [{"role": "user", "parts": [_text(given)]}]
    made = []
    for message in given if isinstance(given, list) else ():
        if isinstance(message, dict):
            content = message.get("content")
            parts = [_text(content)] if isinstance(content, str) else content or []
            made.append({"role": message.get("role", "user"), "parts": parts})
    return made


def _text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}


def _content(messages: list[dict[str, Any]]) -> str:
    return cut(masked(to_json(messages).decode()), CONTENT_CHARS_MAX)
