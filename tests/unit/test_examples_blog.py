"""The blog writer: what its user sees, and what becomes of it when a model, a tool or an executor lets it down."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from httpx2 import Request, Response
from pydantic import ValidationError

import blog_writer
import model
import scripted_model
import shelf
from onward import testing
from onward.v1.event_pb2 import InputRequested
from onward.views import View

TITLES = ["Scripted title 1", "Scripted title 2", "Scripted title 3"]
SOURCES = ["Tea", "Tea in China"]

Answer = Callable[[Request], Coroutine[None, None, Response]]


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script answers, and nobody pauses for an audience."""
    monkeypatch.setenv("ONWARD_EXAMPLE_MODEL", "scripted")
    monkeypatch.setenv("ONWARD_EXAMPLE_SPEED", "0")
    monkeypatch.delenv("ONWARD_EXAMPLE_PAGES", raising=False)


def answering(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    monkeypatch.setattr(scripted_model, "connect", partial(scripted_model.connect, answer))


def calling(*turns: list[tuple[str, str]]) -> tuple[Answer, list[dict[str, Any]]]:
    """A model that calls these tools in its turns, then does as the script; and the requests with tools it got."""
    asked: list[dict[str, Any]] = []
    left = list(turns)

    async def answer(request: Request) -> Response:
        body = json.loads(request.content)
        if "tools" not in body:
            return await scripted_model.answer(request)
        asked.append(body)
        calls = left.pop(0) if left else []
        if not calls or body["tool_choice"] == "none":
            return Response(200, headers={"content-type": "text/event-stream"}, content=scripted_model.stream())
        parts = [
            {"index": number, "id": f"id-{number}", "function": {"name": name, "arguments": arguments}}
            for number, (name, arguments) in enumerate(calls)
        ]
        chunks: list[dict[str, Any]] = [
            {"delta": {"tool_calls": parts}, "finish_reason": None},
            {"delta": {}, "finish_reason": "tool_calls"},
        ]
        lines = [f"data: {json.dumps({'choices': [{'index': 0} | chunk]})}\n\n" for chunk in chunks]
        content = "".join([*lines, "data: [DONE]\n\n"])
        return Response(200, headers={"content-type": "text/event-stream"}, content=content.encode())

    return answer, asked


def told(body: dict[str, Any]) -> list[str]:
    """What a request tells the model of its tool calls."""
    return [message["content"] for message in body["messages"] if message["role"] == "tool"]


def tool_calls(view: View) -> list[tuple[str, dict[str, str]]]:
    """The tool calls that a reader of the run sees."""
    return [(one["name"], one["arguments"]) for each in view.components.values() for one in each.tools]


async def test_its_components_work_alone() -> None:
    """Each step is called with plain values."""
    notes = await blog_writer.research("tea")
    assert "script" in notes.text
    assert notes.sources == SOURCES
    assert (await blog_writer.search("tea"))[0].page == "tea"
    assert (await blog_writer.read("tea")).title == "Tea"
    assert await blog_writer.outline("tea", "notes") == TITLES
    draft = [blog_writer.Section(title, "text") for title in TITLES]
    assert [text async for text in blog_writer.section("tea", TITLES[0], "notes")]
    assert [text async for text in blog_writer.edit("tea", TITLES[0], draft)]
    assert await blog_writer.introduce("tea", draft)


async def test_a_post_is_written_in_stages_that_one_can_watch() -> None:
    """The model is named first, every stage has its line, and what can be counted is."""
    result = await testing.run(blog_writer.blog_post, "tea")
    post = result.output
    assert (post.topic, post.sources, post.model) == ("tea", SOURCES, "scripted")
    assert [section.title for section in post.sections] == TITLES
    assert {section.text for section in post.sections} == {post.opening} == {scripted_model.TEXT}

    lines = [(status.message, status.done, status.total) for status in result.view.body.statuses]
    assert lines == [
        ("Model: none, a script answers; set OPENAI_API_KEY for a real one", None, None),
        ("Researching tea", None, None),
        ("Outlining", None, None),
        *(("Writing", done, 3) for done in range(4)),
        *(("Editing", done, 3) for done in range(4)),
        ("Introducing", None, None),
        ("Done", None, None),
    ]
    assert result.view.states["outline"] == TITLES
    steps = result.view.children()
    assert [step.name for step in steps] == ["research", "outline", *["section"] * 3, *["edit"] * 3, "introduce"]
    assert [step.text.strip() for step in steps[2:]] == [scripted_model.TEXT] * 7
    research = steps[0]
    assert [(status.message, status.done) for status in research.statuses] == [
        ("Read: Tea", 1),
        ("Read: Tea in China", 2),
    ]


async def test_its_research_is_seen_as_it_goes_on() -> None:
    """The tool calls of the model, each tool with what it gave, and the notes as the model writes them."""
    result = await testing.run(blog_writer.blog_post, "tea")
    assert tool_calls(result.view) == [
        ("search", {"query": "tea"}),
        ("read", {"page": "tea"}),
        ("read", {"page": "tea-in-china"}),
    ]
    research = result.view.children()[0]
    below = result.view.children(research.id)
    assert [step.name for step in below] == ["think", "search", "think", "read", "read", "think"]
    assert below[3].output["title"] == "Tea"
    notes = result.view.children(below[-1].id)[0]
    assert notes.text.strip() == scripted_model.TEXT


async def test_what_it_read_is_told_to_who_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model gets the pages it asked for, each as the answer to its call."""
    answer, asked = calling([("search", '{"query": "tea"}'), ("read", '{"page": "tea"}')])
    answering(monkeypatch, answer)
    result = await testing.run(blog_writer.blog_post, "tea")
    assert result.output.sources == ["Tea"]
    found, page = told(asked[1])
    assert json.loads(found)[0]["page"] == "tea"
    assert "Camellia sinensis" in json.loads(page)["text"]
    said = asked[1]["messages"][2]
    answered = [message["tool_call_id"] for message in asked[1]["messages"] if message["role"] == "tool"]
    assert answered == [call["id"] for call in said["tool_calls"]] == ["id-0", "id-1"]
    described = {tool["function"]["name"]: tool["function"] for tool in asked[0]["tools"]}
    assert described["read"]["parameters"]["required"] == ["page"]
    assert "by its name" in described["read"]["description"]


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("read", '{"page": "../../../etc/passwd"}', "there is no page"),
        ("read", '{"page": 3}', "read failed"),
        ("read", '{"page": "te', "read failed"),
        ("read", "[]", "read failed"),
        ("delete", '{"page": "tea"}', "There is no tool 'delete', only search, read."),
    ],
)
async def test_a_tool_that_fails_is_told_to_the_model(
    monkeypatch: pytest.MonkeyPatch, name: str, arguments: str, answer: str
) -> None:
    """It is no failure of the run: the model does something else."""
    model, asked = calling([(name, arguments)])
    answering(monkeypatch, model)
    result = await testing.run(blog_writer.blog_post, "tea")
    assert result.output.sources == []
    assert answer in told(asked[1])[0]


async def test_a_tool_is_tried_again_before_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is a component as any other, with its own policy; a page that is not there is not looked for again."""
    tries: dict[str, int] = {}

    def page(name: str) -> shelf.Page:
        tries[name] = tries.get(name, 0) + 1
        raise OSError("the disk is away") if name == "tea" else LookupError("no such page")

    monkeypatch.setattr(shelf, "page", page)
    model, asked = calling([("read", '{"page": "tea"}'), ("read", '{"page": "none"}')])
    answering(monkeypatch, model)
    with testing.no_replay():
        assert (await testing.run(blog_writer.blog_post, "tea")).output.sections
    assert tries == {"tea": 3, "none": 1}
    assert "the disk is away" in told(asked[1])[0]


async def test_research_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that only ever searches has to come to its notes, and calls no more at once than it may."""
    model, asked = calling(*[[("search", '{"query": "tea"}')] * 6 for _ in range(100)])
    answering(monkeypatch, model)
    result = await testing.run(blog_writer.blog_post, "tea")
    assert result.state == "SUCCEEDED"
    assert [body["tool_choice"] for body in asked] == ["auto"] * (blog_writer.ROUNDS_MAX - 1) + ["none"]
    assert [answer[:8] for answer in told(asked[1])] == ['[{"page"'] * blog_writer.CALLS_MAX + ["Not done"] * 2
    assert sum(step.name == "search" for step in result.view.components.values()) == 4 * blog_writer.CALLS_MAX


async def test_a_small_model_gets_what_a_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks it for tool calls, which it does not know, and the reader is told."""
    asked: list[dict[str, Any]] = []

    async def answer(request: Request) -> Response:
        asked.append(json.loads(request.content))
        return await scripted_model.answer(request)

    answering(monkeypatch, answer)
    toy = model.Model("toy", "a toy", scripted_model.connect, small=True)
    monkeypatch.setattr(model, "in_use", lambda: toy)
    result = await testing.run(blog_writer.blog_post, "tea")
    assert result.output.sources == SOURCES
    assert not any("tools" in body for body in asked)
    assert "Camellia sinensis" in asked[0]["messages"][0]["content"]
    assert "This model calls no tools: it gets what a search for the topic finds" in result.statuses


@pytest.mark.parametrize(
    ("verdict", "titles"),
    [
        (True, TITLES),
        (False, []),
        (["Leaves", " Water ", "leaves"], ["Leaves", "Water"]),
    ],
)
async def test_an_outline_waits_for_a_person(verdict: bool | list[str], titles: list[str]) -> None:
    """Who says yes, no, or rather these titles; whoever answers sees what it is about."""
    requests = []

    def answer(request: InputRequested) -> bool | list[str]:
        requests.append(request)
        return verdict

    with testing.signals({"outline": answer}):
        result = await testing.run(blog_writer.blog_post, "tea", approve=True)
    assert "; ".join(TITLES) in requests[0].prompt
    assert [section.title for section in result.output.sections] == titles
    assert result.view.states["outline"] == titles
    assert result.attempts == 2, "it had left its executor"
    assert ("Done" in result.statuses) == bool(titles)
    assert (result.statuses[-1] == "Not written: the outline was not approved") == (not titles)


async def test_what_is_no_verdict_is_refused_to_its_sender() -> None:
    """No titles, or a word that could mean anything: the schema that is asked with says so, and the run waits on."""
    nonsense = [[], "yes", 1, ["x"], None, ["Title"] * 11]
    answers = iter([*nonsense, True])
    requests = []

    def answer(request: InputRequested) -> Any:
        requests.append(request)
        return next(answers)

    with testing.signals({"outline": answer}):
        result = await testing.run(blog_writer.blog_post, "tea", approve=True)
    assert [section.title for section in result.output.sections] == TITLES
    verdict = jsonschema_rs.validator_for(json.loads(requests[0].schema.data))
    assert not [each for each in nonsense if verdict.is_valid(each)]
    assert all(verdict.is_valid(each) for each in (True, False, ["Leaves"]))


@pytest.mark.timeout(180)  # some hundred runs
async def test_wherever_its_executor_dies_the_post_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each event, approval included: same post, same view, and no more is asked again than was under way."""
    monkeypatch.setattr(scripted_model, "TEXT", "One two.")
    asked = 0

    async def answer(request: Request) -> Response:
        nonlocal asked
        asked += 1
        return await scripted_model.answer(request)

    answering(monkeypatch, answer)
    with testing.signals({"outline": ["Leaves", "Water"]}):
        calm = await testing.run(blog_writer.blog_post, "tea", approve=True)
        paid = asked
        assert [section.title for section in calm.output.sections] == ["Leaves", "Water"]
        for offset in range(2, len(calm.events)):
            asked = 0
            with testing.crash(offset), testing.no_replay():
                result = await testing.run(blog_writer.blog_post, "tea", approve=True)
            assert result.output == calm.output, offset
            assert not testing.check(result.events, reference=calm.view, cancelled=False), offset
            assert paid <= asked <= paid + 2, offset


async def test_a_few_crashes_in_a_row_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it dies, it goes on."""
    monkeypatch.setattr(scripted_model, "TEXT", "One two.")
    await testing.Chaos(runs=15, crashes=4).run(blog_writer.blog_post, "tea")


async def test_a_stream_that_breaks_is_taken_back_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the broken try had shown is gone, and the post is whole: in research, in a section and in editing."""
    broken: set[bytes] = set()
    marks = {b'"tools"', b"Write the section", b"This is the draft", b"Sum up"}

    async def answer(request: Request) -> Response:
        response = await scripted_model.answer(request)
        for mark in marks - broken:
            if mark in request.content and (mark != b'"tools"' or b"Camellia" in request.content):
                broken.add(mark)
                first = b"".join([line async for line in scripted_model.stream()][:5])
                return Response(200, headers=response.headers, content=first)
        return response

    answering(monkeypatch, answer)
    result = await testing.run(blog_writer.blog_post, "tea")
    assert broken == marks
    assert {section.text for section in result.output.sections} == {scripted_model.TEXT}
    said = [step for step in result.view.components.values() if step.text]
    assert {step.text.strip() for step in said} == {scripted_model.TEXT}
    tried = [step.name for step in result.view.components.values() if step.tries == 2]
    assert sorted(tried) == ["edit", "introduce", "section", "think"]


async def test_a_key_that_is_refused_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run fails at once, with the provider's words."""
    asked = 0

    async def refuse(_: Request) -> Response:
        nonlocal asked
        asked += 1
        return Response(401, json={"error": {"message": "Incorrect API key"}})

    answering(monkeypatch, refuse)
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


def test_a_shelf_gives_what_shares_most_with_a_question() -> None:
    """Rare words and titles count for more, and what is on no page finds nothing."""
    assert [hit.page for hit in shelf.find("the history of tea")][:2] == ["tea", "tea-in-china"]
    assert shelf.find("Boston 1773")[0].page == "boston-tea-party"
    assert shelf.find("Who invented the tea bag?")[0].page == "tea-today"
    assert len(shelf.find("tea")) == shelf.FOUND_MAX
    assert shelf.find("quantum chromodynamics") == shelf.find("") == []
    assert shelf.find("the history of football") == []


def test_a_shelf_is_a_folder_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Markdown files in it are pages, and nothing else is reached, whatever a model names."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.md").write_text("# My Notes\n\nFerrets sleep a lot. " + "More. " * 2000)
    (folder / "secret.txt").write_text("secret")
    (tmp_path / "outside.md").write_text("# Outside\n\nsecret")
    monkeypatch.setenv("ONWARD_EXAMPLE_PAGES", str(folder))
    assert shelf.find("ferrets") == [shelf.Hit("notes", "My Notes", "Ferrets sleep a lot.")]
    assert len(shelf.page("notes").text) == shelf.PAGE_CHARS_MAX
    for name in ("../outside", "secret", "secret.txt", "", "tea"):
        with pytest.raises(LookupError):
            shelf.page(name)
