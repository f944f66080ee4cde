"""A model writes a blog post: research, then an outline, then its sections side by side, then the opening.

    make demo TOPIC="the history of tea"

or, with a server of your own:

    onward dev sdk/examples/blog_writer.py
    onward start blog_post --input '{"topic": "the history of tea"}' --follow

Which model writes is chosen in model.py and said in the run's first status.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

import model
from onward import component, publish, status, workflow
from onward import map as omap

SECTIONS_MIN, SECTIONS_MAX = 3, 5

# A model is slow, and away now and then. What it refuses to understand is not asked again.
asking = component.retry(attempts=4, backoff="1s..30s", never=model.REFUSED).timeout("2m")


@dataclass(frozen=True)
class Section:
    """One part of the post."""

    title: str
    text: str


@dataclass(frozen=True)
class Post:
    """What the workflow gives."""

    topic: str
    opening: str
    sections: list[Section]
    model: str
    """Who wrote it."""


def distinct(titles: list[str]) -> list[str]:
    """Drop what is there twice. Models repeat themselves, small ones often; too few that differ is an error."""
    unique: dict[str, str] = {}
    for title in titles:
        unique.setdefault(title.casefold(), title)
    if len(unique) < SECTIONS_MIN:
        raise ValueError(f"only {len(unique)} different titles in {titles}")
    return list(unique.values())


class Outline(BaseModel):
    """The shape that an outline must have: the model is told, and its answer is checked."""

    titles: Annotated[
        list[Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=80)]],
        Field(min_length=SECTIONS_MIN, max_length=SECTIONS_MAX),
        AfterValidator(distinct),
    ]


@asking
async def research(topic: str) -> AsyncIterator[str]:
    """Collect what the model knows."""
    async for text in model.write(f"What should a blog post about {topic} say? Answer with a short list of facts."):
        yield text


@asking
async def outline(topic: str, notes: str) -> list[str]:
    """Decide on the sections."""
    plan = await model.fill(
        f"{notes}\n\nThese are notes for a blog post about {topic}. Plan the post: give the titles of its "
        f"{SECTIONS_MIN} to {SECTIONS_MAX} sections, each about something else.",
        Outline,
    )
    return plan.titles


@asking
async def section(topic: str, title: str) -> AsyncIterator[str]:
    """Write one section."""
    async for text in model.write(
        f'Write the section "{title}" of a blog post about {topic}: '
        "one paragraph of three or four sentences, without a heading."
    ):
        yield text


@asking
async def edit(topic: str, draft: list[Section]) -> AsyncIterator[str]:
    """Read the draft through and write what comes before it."""
    written = "\n\n".join(f"{section.title}\n{section.text}" for section in draft)
    async for text in model.write(
        f"{written}\n\nSum up this blog post about {topic} in two sentences, as its introduction."
    ):
        yield text


@workflow
async def blog_post(topic: str) -> Post:
    """Write a blog post about a topic."""
    writer = model.in_use()
    status(f"Model: {writer.note}")

    status(f"Researching {topic}")
    notes = await research(topic)

    status("Outlining")
    titles = await outline(topic, notes)
    publish.state("outline", titles)

    written = 0
    status("Writing", done=written, total=len(titles))

    async def write(title: str) -> Section:
        nonlocal written
        text = await section(topic, title)
        written += 1
        status("Writing", done=written, total=len(titles))
        return Section(title, text.strip())

    sections = await omap(write, titles, concurrency=4)

    status("Editing")
    opening = await edit(topic, sections)
    status("Done")
    return Post(topic, opening.strip(), sections, writer.name)
