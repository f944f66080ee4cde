"""Following a run to its end: on a terminal live, elsewhere as lines or as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from datetime import UTC
from typing import Any, Protocol

from rich.console import Console
from rich.json import JSON
from rich.text import Text

from onward.client import Client
from onward.errors import PositionLost, RequestError
from onward.payload import Blob, decode
from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import RUN_STATE_FAILED, RUN_STATE_PAUSED, RUN_STATE_SUCCEEDED, Run
from onward.views import View
from onward_cli.documents import document, dump
from onward_cli.lines import Lines
from onward_cli.screen import Screen
from onward_cli.wording import STATE_STYLES, duration, error_line, line, printable, ran_s, size, state_of, used

MARKS = {"SUCCEEDED": "✓", "FAILED": "✗", "CANCELLED": "■", "PAUSED": "‖"}

PAINT_S = 0.1
"""Seconds between two pictures."""


WAITS_S = 1.0
"""Seconds between two looks at what a run in line waits for: its log does not tell."""


class Display(Protocol):
    """Shows a run while it goes on."""

    def take(self, event: Event, view: View) -> None:
        """Take note of an event; `view` is what is to be seen after it."""

    def connection(self, cut: RequestError | None) -> None:
        """Take note that the connection was lost and is being resumed; None: it is there again."""

    def waits(self, what: str) -> None:
        """Take note of what a run in line waits for, in words; empty: for nothing but its turn."""

    def paint(self) -> None:
        """Bring what is shown up to date."""

    def close(self) -> None:
        """Show the rest and end."""


async def follow_shown(client: Client, run: Run, console: Console, *, after: int, again: str) -> Run:
    """Show a run until it ends or is paused, and how it ended; return it.

    Args:
        client: Whom to ask.
        run: The run as it stands.
        console: Where to show it: live if that is a terminal, else as lines.
        after: What happened up to this offset is not shown again.
        again: The command that follows the run, to tell of it.

    Raises:
        RequestError: It cannot be followed.
    """
    if after > run.log.last_offset:
        raise PositionLost(f"run {run.run_id} has no event {after} yet: the newest is {run.log.last_offset}")
    view = View()
    async with _displayed(console, run, after) as display:
        # From the beginning in any case: what comes later can only be shown by who knows what began before.
        following = client.follow(run.run_id, view="raw" if after else "settled", on_connection=display.connection)
        async with _beside(_look_what_it_waits_for(client, run.run_id, view, display)), aclosing(following) as events:
            async for event in events:
                view.apply(await client.with_value(run.run_id, event))
                display.take(event, view)
                if view.state == "PAUSED" and await _stays_paused(client, view, run.run_id):
                    break
        display.close()
    run = await client.get(run.run_id)
    _show_end(console, run, view, again)
    return run


async def follow_as_json(client: Client, run: Run, *, after: int) -> Run:
    """Write each event of a run after an offset, and at last the run, each as one line of JSON; return the run.

    Raises:
        RequestError: It cannot be followed from there.
    """
    view = View()
    async with aclosing(client.follow(run.run_id, after=after)) as events:
        async for event in events:
            write_json({"event": document(event)})
            view.apply(event)
            if view.state == "PAUSED" and await _stays_paused(client, view, run.run_id):
                break
    run = await client.get(run.run_id)
    write_json({"run": await run_document(client, run)})
    return run


async def run_document(client: Client, run: Run) -> dict[str, object]:
    """Return a run as JSON has it, with the whole of its input and output, wherever they are kept."""
    fields = document(run)
    for name in ("input", "output"):
        payload = getattr(run, name)
        if payload.WhichOneof("value") == "blob_uri":
            value = await client.value(run.run_id, payload)
            fields[name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return fields


def write_json(value: object) -> None:
    """Write a line of JSON now: whoever reads it may be waiting for it."""
    sys.stdout.write(dump(value) + "\n")
    sys.stdout.flush()


@contextlib.asynccontextmanager
async def _displayed(console: Console, run: Run, after: int) -> AsyncIterator[Display]:
    """A display that suits the console, painted again and again until the block ends."""
    if not (console.is_interactive and console.file.isatty()):

        def write(text: str) -> None:
            console.file.write(text + "\n")
            console.file.flush()

        def warn(text: str) -> None:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

        yield Lines(write, run, after=after, warn=warn)
        return
    with Screen(console, run, after=after) as screen:
        async with _beside(_paint(screen)):
            yield screen


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have something done until the block ends."""
    doing = asyncio.create_task(work)
    try:
        yield
    finally:
        doing.cancel()
        await asyncio.wait([doing])
    if not doing.cancelled():
        doing.result()


async def _paint(screen: Screen) -> None:
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        screen.paint()
        # A large picture comes less often: events are taken in between.
        await asyncio.sleep(max(PAINT_S, 4 * (loop.time() - began)))


async def _look_what_it_waits_for(client: Client, run_id: str, view: View, display: Display) -> None:
    """Tell the display what the run waits for while it stands in line, each time that this has changed."""
    told = ""
    while True:
        await asyncio.sleep(WAITS_S)
        waits = ""
        if view.state in ("QUEUED", "CANCELLING"):
            try:
                waits = (await client.get(run_id)).waiting_for
            except RequestError:
                continue  # following tells of it
        if waits != told:
            display.waits(waits)
            told = waits


async def _stays_paused(client: Client, view: View, run_id: str) -> bool:
    """Whether the run is still paused: it goes on when a person says so, and nobody waits for that."""
    run = await client.get(run_id)
    return run.state == RUN_STATE_PAUSED and run.log.last_offset <= view.offset


def _show_end(console: Console, run: Run, view: View, again: str) -> None:
    """Show what a run gave, how it stands and what to do next."""
    output = decode(run.output)
    if console.is_terminal and view.text and view.text != output:
        # Elsewhere it was written as it came, and so was the error.
        console.print("", Text(printable(view.text)), sep="\n")
    if console.is_terminal:
        console.print()
    if run.state == RUN_STATE_SUCCEEDED and not run.continued_as_run_id:
        show_value(console, output, f"onward get {run.run_id} --output json")
    console.print(headline(run), soft_wrap=True)
    if run.HasField("error") and console.is_terminal:
        failed = view.components.get(run.error.component_id)
        console.print(
            Text(f"  {error_line(run.error, line(failed.name) if failed else '')}", style="red"), soft_wrap=True
        )
    if run.continued_as_run_id:
        console.print(Text(f"  it goes on as another run: onward follow {run.continued_as_run_id}"), soft_wrap=True)
    if run.state == RUN_STATE_PAUSED:
        console.print(Text(f"  continue it: onward resume {run.run_id}"), soft_wrap=True)
    elif run.state == RUN_STATE_FAILED:
        console.print(Text(f"  retry what failed: onward retry {run.run_id}", style="dim"), soft_wrap=True)
    if run.error.traceback:
        console.print(Text(f"  traceback: onward get {run.run_id}", style="dim"), soft_wrap=True)
    console.print(Text(f"follow it again: {again}", style="dim"), soft_wrap=True)


def headline(run: Run) -> Text:
    """Return one line on a run that ended or is paused."""
    state = state_of(run)
    shown = Text.assemble(
        (f"{MARKS.get(state, '●')} {state}", STATE_STYLES.get(state, "")),
        "  ",
        (line(run.workflow), "bold"),
        "  ",
        run.run_id,
    )
    if run.HasField("end_time"):
        shown.append(f"  after {duration(ran_s(run, run.end_time.ToDatetime(UTC)))}")
    if run.attempt > 1:
        shown.append(f", {run.attempt} attempts")
    if spent := used(run.usage):
        shown.append(f", {spent}")
    return shown


def show_value(console: Console, value: Any, elsewhere: str) -> None:
    """Show a value: text as it is, all else as JSON. `elsewhere` is where to get one that is too long to show."""
    if isinstance(value, Blob):
        console.print(Text(f"({size(value.size)} of {value.media_type}: {elsewhere})", style="dim"), soft_wrap=True)
    elif isinstance(value, bytes):
        console.print(Text(f"({size(len(value))} of bytes: {elsewhere})", style="dim"), soft_wrap=True)
    elif isinstance(value, str):
        # On a terminal it is to be read, so words stay whole; elsewhere lines do.
        console.print(Text(printable(value)), soft_wrap=not console.is_terminal)
    elif value is not None:
        console.print(JSON(printable(dump(value)), indent=2), soft_wrap=True)
