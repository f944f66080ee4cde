"""Runs that start runs: a report is written in parts, each a run of its own that can be followed by itself.

onward dev sdk/examples/children.py
onward start report topic=tea --follow
onward runs --parent RUN
"""

from __future__ import annotations

import asyncio

import onward
from onward import ComponentError, component, publish, status, workflow


@component.retry(attempts=3)
async def research(question: str) -> str:
    return f"What is known of {question}."


@workflow.run_timeout("1h")
async def part(topic: str, title: str) -> str:
    status(f"Writing {title}")
    return f"{title}\n{await research(f'{title.lower()} of {topic}')}"


@workflow
async def report(topic: str) -> str:
    titles = ["History", "Kinds", "Prices"]
    # Started once, however often this run is replayed; a child ends with its parent, unless it is detached.
    parts = [await onward.start_child(part, topic, title) for title in titles]
    publish("parts", [child.run_id for child in parts])
    status("Waiting for the parts", total=len(parts))
    # This run holds no executor meanwhile, and none of the parts shares its log.
    written = await asyncio.gather(*(child.result() for child in parts), return_exceptions=True)
    return "\n\n".join(f"(missing: {each})" if isinstance(each, ComponentError) else str(each) for each in written)


@workflow
async def watch(topic: str, seen: int = 0) -> None:
    """Write a new report each day, without end: after a month as a new run with an empty log."""
    for _ in range(30):
        await (await onward.start_child(report, topic)).result()
        seen += 1
        status(f"{seen} reports so far")
        await onward.sleep("1d")
    onward.continue_as(watch, topic, seen=seen)
