"""The examples run, alone and as runs, and show what their users are promised to see."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import openai
import pytest
from httpx2 import Request, Response
from pydantic import ValidationError

import approval
import blog_writer
import hello
import model
import scripted_model
from onward import testing

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script answers, and nobody pauses for an audience."""
    monkeypatch.setenv("ONWARD_EXAMPLE_MODEL", "scripted")
    monkeypatch.setenv("ONWARD_EXAMPLE_SPEED", "0")
    monkeypatch.setattr(hello, "PAUSE_S", 0)


async def test_hello_outside_a_run_is_functions() -> None:
    """A component is tested by calling it."""
    assert await hello.greeting("Ada") == "Hello Ada, this goes on while you look away."
    assert [word async for word in hello.say("one two")] == ["one ", "two "]
    assert await hello.hello() == "Hello world, this goes on while you look away. "


async def test_hello_streams_its_words() -> None:
    """A user sees what it does, then the text word by word."""
    result = await testing.run(hello.hello, "Ada")
    assert result.output == "Hello Ada, this goes on while you look away. "
    assert result.statuses == ["Thinking", "Speaking"]
    say = result.view.children()[1]
    assert say.text == result.output
    assert len(say.parts[0].texts) == 9


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ({"approval": True}, "sent: Dear Ada, we have an offer for you."),
        ({"approval": False}, "not sent"),
        ({}, "nobody answered"),
    ],
)
async def test_an_approval_is_waited_for(given: dict[str, bool], output: str) -> None:
    """For days, which pass at once here."""
    with testing.signals(given):
        result = await testing.run(approval.send_offer, "Ada")
    assert result.output == output


def test_the_readme_begins_with_hello() -> None:
    """What a newcomer copies is this example, but for its explanations and pauses."""
    shown = re.search(r"# hello\.py\n(.*?)```", README.read_text(), re.DOTALL)
    assert shown is not None
    names = re.findall(r"async def (\w+)\((.*)\) -> (.*):", shown[1])
    assert names == re.findall(r"async def (\w+)\((.*)\) -> (.*):", Path(hello.__file__).read_text())


async def test_the_components_of_the_blog_writer_work_alone() -> None:
    """Each step is called with plain values."""
    assert "script" in await blog_writer.research("tea")
    titles = await blog_writer.outline("tea", "notes")
    assert titles == ["Scripted title 1", "Scripted title 2", "Scripted title 3"]
    assert [text async for text in blog_writer.section("tea", titles[0])]
    assert await blog_writer.edit("tea", [blog_writer.Section("title", "text")])


async def test_a_blog_post_is_written_in_stages_that_one_can_watch() -> None:
    """The model is named first, every stage has its line, and sections are counted as they are done."""
    result = await testing.run(blog_writer.blog_post, "tea")
    post = result.output
    assert (post.topic, post.model) == ("tea", "scripted")
    assert [section.title for section in post.sections] == ["Scripted title 1", "Scripted title 2", "Scripted title 3"]
    assert {section.text for section in post.sections} == {post.opening} == {scripted_model.TEXT}

    lines = [(status.message, status.done, status.total) for status in result.view.statuses]
    assert lines == [
        ("Model: none, a script answers; set OPENAI_API_KEY for a real one", None, None),
        ("Researching tea", None, None),
        ("Outlining", None, None),
        *(("Writing", done, 3) for done in range(4)),
        ("Editing", None, None),
        ("Done", None, None),
    ]
    assert result.view.states["outline"] == [section.title for section in post.sections]
    steps = result.view.children()
    assert [step.name for step in steps] == ["research", "outline", "section", "section", "section", "edit"]
    assert [step.text.strip() for step in steps if step.name == "section"] == [scripted_model.TEXT] * 3


async def test_a_stream_that_breaks_is_taken_back_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the broken try had shown is gone, and the post is whole."""
    broken = 0

    async def answer(request: Request) -> Response:
        nonlocal broken
        response = await scripted_model.answer(request)
        if b"Write the section" in request.content and broken < 2:
            broken += 1
            first = b"".join([line async for line in scripted_model.stream()][:5])
            return Response(200, headers=response.headers, content=first)
        return response

    monkeypatch.setattr(scripted_model, "connect", partial(scripted_model.connect, answer))
    result = await testing.run(blog_writer.blog_post, "tea")
    assert broken == 2
    assert {section.text for section in result.output.sections} == {scripted_model.TEXT}
    sections = [step for step in result.view.children() if step.name == "section"]
    assert sorted(step.tries for step in sections) == [1, 2, 2]
    assert {step.text.strip() for step in sections} == {scripted_model.TEXT}


async def test_a_key_that_is_refused_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run fails at once, with the provider's words."""
    asked = 0

    async def refuse(_: Request) -> Response:
        nonlocal asked
        asked += 1
        return Response(401, json={"error": {"message": "Incorrect API key"}})

    monkeypatch.setattr(scripted_model, "connect", partial(scripted_model.connect, refuse))
    result = await testing.run(blog_writer.blog_post, "tea")
    assert result.state == "FAILED"
    assert result.error is not None
    assert "Incorrect API key" in result.error.message
    assert asked == 1


@pytest.mark.parametrize(
    ("titles", "kept"),
    [
        (["The Leaf", "the leaf ", "Water", "Cup"], ["The Leaf", "Water", "Cup"]),
        (["The Leaf", "The Leaf", "The Water"], None),
        (["The Leaf", "The Water"], None),
        (["The Leaf", "The Water", "The Cup " * 11], None),
        (["The Leaf", "The Water", ""], None),
        (["Title number 1", "Title number 2", "Title number 3", "Title number 4", "Title number 5", "Title 6"], None),
    ],
)
def test_titles_are_few_short_and_distinct(titles: list[str], kept: list[str] | None) -> None:
    """A repeated one is dropped; an outline with too few that differ is asked for again."""
    if kept is not None:
        assert blog_writer.Outline(titles=titles).titles == kept
        return
    with pytest.raises(ValidationError):
        blog_writer.Outline(titles=titles)


def test_what_is_worth_no_further_try_are_errors() -> None:
    """The policy names them, and a name that is no error would only show when it is needed."""
    assert all(issubclass(error, openai.APIStatusError) for error in model.REFUSED)
