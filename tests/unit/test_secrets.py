"""Canaries: a registered value is nowhere in what a run shows, and what a later attempt works with is untouched."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import onward
from onward import ComponentError, component, publish, secrets, status, testing, tracing, workflow

CANARY = secrets.register('canary-"tür"-0123456789')
SHORT = secrets.register("none")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


class Refused(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(f"{key} is not known")
        self.details = {"key": key}


@component
async def login(key: str) -> str:
    status(f"With {key}")
    publish("key", {"key": key})
    publish.state("state", [key])
    return key


@component.retry(attempts=2)
async def refused(key: str) -> str:
    raise Refused(key)


@workflow
async def uses_a_secret() -> bool:
    key = CANARY
    given = await login(key)
    with pytest.raises(ComponentError) as caught:
        await refused(key)
    assert_clean(f"{caught.value} {caught.value.details}")
    return given == key


def assert_clean(text: str) -> None:
    for form in ("canary", "0123456789"):
        assert form not in text


async def test_a_secret_is_nowhere_in_what_a_run_shows(spans: InMemorySpanExporter) -> None:
    """Neither in inputs, results, statuses, published values, errors, tracebacks, details nor in spans."""
    with testing.no_replay(False):
        result = await testing.run(uses_a_secret)
    assert result.output, "what the code works with is the secret itself, after a replay too"
    told = "".join(str(event) for event in result.events)
    assert_clean(told)
    assert secrets.MASK in result.statuses[0]
    assert len(spans.get_finished_spans()) > 3
    assert_clean("".join(span.to_json() for span in spans.get_finished_spans()))


async def test_a_run_that_fails_with_a_secret_does_not_tell_it() -> None:
    @workflow
    async def fails() -> None:
        raise Refused(CANARY)

    result = await testing.run(fails)
    assert result.error is not None
    assert secrets.MASK in result.error.message
    assert_clean(str(result.error))


async def test_other_code_does_not_read_it_off_the_message_that_pauses_the_run() -> None:
    calls = iter(["a", CANARY])

    @workflow
    async def changes() -> None:
        await login(next(calls))

    with testing.crash(3):
        result = await testing.run(changes)
    assert result.state == "PAUSED"
    assert result.error is not None
    assert_clean(result.error.message)


def test_short_values_are_left_alone() -> None:
    """Ordinary words would have holes."""
    assert secrets.masked("none of it") == "none of it"


def test_a_filter_takes_secrets_out_of_log_records(caplog: pytest.LogCaptureFixture) -> None:
    """From messages, their arguments and tracebacks."""
    caplog.handler.addFilter(secrets.MaskingFilter())
    logger = logging.getLogger("test")
    logger.error("login with %s", CANARY, exc_info=Refused(CANARY))
    logger.warning("plain %s", 1)
    assert "Refused" in caplog.text
    assert "plain 1" in caplog.text
    assert_clean(caplog.text)


def test_of_keys_that_come_one_after_the_other_the_newest_are_secrets() -> None:
    """A client may make one for each request, for as long as the process lives; what was registered for good stays."""
    keys = [f"passing-{number:06}" for number in range(2 * secrets.PASSING_MAX)]
    for key in keys:
        secrets.register(keys[0], passing=True)  # in use all the time
        secrets.register(key, passing=True)
    newest = [keys[0], *keys[-secrets.PASSING_MAX + 1 :]]
    assert [key for key in keys if secrets.masked(key) != key] == newest
    assert secrets.masked_bytes(keys[-1].encode()) == secrets.MASK.encode()
    secrets.register(keys[1])
    for key in keys:
        secrets.register(key, passing=True)
    assert secrets.masked(f"{keys[1]} {CANARY}") == f"{secrets.MASK} {secrets.MASK}"


def test_a_secret_that_begins_another_leaves_nothing_of_it() -> None:
    """Whichever was registered first."""
    secrets.register("secret-of-two")
    secrets.register("secret-of-two-and-more")
    assert secrets.masked("secret-of-two-and-more, secret-of-two") == f"{secrets.MASK}, {secrets.MASK}"


async def test_a_secret_that_a_status_would_cut_or_join_is_masked_as_well() -> None:
    """No part of it is told."""
    key = secrets.register("-----BEGIN KEY-----\nline of it\n-----END KEY-----")

    @workflow
    async def flow() -> None:
        status(f"With {key}")
        status("x" * 990 + key)

    first, second = (await testing.run(flow)).statuses
    assert first == f"With {secrets.MASK}"
    assert second == "x" * 990 + secrets.MASK


async def test_a_question_does_not_tell_a_secret() -> None:
    """Whoever follows the run reads it."""

    @workflow
    async def flow() -> bool:
        return await onward.request_input("answer", bool, prompt=f"Is it {CANARY}?")

    with testing.signals({"answer": True}):
        result = await testing.run(flow)
    [asked] = [event.input_requested for event in result.events if event.HasField("input_requested")]
    assert asked.prompt == f"Is it {secrets.MASK}?"
    assert_clean(str(result.events))
