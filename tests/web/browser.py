"""A browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

CHROMIUM = shutil.which("chromium")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here to look at pages with: apt-get install chromium"
)

_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

WAIT_MS = 30_000
"""Longer than anything here takes, also on a machine that has other things to do."""

expect.set_options(timeout=WAIT_MS)


@contextlib.asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """Start a browser, and end it with the block."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def page_of(
    browser: Browser, door: str = "", *, width: int = 1_280, height: int = 800, dark: bool = False, script: str = ""
) -> AsyncIterator[Page]:
    """Open a page that is a visitor of its own, and see at the block's end that nothing went wrong in it.

    Args:
        browser: The browser.
        door: HOST:PORT that relative addresses are at.
        width: In pixels.
        height: In pixels.
        dark: Whether its user likes it dark.
        script: Runs before each of its documents.
    """
    context: BrowserContext = await browser.new_context(
        base_url=f"http://{door}" if door else None,
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
    )
    wrong: list[str] = []
    try:
        context.set_default_timeout(WAIT_MS)
        if script:
            await context.add_init_script(script)
        page = await context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
        yield page
        assert wrong == [], "the page has errors"
    finally:
        await context.close()
