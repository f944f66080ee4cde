"""A stream's events: cut out of a provider's bytes, and told to the `openai` package as it would have read them."""

from __future__ import annotations

import re
from typing import Any

import openai._streaming
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder
from pydantic_core import from_json, to_json
from tests.provider import Reply, serving

from onward import testing, workflow
from onward.openai import AsyncOpenAI
from onward.openai.sse import DONE, END, Decoder, Events, Parsed, data_of

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)
BODIES = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | WORDS, lambda one: st.dictionaries(WORDS, one)
)
FIELDS = st.sampled_from((b"event: response.created", b"id: 7", b"retry: 100", b": comment", b"other"))


@given(st.lists(st.sampled_from((b"\n", b"\r\n", b"\r", b"\n\n", b"a", b":", b"data: 1")), max_size=40), st.data())
def test_events_are_the_same_in_whatever_pieces_they_come(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    lines = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").strip(b"\n")
    expected = [
        event
        for event in re.split(rb"\n\n+", lines)
        if event and not all(line.startswith(b":") for line in event.split(b"\n"))
    ]
    events, found = Events(), []
    while whole:
        size = data.draw(st.integers(1, len(whole)))
        found += events.feed(whole[:size])
        whole = whole[size:]
    assert [*found, *events.end()] == expected


@given(st.lists(st.tuples(st.lists(FIELDS, max_size=3), BODIES), max_size=5))
def test_the_package_is_told_what_it_would_have_read(given_events: list[tuple[list[bytes], Any]]) -> None:
    """The field `id` of an event that has none is that of the one before only in the package; it asks for none."""
    events = [b"\n".join((*fields, b"data: " + to_json(body))) for fields, body in given_events]
    chunks = [*(Parsed.of(event, from_json(data_of(event))) for event in events), DONE + END]
    package = [(one.event, one.data) for one in SSEDecoder().iter_bytes(iter(chunks))]
    told = list(Decoder(SSEDecoder()).iter_bytes(iter(chunks)))
    assert [(one.event, one.data) for one in told] == package
    assert [one.json() for one in told[:-1]] == [from_json(data) for _, data in package[:-1]]


async def test_a_chunk_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package would parse it with is not asked in a run."""

    @workflow
    async def says() -> str:
        stream = await client.chat.completions.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    monkeypatch.setattr(openai._streaming, "json", None)  # noqa: SLF001 - the package's, not ours
    async with serving() as provider, AsyncOpenAI(base_url=provider.url, api_key="none") as client:
        provider.default = Reply("Tea is old")
        with testing.no_replay():
            assert (await testing.run(says)).output == "Tea is old"
