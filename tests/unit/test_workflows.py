"""Workflows: what an executor tells about them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onward import component, testing, workflow


@workflow.run_timeout("1h")
async def blog_post(topic: str, words: int = 300) -> list[str]:
    """Write a blog post
    about a topic.

    Long story.
    """
    return [topic] * words


def test_a_workflow_describes_itself() -> None:
    """Name, first paragraph, schemas and run timeout."""
    told = blog_post.to_proto()
    assert told.name == "blog_post"
    assert told.description == "Write a blog post about a topic."
    assert told.run_timeout.ToSeconds() == 3_600
    schema = json.loads(told.input_schema.data)
    assert schema["required"] == ["topic"]
    assert schema["additionalProperties"] is False
    assert told.input_schema.size == len(told.input_schema.data)
    assert json.loads(told.output_schema.data) == {"items": {"type": "string"}, "type": "array"}


def test_what_is_not_said_is_not_told() -> None:
    """No timeout, no documentation, no annotation."""

    @workflow
    async def bare(x):  # type: ignore[no-untyped-def]
        return x

    told = bare.to_proto()
    assert not told.HasField("run_timeout")
    assert not told.HasField("output_schema")
    assert told.description == ""
    assert json.loads(told.input_schema.data)["properties"] == {"x": {"title": "X"}}


def test_a_fluent_call_makes_a_new_workflow() -> None:
    """With everything it had."""
    changed = blog_post.retry(2).named("other").timeout("1s").run_timeout("2h")
    assert (changed.name, changed.run_timeout_s, changed.policy.limits.each_s) == ("other", 7_200, 1)
    assert (blog_post.name, blog_post.run_timeout_s, blog_post.policy.retry.attempts) == ("blog_post", 3_600, 1)
    assert changed.run_timeout(None).run_timeout_s is None


@pytest.mark.parametrize("name", ["a b", "ä", "a/b", "x" * 129])
def test_a_workflow_name_fits_a_path(name: str) -> None:
    """It is part of URLs."""
    with pytest.raises(ValueError, match="a workflow's name is"):
        blog_post.named(name)


def test_a_workflow_takes_no_nameless_arguments() -> None:
    """Its input is an object."""
    with pytest.raises(TypeError, match=r"\*items has no name"):

        @workflow
        async def flow(*items: int) -> None: ...


def test_a_run_timeout_leaves_time() -> None:
    """0 is a mistake."""
    with pytest.raises(ValueError, match="leaves no time"):
        workflow.run_timeout(0)


async def test_a_workflow_is_a_function_outside_a_run() -> None:
    """Like any component."""
    assert await blog_post("tea", words=2) == ["tea", "tea"]


async def test_a_synchronous_workflow_runs_in_a_thread() -> None:
    """Its body too."""

    @workflow
    def flow(x: int) -> int:
        return x + 1

    assert (await testing.run(flow, 1)).output == 2


async def test_types_survive_the_way_out() -> None:
    """The output comes back as the annotated type."""

    @component
    async def numbers() -> set[int]:
        return {1, 2}

    @workflow
    async def flow(raw: bytes) -> tuple[set[int], bytes, dict[str, Any]]:
        return await numbers(), raw, {"nothing": None}

    assert (await testing.run(flow, b"\xff")).output == ({1, 2}, b"\xff", {"nothing": None})
