"""`make demo-onboarding`: a website is read while it is asked about, everything on this machine, in this terminal."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import model
import product_site
from onward import Client, View
from website.addresses import site_of

EXAMPLE = Path(__file__).with_name("onboarding.py")
ABOUT_LARKSPUR = ("What does the Orchard plan cost?", "How often is Rootcam asked?", "Who founded Larkspur, and when?")
ABOUT_ANY = ("What is it, and who is it for?", "What does it cost?", "Who is behind it?")
SCRIPTED = {"ONWARD_EXAMPLE_SPEED": "16", "ONWARD_EXAMPLE_AT_ONCE": "8"}
"""As slow as a model that has a second or so for each of hundreds of questions."""
MARKS = {
    "waiting": ("·", "dim"),
    "reading": ("○", "cyan"),
    "learning": ("◐", "yellow"),
    "ready": ("●", "green"),
    "unchanged": ("●", "green"),
    "duplicate": ("=", "dim"),
    "empty": ("-", "dim"),
    "left out": ("✗", "red"),
}


async def main(url: str) -> int:
    """Ingest a site, and ask twice meanwhile and once at the end."""
    console = Console()
    async with AsyncExitStack() as stack:
        settings = dict(os.environ)
        questions = ABOUT_ANY
        if not url:
            site = await stack.enter_async_context(product_site.serving())
            url, questions = f"{site.url}/", ABOUT_LARKSPUR
            settings |= {"ONWARD_EXAMPLE_PRIVATE_HOSTS": site.host, "ONWARD_EXAMPLE_DELAY_S": "0.05"}
            settings |= {"ONWARD_EXAMPLE_PAGE_S": "3"}
        # The toy on this machine takes many minutes for 300 questions, and points at the wrong lines. It is used where
        # it is asked for: ONWARD_EXAMPLE_MODEL=local.
        if not any(os.environ.get(key) for key in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ONWARD_EXAMPLE_MODEL")):
            settings |= SCRIPTED | {"ONWARD_EXAMPLE_MODEL": "scripted"}
            os.environ["ONWARD_EXAMPLE_MODEL"] = "scripted"
        data = stack.enter_context(tempfile.TemporaryDirectory(prefix="onward-onboarding-"))
        settings |= {"ONWARD_EXAMPLE_SITES": f"{data}/sites"}
        gateway = await stack.enter_async_context(_dev(data, settings))
        client = await stack.enter_async_context(Client(gateway))
        console.print(f"\nOnboarding [bold]{url}[/]   model: {model.in_use().note}\n")
        return await _onboard(client, url, questions, console)


async def _onboard(client: Client, url: str, questions: Sequence[str], console: Console) -> int:
    began = time.monotonic()
    run = await client.start("ingest", {"url": url})
    first_s = 0.0
    to_ask = iter(zip((0.2, 0.6), questions, strict=False))
    share, question = next(to_ask)
    asking: list[asyncio.Task[None]] = []
    view = View()
    with Live(console=console, refresh_per_second=10) as live:
        async for view in client.watch(run.run_id):
            pages: list[dict[str, Any]] = view.states.get("pages", [])
            counts = Counter(page["state"] for page in pages)
            if not first_s and counts["learning"] + counts["ready"]:
                first_s = time.monotonic() - began
            done = len(pages) - counts["waiting"] - counts["reading"] - counts["learning"]
            if pages and done >= share * len(pages):
                asking.append(asyncio.create_task(_ask(client, url, question, console, f"{done} of {len(pages)}")))
                share, question = next(to_ask, (2.0, ""))
            live.update(_picture(view, pages, done))
        await asyncio.gather(*asking)
    if view.state != "SUCCEEDED":
        console.print(f"[red]{view.state}[/]: {view.error.message if view.error else ''}")
        return 1
    got = await run.result()
    await _ask(client, url, questions[-1], console, "all")
    calls = Counter(part.name for part in view.components.values())
    console.print()
    for left in got["left_out"]:
        console.print(Text.assemble(("left out  ", "red"), f"{left['url']}  ", (left["why"], "dim")), soft_wrap=True)
    console.print(
        f"\n{got['found']} pages found, {got['chosen']} chosen, {got['ready']} learned, "
        f"{got['duplicates']} there twice, {len(got['left_out'])} left out.\n"
        f"{got['facts']} facts by {calls['choose'] + calls['learn']} calls of {got['model']}.\n"
        f"{got['seconds']:.1f} s in all; the first page could be asked about after {first_s:.1f} s."
    )
    return 0


async def _ask(client: Client, url: str, question: str, console: Console, known: str) -> None:
    """Ask, and print the answer above the picture."""
    run = await client.start("ask", {"site": site_of(url), "question": question})
    got = await run.result()
    console.print(Text.assemble((f"\nQ  {question}", "bold"), (f"   (asked when {known} pages were done)", "dim")))
    console.print(Text(f"A  {got['text']}"))
    for number, source in enumerate(got["sources"], 1):
        if f"[{number}]" in got["text"]:
            console.print(Text(f"   [{number}] {source}", style="dim"), soft_wrap=True)


def _picture(view: View, pages: Sequence[dict[str, Any]], done: int) -> Group:
    line = view.status.message if view.status else "Starting"
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=max(1, len(pages)), completed=done, width=40), f"{done}/{len(pages)}", line)
    marks = Text()
    for page in pages:
        marks.append(*MARKS[page["state"]])
    return Group(Text(), marks, bar)


@asynccontextmanager
async def _dev(data: str, settings: dict[str, str]) -> AsyncIterator[str]:
    """Serve the example until the block ends; gives the Gateway's address."""
    onward = str(Path(sys.executable).with_name("onward"))
    dev = await asyncio.create_subprocess_exec(
        *(onward, "dev", str(EXAMPLE), f"--data={data}", "--grpc=127.0.0.1:0", "--http=127.0.0.1:0", "--no-reload"),
        env=settings,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us, and ends it in order
    )
    assert dev.stdout is not None
    try:
        async for line in dev.stdout:
            if line.startswith(b"ready "):
                yield dict(field.split("=", 1) for field in line.decode().split()[1:])["grpc"]
                return
        raise SystemExit(await dev.wait() or 1)
    finally:
        if dev.returncode is None:
            dev.terminate()
        await dev.wait()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(os.environ.get("URL", ""))))
    except KeyboardInterrupt:
        sys.exit(130)
