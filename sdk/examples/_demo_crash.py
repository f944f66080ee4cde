"""`make demo-crash`: an executor is killed in mid-sentence, and the text goes on in this terminal."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import IO

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from onward import Client, View, testing
from onward.v1.event_pb2 import Event

EXAMPLE = Path(__file__).with_name("survivor.py")
WORDS_BEFORE = 12
"""The executor dies this far into the second paragraph."""


class Crash:
    """What happens, told from the events of the run alone."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.view = View()
        self.lines: list[Text] = []
        self._pid = 0
        self._victim = 0
        self._last_text_s = 0.0
        self._killed_s = 0.0
        self._began = 0
        self._goes_on = False

    def take(self, event: Event) -> None:
        """Take in the next event, and kill who wrote it when the time has come."""
        self.events.append(event)
        self.view.apply(event)
        if found := re.match(r"process (\d+) ", event.status_updated.message):
            self._pid = int(found[1])
        now = time.monotonic()
        if event.HasField("attempt_started") and self._victim:
            self._began = event.offset
            self._tell(
                f"attempt {event.attempt} began on another one, at event {event.offset}, "
                f"{1000 * (now - self._killed_s):.0f} ms later: the address of the dead one refused a connection"
            )
        elif event.HasField("output_delta") and not self._began:
            self._last_text_s = now  # also what was on its way when its writer died
            _, cut, second = self.view.text.partition("\n\n")
            if cut and len(second.split()) >= WORDS_BEFORE and not self._victim:
                self._kill(event.offset)
        elif event.HasField("output_delta") and not self._goes_on:
            self._goes_on = True
            self._tell(
                f"the text goes on, at event {event.offset}, on process {self._pid}, "
                f"{1000 * (now - self._last_text_s):.0f} ms after its last word: the model had to come there again"
            )

    def _kill(self, offset: int) -> None:
        self._victim = self._pid
        said = " ".join(self.view.text.split()[-4:])
        os.kill(self._victim, signal.SIGKILL)
        self._killed_s = time.monotonic()
        self._tell(f"kill -9 of process {self._victim}, after event {offset}, in mid-sentence: “… {said} ▌”")

    def _tell(self, line: str) -> None:
        self.lines.append(Text.assemble(("✗ " if line.startswith("kill") else "→ ", "red bold"), line))

    def picture(self, *, ended: bool = False) -> Group:
        """What is on the screen."""
        line = self.view.status.message if self.view.status else "Starting"
        text = Text(self.view.text.rstrip() + ("" if ended else " ▌"))
        return Group(Padding(text, (1, 2)), Text(f"  {line}", style="dim"), Rule(style="dim"), *self.lines)


async def main(topic: str) -> int:
    """Have a text written, kill its writer, and say what happened."""
    console = Console()
    crash = Crash()
    with tempfile.TemporaryDirectory(prefix="onward-crash-") as data, tempfile.TemporaryFile() as log:
        async with _dev(data, log) as gateway, Client(gateway) as client:
            run = await client.start("story", {"topic": topic})
            console.print(f"\nRun {run.run_id}: about {topic!r}, with two executors\n")
            with Live(console=console, refresh_per_second=20) as live:
                async with aclosing(run.follow()) as events:
                    async for event in events:
                        crash.take(event)
                        live.update(crash.picture())
                live.update(crash.picture(ended=True))
            record = await run.get()
            settled = [event async for event in client.events(run.run_id, view="settled")]
    found = testing.check(
        crash.events,
        record=record,
        settled=settled,
        seen=[testing.Seen("this terminal", crash.events)],
        cancelled=False,
    )
    attempts = sum(event.HasField("attempt_started") for event in crash.events)
    console.print(
        f"\n{crash.view.state} after {attempts} attempts. This terminal followed one stream and got events 1 to "
        f"{len(crash.events)}, each once. What it shows, what is stored and what a reader who comes tomorrow gets are "
        f"{'the same' if not found else 'NOT the same'}: so says onward.testing.check."
    )
    for each in found:
        console.print(f"  [red]{each}")
    return 0 if not found and crash.view.state == "SUCCEEDED" else 1


@asynccontextmanager
async def _dev(data: str, log: IO[bytes]) -> AsyncIterator[str]:
    """Serve the example until the block ends; gives the Gateway's address. What it logs would cut through the text."""
    onward = str(Path(sys.executable).with_name("onward"))
    options = (f"--data={data}", "--grpc=127.0.0.1:0", "--http=127.0.0.1:0", "--executors=2", "--no-reload")
    dev = await asyncio.create_subprocess_exec(
        *(onward, "dev", str(EXAMPLE), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for us, and ends it in order
    )
    assert dev.stdout is not None
    rest: asyncio.Task[bytes] | None = None
    try:
        async for line in dev.stdout:
            if line.startswith(b"ready "):
                rest = asyncio.create_task(dev.stdout.read())
                yield dict(field.split("=", 1) for field in line.decode().split()[1:])["grpc"]
                return
        log.seek(0)
        sys.stderr.write(log.read().decode())
        raise SystemExit(await dev.wait() or 1)
    finally:
        if dev.returncode is None:
            dev.terminate()
        if rest is not None:
            await rest
        await dev.wait()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(" ".join(sys.argv[1:]) or "the history of tea")))
    except KeyboardInterrupt:
        sys.exit(130)
