"""Onboarding on real processes: what a killed executor costs, what a second run costs, and asking meanwhile."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.suite import Suite, running_suite
from tests.e2e.test_faults import attempts, check_log, holder_of
from tests.scripted import Scripted, scripted

import onboarding
import product_site
from onward import Client, fold
from onward.v1.run_pb2 import RUN_STATE_CANCELLED
from product_site import Answer, ProductSite
from website.addresses import site_of

AT_ONCE = 50
LATENCY_S = 0.1
READING = 25
PASSAGES_MAX = 6
CALLS = 300
"""The choice, and each passage of the pages that are chosen."""


@dataclass
class Place:
    """Everything that an ingestion needs, as processes."""

    site: ProductSite
    provider: Scripted
    suite: Suite
    client: Client

    @property
    def url(self) -> str:
        """Where the product's website is."""
        return f"{self.site.url}/"

    async def ask(self, question: str) -> dict[str, object]:
        """Ask about the site."""
        run = await self.client.start("ask", {"site": site_of(self.url), "question": question})
        answer: dict[str, object] = await run.result(20)
        return answer


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Place]:
    """Two executors, a website, and a model that takes 100 ms for each of 50 questions at a time."""
    async with contextlib.AsyncExitStack() as stack:
        site = await stack.enter_async_context(product_site.serving())
        for path in ("/slow", "/broken"):
            site.extra[path] = Answer(status=404)  # what is tried again for seconds is tested elsewhere
        provider = await stack.enter_async_context(scripted(LATENCY_S))
        for name, value in {
            "OPENAI_BASE_URL": provider.url,
            "OPENAI_MODEL": "scripted",
            "ONWARD_EXAMPLE_MODEL": "openai",
            "ONWARD_EXAMPLE_AT_ONCE": str(AT_ONCE),
            "ONWARD_EXAMPLE_DELAY_S": "0",
            "ONWARD_EXAMPLE_PRIVATE_HOSTS": site.host,
            "ONWARD_EXAMPLE_SITES": str(tmp_path / "sites"),
        }.items():
            monkeypatch.setenv(name, value)
        target = Path(onboarding.__file__)
        suite = await stack.enter_async_context(running_suite(tmp_path / "store", target=target, executors=2))
        client = await stack.enter_async_context(suite.client())
        yield Place(site, provider, suite, client)


@pytest.mark.parametrize("killed_at", [1, 60, 200, 290])
async def test_a_killed_executor_costs_no_more_than_what_it_was_waiting_for(place: Place, killed_at: int) -> None:
    """What had come back is not paid again, wherever it dies; and its user sees every page once."""
    run = await place.client.start("ingest", {"url": place.url})
    await place.provider.reached(killed_at)
    victim = await holder_of(place.suite, (await place.client.get(run.run_id)).executor_id)
    await place.suite.kill(victim)
    result = await run.result(40)
    paid = place.provider.asked
    assert len(paid) == CALLS
    assert CALLS <= paid.total() <= CALLS + AT_ONCE
    assert place.provider.most <= AT_ONCE
    assert max(paid.values()) <= 2
    events = [event async for event in run.follow()]
    check_log(events)
    assert len(attempts(events)) == 2
    view = fold(events)
    done = [status.done for status in view.statuses if status.total]
    assert done == list(range(result["chosen"] + 1))
    assert Counter(page["state"] for page in view.states["pages"])["ready"] == result["ready"]
    assert result["chosen"] == result["ready"] + result["unchanged"] + result["duplicates"] + len(result["left_out"])


async def test_a_second_run_on_other_processes_costs_nothing(place: Place) -> None:
    """The index is what is shared, not anybody's memory."""
    await place.client.invoke("ingest", {"url": place.url})
    paid, sent = place.provider.asked.total(), Counter(place.site.sent)
    for child in list(place.suite.executors):
        await place.suite.kill(child)
    await place.suite.add_executor("--drain-grace=1")
    second = await place.client.invoke("ingest", {"url": place.url})
    assert second["ready"] == second["facts"] == 0
    assert second["unchanged"] > 50
    assert place.provider.asked.total() == paid
    assert {path for path, count in place.site.sent.items() if count > sent[path]} == {
        *("/robots.txt", "/sitemap_index.xml", "/sitemap-1.xml.gz", "/sitemap-2.xml.gz")
    }


async def test_it_answers_while_it_is_being_read(place: Place) -> None:
    """With what it knows by then; later with more."""
    before = await place.ask("How often is Rootcam asked?")
    assert before["sources"] == []
    place.provider.takes(0.3)
    run = await place.client.start("ingest", {"url": place.url})
    async for view in place.client.watch(run.run_id):
        # Most pages name the product, but not every one does.
        if sum(page["state"] == "learning" for page in view.states.get("pages", [])) >= 8:
            break
    early = await place.ask("What does Larkspur know?")
    assert early["sources"]
    assert not (await run.get()).HasField("end_time")
    assert (await run.result(40))["chosen"] > 60
    assert (await place.ask("How often is Rootcam asked?"))["text"] == "Rootcam is asked every 15 minutes. [1]"


async def test_cancelling_stops_paying(place: Place) -> None:
    """Nothing new is asked once it is cancelled, and what was learned is kept."""
    run = await place.client.start("ingest", {"url": place.url})
    await place.provider.reached(100)
    await place.client.cancel(run.run_id)
    assert (await place.client.wait_for(run.run_id, 20)).state == RUN_STATE_CANCELLED
    paid = place.provider.asked.total()
    assert paid < CALLS
    again = await place.client.invoke("ingest", {"url": place.url})
    assert again["ready"] + again["unchanged"] > 60
    assert len(place.provider.asked) == CALLS
    lost = place.provider.asked.total() - CALLS
    assert lost <= READING * PASSAGES_MAX, "of the pages that were under way, what had not been kept yet"
