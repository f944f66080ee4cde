"""JSON Patch as every reader of a log must understand it."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.patch import Document, PatchError, equal

ONE = {"op": "add", "path": "/a", "value": 1}

# document, patch, result; appendix A of RFC 6902 first, by its numbers
APPLIES: list[tuple[str, Any, list[dict[str, Any]], Any]] = [
    ("A.1", {"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
    (
        "A.2",
        {"foo": ["bar", "baz"]},
        [{"op": "add", "path": "/foo/1", "value": "qux"}],
        {"foo": ["bar", "qux", "baz"]},
    ),
    ("A.3", {"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
    ("A.4", {"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]}),
    (
        "A.5",
        {"baz": "qux", "foo": "bar"},
        [{"op": "replace", "path": "/baz", "value": "boo"}],
        {"baz": "boo", "foo": "bar"},
    ),
    (
        "A.6",
        {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
        [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
        {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
    ),
    (
        "A.7",
        {"foo": ["all", "grass", "cows", "eat"]},
        [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
        {"foo": ["all", "cows", "eat", "grass"]},
    ),
    (
        "A.8",
        {"baz": "qux", "foo": ["a", 2, "c"]},
        [{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}],
        {"baz": "qux", "foo": ["a", 2, "c"]},
    ),
    (
        "A.10",
        {"foo": "bar"},
        [{"op": "add", "path": "/child", "value": {"grandchild": {}}}],
        {"foo": "bar", "child": {"grandchild": {}}},
    ),
    ("A.11 unknown members", {"foo": "bar"}, [ONE | {"xyz": 123}], {"foo": "bar", "a": 1}),
    ("A.14 escapes", {"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    (
        "A.16",
        {"foo": ["bar"]},
        [{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}],
        {"foo": ["bar", ["abc", "def"]]},
    ),
    ("empty patch", [1], [], [1]),
    ("add replaces", {"a": 0}, [ONE], {"a": 1}),
    (
        "whole document",
        {"a": 0},
        [{"op": "replace", "path": "", "value": None}, {"op": "add", "path": "", "value": 3}],
        3,
    ),
    ("empty key", {"": 1}, [{"op": "replace", "path": "/", "value": 2}], {"": 2}),
    ("index as key", {"0": 1}, [{"op": "remove", "path": "/0"}], {}),
    ("add at the end", [1], [{"op": "add", "path": "/1", "value": 2}], [1, 2]),
    ("move onto itself", {"a": 1}, [{"op": "move", "from": "/a", "path": "/a"}], {"a": 1}),
    ("move to the root", {"a": [1]}, [{"op": "move", "from": "/a", "path": ""}], [1]),
    (
        "a copy is a copy",
        {"a": [1]},
        [{"op": "copy", "from": "/a", "path": "/b"}, {"op": "add", "path": "/b/-", "value": 2}],
        {"a": [1], "b": [1, 2]},
    ),
    ("1 is 1.0", {"a": 1}, [{"op": "test", "path": "/a", "value": 1.0}], {"a": 1}),
    ("append", {"t": ["ab"]}, [{"op": "append", "path": "/t/0", "value": "cd"}], {"t": ["abcd"]}),
    ("append to the root", "ab", [{"op": "append", "path": "", "value": "cd"}], "abcd"),
]

FAILS: list[tuple[str, Any, Any]] = [
    ("A.9 test", {"baz": "qux"}, [{"op": "test", "path": "/baz", "value": "bar"}]),
    ("A.12 no target", {"foo": "bar"}, [{"op": "add", "path": "/baz/bat", "value": "qux"}]),
    ("A.15 string and number", {"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": "10"}]),
    ("true is not 1", {"a": [True]}, [{"op": "test", "path": "/a", "value": [1]}]),
    ("not an array", {}, ONE),
    ("operation not an object", {}, ["add"]),
    ("no op", {}, [{"path": "/a", "value": 1}]),
    ("unknown op", {}, [{"op": "spam", "path": "/a", "value": 1}]),
    ("no path", {}, [{"op": "add", "value": 1}]),
    ("no value", {}, [{"op": "add", "path": "/a"}]),
    ("no from", {}, [{"op": "copy", "path": "/a"}]),
    ("pointer without slash", {}, [{"op": "add", "path": "a", "value": 1}]),
    ("bad escape", {}, [{"op": "add", "path": "/~2", "value": 1}]),
    ("replace what is not there", {}, [{"op": "replace", "path": "/a", "value": 1}]),
    ("remove what is not there", {}, [{"op": "remove", "path": "/a"}]),
    ("remove the whole", {}, [{"op": "remove", "path": ""}]),
    ("index past the end", [1], [{"op": "add", "path": "/2", "value": 1}]),
    ("negative index", [1], [{"op": "replace", "path": "/-1", "value": 1}]),
    ("leading zero", [1, 2], [{"op": "replace", "path": "/01", "value": 1}]),
    ("digits of another script", [1, 2], [{"op": "replace", "path": "/\u0661", "value": 1}]),
    ("huge index", [1], [{"op": "replace", "path": "/" + "9" * 5000, "value": 1}]),
    ("- names nothing that exists", [1], [{"op": "replace", "path": "/-", "value": 1}]),
    ("into a scalar", {"a": "text"}, [{"op": "add", "path": "/a/0", "value": 1}]),
    ("into itself", {"a": {"b": 1}}, [{"op": "move", "from": "/a", "path": "/a/b"}]),
    ("append to a number", {"a": 1}, [{"op": "append", "path": "/a", "value": "x"}]),
    ("append a number", {"a": "x"}, [{"op": "append", "path": "/a", "value": 1}]),
    ("append to nothing", {}, [{"op": "append", "path": "/a", "value": "x"}]),
]


@pytest.mark.parametrize(
    ("before", "patch", "after"), [case[1:] for case in APPLIES], ids=[case[0] for case in APPLIES]
)
def test_a_patch_applies_and_can_be_taken_back(before: Any, patch: Any, after: Any) -> None:
    """What the RFC says should come out does, and undo gives what was there."""
    document = Document(deepcopy(before))
    undo = document.patch(deepcopy(patch))
    assert document.value == after
    document.undo(undo)
    assert document.value == before


@pytest.mark.parametrize(("before", "patch"), [case[1:] for case in FAILS], ids=[case[0] for case in FAILS])
def test_a_patch_that_does_not_apply_changes_nothing(before: Any, patch: Any) -> None:
    """Also what came before the failing operation is taken back."""
    if isinstance(patch, list):
        patch = [{"op": "replace", "path": "", "value": deepcopy(before)}, *patch]
    document = Document(deepcopy(before))
    with pytest.raises(PatchError):
        document.patch(patch)
    assert equal(document.value, before)


def test_a_document_nested_too_deep_is_left_as_it_was() -> None:
    """What this process cannot walk does not end it."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    document = Document({"deep": deep})
    with pytest.raises(PatchError, match="deep"):
        document.patch([ONE, {"op": "copy", "from": "/deep", "path": "/b"}])
    assert document.value.keys() == {"deep"}
    while deep:  # Python before 3.12 frees this recursively
        deep = deep.pop()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "x", "yz"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab0"), inner, max_size=3),
    max_leaves=8,
)
paths = st.lists(st.sampled_from(["a", "b", "0", "1", "-"]), max_size=3).map(
    lambda path: "".join(f"/{t}" for t in path)
)
operations = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test", "append"]),
        "path": paths,
        "from": paths,
        "value": values,
    }
)


@given(values, st.lists(st.lists(operations, max_size=4), max_size=6))
def test_any_patches_are_all_or_nothing_and_go_back_exactly(start: Any, patches: list[Any]) -> None:
    """Whatever the patches, each applies whole or not at all, and undoing them newest first restores every step."""
    document = Document(deepcopy(start))
    history = [json.dumps(start, sort_keys=True)]
    undos = []
    for patch in patches:
        try:
            undos.append(document.patch(deepcopy(patch)))
        except PatchError:
            assert json.dumps(document.value, sort_keys=True) == history[-1]
        else:
            history.append(json.dumps(document.value, sort_keys=True))
    while undos:
        assert json.dumps(document.value, sort_keys=True) == history.pop()
        document.undo(undos.pop())
    assert json.dumps(document.value, sort_keys=True) == history.pop()
