"""Row 20: the console, in a real browser."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.figures import Figure
from tests.e2e.developing import developing
from tests.web.browser import CHROMIUM, browsing, page_of

from onward_gateway.http.console import console

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page
    from tests.bench.setting import Setting

    from onward import Client

WORKFLOWS = Path(__file__).parents[2] / "web" / "workflows.py"

EVENTS = 20_000
COMPONENTS = 3_000
TOKENS = EVENTS - 2 * COMPONENTS - 5

NOTE_LONG_TASKS = """
window.tasks = [];
new PerformanceObserver((list) => tasks.push(...list.getEntries().map((entry) => entry.duration)))
    .observe({ type: "longtask", buffered: true });
"""

FIRST_PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"

ALL_IS_THERE = f"""() => {{
    const facts = document.querySelector(".run-facts")?.textContent ?? "";
    return facts.includes("{EVENTS:,}") && !document.querySelector(".connection") && performance.now();
}}"""

SCROLL = """async (selector) => {
    const box = document.querySelector(selector);
    const frames = [];
    let last = await new Promise(requestAnimationFrame);
    const step = Math.max(400, box.scrollHeight / 240);
    for (let count = 0; count < 240; count++) {
        box.scrollTop += step;
        const now = await new Promise(requestAnimationFrame);
        frames.push(now - last);
        last = now;
    }
    return frames;
}"""


async def looked_at(setting: Setting) -> list[Figure]:
    """Row 20: what a person waits for, and whether what they look at moves smoothly."""
    if CHROMIUM is None:
        setting.say("row 20: there is no Chromium here")
        return []
    size = len(console().page.packed) + sum(len(asset.packed) for asset in console().assets.values())
    with tempfile.TemporaryDirectory(prefix="onward-bench-") as folder:
        async with (
            developing(Path(folder), str(WORKFLOWS), "--no-reload") as dev,
            browsing() as browser,
            dev.client() as client,
        ):
            door = dev.addresses["http"]
            paints = [await _painted(browser, door) for _ in range(3 if setting.quick else 15)]
            run = await client.start("long", {"components": COMPONENTS, "tokens": TOKENS})
            await run.result()
            opened, scrolled = [], []
            for _ in range(1 if setting.quick else 5):
                async with page_of(browser, door, script=NOTE_LONG_TASKS) as page:
                    opened.append(await _opened(page, run.run_id))
                    for selector in (".timeline .rows", ".panel-body"):
                        frames: list[float] = await page.evaluate(SCROLL, selector)
                        scrolled.append(statistics.quantiles(frames, n=20)[-1])
            longest = await _longest_task(browser, door, client, seconds=3 if setting.quick else 15)
    setting.say(f"row 20: {statistics.median(opened):.0f} ms")
    return [
        _figure("the console, all files gzipped", size / 1024, "KiB", 150.0),
        _figure("its first paint on loopback, nothing cached, p50", statistics.median(paints), "ms", 1_000.0),
        _figure(
            f"opening a run of {EVENTS:,} events, until all is shown, p50", statistics.median(opened), "ms", 1_500.0
        ),
        _figure("scrolling through it, tree and text: a frame, p95", max(scrolled), "ms", 50.0),
        _figure("live text at 200 tokens/s: the longest task (0: none over 50 ms)", longest, "ms", 100.0),
    ]


async def _painted(browser: Browser, door: str) -> float:
    async with page_of(browser, door) as page:
        await page.goto("/console/runs")
        await page.wait_for_function(FIRST_PAINT)
        return float(await page.evaluate(FIRST_PAINT))


async def _opened(page: Page, run_id: str) -> float:
    await page.goto(f"/console/runs/{run_id}", wait_until="commit")
    handle = await page.wait_for_function(ALL_IS_THERE)
    return float(await handle.json_value())


async def _longest_task(browser: Browser, door: str, client: Client, *, seconds: int) -> float:
    run = await client.start("talk", {"tokens": seconds * 200, "pause_s": 0.005})
    async with page_of(browser, door, script=NOTE_LONG_TASKS) as page:
        await page.goto(f"/console/runs/{run.run_id}")
        await page.locator(".prose").wait_for()
        await page.evaluate("() => { tasks.length = 0 }")
        await run.result()
        await page.locator(".run-head .state.succeeded").wait_for()
        return float(await page.evaluate("() => Math.max(0, ...tasks)"))


def _figure(what: str, value: float, unit: str, most: float) -> Figure:
    return Figure(row=20, what=what, value=value, unit=unit, target=f"≤ {most:g} {unit}", met=value <= most)
