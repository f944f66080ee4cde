"""`make demo-web`: the page that is one file goes on through reloads and the death of what writes."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from playwright.async_api import expect
from tests.web.browser import browsing, needs_chromium, page_of

EXAMPLES = Path(__file__).parents[2] / "sdk" / "examples"

LINES_MAX = 120


def test_the_page_is_small_and_plain() -> None:
    """It shows how little it takes: no library, an EventSource, and nothing that makes markup of text."""
    text = (EXAMPLES / "blog_post.html").read_text()
    assert text.count("\n") <= LINES_MAX
    assert "new EventSource" in text
    assert not re.search(r"innerHTML|insertAdjacentHTML|<script[^>]+src|<link", text)


@needs_chromium
async def test_a_post_goes_on_through_a_reload_a_closed_page_and_a_dead_executor(tmp_path: Path) -> None:
    """What the page shows at the end is what the run has given, each word once."""
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / "_demo_web.py")),
        cwd=tmp_path,
        env={**os.environ, "ONWARD_EXAMPLE_MODEL": "scripted", "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert demo.stdout is not None
        told = ""
        async with asyncio.timeout(30):
            while "Ctrl-C" not in told:
                line = await demo.stdout.readline()
                assert line, f"it ended:\n{told}"
                told += line.decode()
        address = re.search(r"http\S+blog_post.html\S+", told)[0]  # type: ignore[index]
        door = address.partition("door=")[2]
        kill = re.search(r"pkill .*", told)[0]  # type: ignore[index]
        dev = re.search(r"-P (\d+)", kill)[1]  # type: ignore[index]
        async with browsing() as browser, page_of(browser) as page:
            await page.goto(address)
            await page.get_by_role("button", name="Write").click()
            await expect(page.locator("#notes")).to_contain_text("No model wrote this")
            await page.reload()
            await expect(page.locator("h1")).to_have_text("the history of tea")
            section = page.locator("main p").first
            await expect(section).to_contain_text("No model wrote this")
            address = page.url
            await page.close()
            killing = await asyncio.create_subprocess_shell(kill)
            assert await killing.wait() == 0
            page = await page.context.new_page()
            await page.goto(address)
            await expect(page.get_by_role("status")).to_contain_text("Done", timeout=30_000)
            run = await (await page.request.get(f"{door}/v1/runs/{address.partition('run=')[2]}?wait_s=20")).json()
            assert (run["state"], run["attempt"]) == ("SUCCEEDED", 2)
            # Each draft has given way to what was made of it.
            assert await page.locator("main p.draft").count() == len(run["output"]["sections"])
            shown = [text.strip() for text in await page.locator("main p:visible").all_text_contents()]
            assert shown == [one["text"] for one in run["output"]["sections"]]
            titles = await page.locator("main h2").all_text_contents()
            assert titles == [one["title"] for one in run["output"]["sections"]]
            assert (await page.locator("#opening").inner_text()).strip() == run["output"]["opening"]
    finally:
        if demo.returncode is None:
            demo.terminate()
        await demo.wait()
    assert not Path("/proc", dev).exists(), "what the demo started ends with it"
