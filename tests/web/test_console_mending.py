"""A run that stands still, mended by a person in the console: resumed, moved to another build, or retried."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect
from tests.e2e.suite import STOP_S, Suite, running_suite
from tests.web.browser import browsing, needs_chromium, page_of

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("console")]

CODE = """\
from pathlib import Path

from onward import component, signal, workflow


@component
async def count(folder: str) -> int:
    with (Path(folder) / "counted").open("a") as lines:
        return lines.write("once")


@component
async def check(folder: str) -> str:
    if not (Path(folder) / "mended").exists():
        raise ValueError("it has to be mended")
    return "mended"


@workflow
async def waits(folder: str) -> int:
    number = await {first}(folder)
    await signal("go")
    return number


@workflow
async def breaks(folder: str) -> str:
    await count(folder)
    return await check(folder)
"""

STATE = ".run-head .state"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def suite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    """Everything but executors."""
    folder = tmp_path_factory.mktemp("suite")
    async with running_suite(folder / "store", target=folder / "code.py", executors=0) as suite:
        yield suite


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all."""
    async with browsing() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, suite: Suite) -> AsyncIterator[Page]:
    """A page of the door."""
    async with page_of(browser, suite.gateways[0].addresses["http"]) as page:
        yield page


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _alone(suite: Suite) -> AsyncIterator[None]:
    """Leave no executor to the next test."""
    yield
    for child in suite.executors:
        await child.stop(STOP_S)
    suite.executors.clear()


async def test_a_paused_run_is_resumed_on_code_that_fits(page: Page, suite: Suite, tmp_path: Path) -> None:
    """It says what does not fit. On its own build it is PAUSED again; on the one that was mended it goes on."""
    suite.target.write_text(CODE.format(first="count"))
    first = await suite.add_executor("--deployment=first")
    async with suite.client() as client:
        run = await client.start("waits", {"folder": str(tmp_path)})
        await page.goto(f"/console/runs/{run.run_id}")
        await expect(page.locator(STATE)).to_contain_text("waiting")
        await first.stop(STOP_S)
        suite.target.write_text(CODE.format(first="check"))
        await suite.add_executor("--deployment=first")
        await run.signal("go")
        await expect(page.locator(STATE)).to_contain_text("paused")
        failure = page.locator(".run-head .failure")
        for word in ("NON_DETERMINISTIC", "count", "check"):
            await expect(failure).to_contain_text(word)
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator(".run-facts")).to_contain_text(re.compile(r"attempt\s*3"))
        await expect(page.locator(STATE)).to_contain_text("paused")

        suite.target.write_text(CODE.format(first="count") + "# mended\n")
        await suite.add_executor("--deployment=mended")
        await page.reload()
        await page.get_by_label("On the build").select_option("on mended")
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator(STATE)).to_contain_text("succeeded")
        await expect(page.locator(".result")).to_contain_text("4")
        await page.get_by_role("tab", name="Run", exact=True).click()
        await expect(page.get_by_role("tabpanel")).to_contain_text(re.compile(r"deployment\s*mended"))
    assert (tmp_path / "counted").read_text() == "once"


async def test_a_run_whose_build_is_gone_is_moved(page: Page, suite: Suite, tmp_path: Path) -> None:
    """Its page says what it waits for, and offers the builds that are there."""
    suite.target.write_text(CODE.format(first="count"))
    old = await suite.add_executor("--deployment=old")
    async with suite.client() as client:
        run = await client.start("waits", {"folder": str(tmp_path)})
        await page.goto(f"/console/runs/{run.run_id}")
        await expect(page.locator(STATE)).to_contain_text("waiting")
        await expect(page.get_by_role("button", name="Move")).to_have_count(0)
        await old.stop(STOP_S)
        await suite.add_executor("--deployment=new")
        await run.signal("go")
        await expect(page.locator(".notice")).to_contain_text("an executor of deployment old")
        await expect(page.get_by_label("On the build")).to_have_value("new")
        await page.get_by_role("button", name="Move").click()
        await expect(page.locator(STATE)).to_contain_text("succeeded")
    assert (tmp_path / "counted").read_text() == "once"


async def test_a_failed_run_is_retried_from_where_it_failed(page: Page, suite: Suite, tmp_path: Path) -> None:
    """As a new run, whose page follows at once: what had been done before is not done again."""
    suite.target.write_text(CODE.format(first="count"))
    await suite.add_executor("--deployment=newest")
    async with suite.client() as client:
        run = await client.start("breaks", {"folder": str(tmp_path)})
        await page.goto(f"/console/runs/{run.run_id}")
        await expect(page.locator(".run-head .failure")).to_contain_text("it has to be mended")
        (tmp_path / "mended").touch()
        await page.get_by_role("button", name="Retry").click()
        await expect(page.locator(STATE)).to_contain_text("succeeded")
        await expect(page.locator(".result")).to_contain_text("mended")
        assert run.run_id not in page.url
        await page.get_by_role("tab", name="Run", exact=True).click()
        await expect(page.get_by_role("tabpanel").get_by_role("link", name=run.run_id)).to_be_visible()
    assert (tmp_path / "counted").read_text() == "once"
