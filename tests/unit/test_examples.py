"""The examples run, alone and as runs, and show what their users are promised to see."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import openai
import pytest

import approval
import children
import hello
import model
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


def test_the_readme_shows_a_test_that_passes() -> None:
    """Of the example that stands above it."""
    shown = re.search(r"# test_hello\.py\n(.*?)```", README.read_text(), re.DOTALL)
    assert shown is not None
    copied: dict[str, Any] = {}
    exec(shown[1], copied)
    copied["test_nobody_notices_a_crash_in_mid_sentence"]()


def test_what_is_worth_no_further_try_are_errors() -> None:
    """The policy names them, and a name that is no error would only show when it is needed."""
    assert all(issubclass(error, openai.APIStatusError) for error in model.REFUSED)


async def test_a_report_is_written_by_children() -> None:
    """Each part is a run of its own; and a watch goes on as a new run after a month."""
    result = await testing.run(children.report, "tea")
    assert result.output.startswith("History\nWhat is known of history of tea.")
    assert [child.statuses for child in result.children] == [
        ["Writing History"],
        ["Writing Kinds"],
        ["Writing Prices"],
    ]
    with testing.no_replay():
        watched = await testing.run(children.watch, "tea")
    assert watched.continued_with == {"topic": "tea", "seen": 30}
    assert len(watched.children) == 30
