"""`/docs`, as a person has it: what is served, tried out, and whatever it says shown as text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect
from tests.gateway import Door, gateway
from tests.web.browser import browsing, needs_chromium, page_of

from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import Workflow
from onward.v1.run_pb2 import Payload
from onward_gateway.access import Scope, line_of, new_key
from onward_runlog import registry
from onward_runlog.store import Store, open_store

pytestmark = [needs_chromium, pytest.mark.xdist_group("docs")]

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"'
SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string", "description": HOSTILE, "default": HOSTILE}},
    "required": ["topic"],
}


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with open_store(redis_url) as store:
        data = json.dumps(SCHEMA).encode()
        workflow = Workflow(name="blog", description=HOSTILE, input_schema=Payload(data=data, size=len(data)))
        executor = Executor(executor_id="e", deployment="build", address="127.0.0.1:1", workflows=[workflow])
        await registry.register(store, executor, ttl_s=60)
        yield store


async def look(page: Page, door: Door) -> None:
    """What the page shows of the one workflow, and that none of it ran."""
    await page.locator("#start_blog > summary").click()
    await expect(page.locator("#start_blog")).to_contain_text(HOSTILE)
    await expect(page.locator("#start_blog textarea")).to_have_value(json.dumps({"topic": HOSTILE}, indent=2))
    assert await page.evaluate("window.hacked") is None
    await page.locator("#list_runs > summary").click()
    await page.locator("#list_runs button").click()
    await expect(page.locator("#list_runs [role=status]")).to_contain_text("200")
    await expect(page.locator("#list_runs")).to_contain_text('"runs": []')
    assert door.http in await page.locator("#list_runs pre").first.inner_text()


@pytest.mark.parametrize("dark", [False, True])
async def test_what_is_served_is_shown_and_can_be_tried(redis_url: str, store: Store, dark: bool) -> None:
    async with (
        gateway(redis_url) as door,
        browsing() as browser,
        page_of(browser, door.http, width=400, dark=dark) as page,
    ):
        await page.goto("/docs")
        await look(page, door)
        found = await Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


async def test_a_key_is_asked_for_where_one_is_needed(redis_url: str, store: Store, tmp_path: Path) -> None:
    key, file = new_key(), tmp_path / "keys"
    file.write_text(line_of(key, "default", frozenset({Scope.READ}), ""))
    async with (
        gateway(redis_url, keys=file) as door,
        browsing() as browser,
        page_of(browser, door.http) as page,
    ):
        await page.goto("/docs")
        await expect(page.locator("#main")).to_contain_text("an API key is needed")
        await page.get_by_label("API key").fill(key)
        await page.get_by_role("button", name="Use").click()
        await look(page, door)
        assert key not in page.url
        assert key not in await page.content()
