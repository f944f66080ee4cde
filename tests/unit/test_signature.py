"""What a function takes and gives, as JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from onward.signature import InputInvalid, Kind, OutputInvalid, Signature, Unserializable


class Tone(Enum):
    DRY = "dry"


@dataclass
class Point:
    x: int
    raw: bytes = b""


class Model(BaseModel):
    when: datetime


class Row(TypedDict):
    id: UUID


async def everything(
    text: str,
    point: Point,
    model: Model,
    row: Row,
    tones: list[Tone],
    numbers: set[int],
    raw: bytes,
    share: float = 0.5,
    nothing: None = None,
    *,
    json: dict[str, Any] | None = None,
    model_config: int = 3,
) -> Model:
    return model


def dumped(signature: Signature, *args: Any, **kwargs: Any) -> Any:
    data = signature.dump_input(signature.arguments(args, kwargs))
    return None if data is None else json.loads(data)


def test_every_type_survives_the_way_in() -> None:
    """What goes in as JSON comes out as the annotated type."""
    signature = Signature(everything)
    given: dict[str, Any] = {
        "text": "🍵",
        "point": Point(1, b"\xff\x00"),
        "model": Model(when=datetime(2026, 1, 2, tzinfo=UTC)),
        "row": {"id": UUID(int=7)},
        "tones": [Tone.DRY],
        "numbers": {1, 2},
        "raw": b"\xfe",
        "share": float("inf"),
        "json": {"a": None},
        "model_config": 0,
    }
    data = signature.dump_input(signature.arguments((), given))
    assert data is not None
    assert signature.load_input(data) == ([], given)


def test_a_call_is_named_by_parameter_however_it_is_written() -> None:
    """By position or by name, the input is the same."""

    async def greet(name: str, times: int = 1) -> str:
        return name * times

    signature = Signature(greet)
    assert dumped(signature, "a") == dumped(signature, name="a") == {"name": "a"}
    assert dumped(signature, "a", 2) == dumped(signature, "a", times=2) == {"name": "a", "times": 2}


def test_arguments_that_do_not_fit_are_refused_at_the_call() -> None:
    """As the function itself would."""

    async def greet(name: str, *, loud: bool) -> str:
        return name

    signature = Signature(greet)
    for args, kwargs in [((), {}), (("a",), {}), (("a", True), {}), (("a",), {"loud": True, "x": 1})]:
        with pytest.raises(TypeError, match="greet"):
            signature.arguments(args, kwargs)


@pytest.mark.parametrize("value", [None, "", 0, 0.0, False, [], {}])
def test_falsy_values_are_values(value: Any) -> None:
    """None is null and nothing is left out."""

    async def echo(value: Any) -> Any:
        return value

    signature = Signature(echo)
    assert dumped(signature, value) == {"value": value}
    assert signature.load_input(json.dumps({"value": value}).encode()) == ([], {"value": value})
    assert signature.load_output(signature.dump_output(value)) == value


def test_defaults_are_left_to_the_function() -> None:
    """What is not given is not passed."""
    given = {"text": "a", "point": {"x": 1}, "model": {"when": "2026-01-02T00:00:00Z"}, "row": {"id": str(UUID(int=1))}}
    given |= {"tones": [], "numbers": [], "raw": ""}
    _, kwargs = Signature(everything).load_input(json.dumps(given).encode())
    assert "share" not in kwargs
    assert "json" not in kwargs
    assert kwargs["point"] == Point(1)


def test_the_input_schema_is_a_closed_object_of_the_parameters() -> None:
    """Required are those without a default, and an unknown name is an error."""
    schema = Signature(everything).input_schema()
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["text", "point", "model", "row", "tones", "numbers", "raw"]
    assert list(schema["properties"])[-2:] == ["json", "model_config"]
    assert schema["properties"]["share"]["default"] == 0.5
    assert schema["properties"]["numbers"] == {
        "items": {"type": "integer"},
        "title": "Numbers",
        "type": "array",
        "uniqueItems": True,
    }


def test_no_parameters_are_an_empty_object() -> None:
    """A workflow without parameters takes {} and nothing else."""

    async def nothing() -> None: ...

    signature = Signature(nothing)
    assert signature.input_schema() == {
        "additionalProperties": False,
        "properties": {},
        "title": "nothing",
        "type": "object",
    }
    assert signature.load_input(b"{}") == ([], {})
    assert signature.output_schema() == {"type": "null"}


def test_keywords_open_the_object() -> None:
    """**options takes what has no parameter, of the type it says."""

    async def ask(question: str, **options: int) -> str:
        return question

    signature = Signature(ask)
    assert signature.input_schema()["additionalProperties"] == {"type": "integer"}
    assert dumped(signature, "why", depth=2) == {"question": "why", "depth": 2}
    assert signature.load_input(b'{"question":"why","depth":2}') == ([], {"question": "why", "depth": 2})
    with pytest.raises(InputInvalid) as invalid:
        signature.load_input(b'{"question":"why","depth":"deep"}')
    assert [one.partition(":")[0] for one in invalid.value.violations] == ["depth"]


def test_of_very_many_violations_the_number_is_told() -> None:
    """pydantic makes all or none, which for a quarter of a million takes a second."""

    async def flow(numbers: list[int]) -> None:
        pass

    signature = Signature(flow)
    for count, told in ((3, "numbers.0: Input should be a valid integer"), (1_001, "1001 places do not fit")):
        with pytest.raises(InputInvalid) as invalid:
            signature.load_input(json.dumps({"numbers": ["x"] * count}).encode())
        assert invalid.value.violations[0].startswith(told)
        assert len(invalid.value.violations) == (count if count == 3 else 1)


def test_positional_only_parameters_are_passed_by_place() -> None:
    """Their names are the input's names all the same."""

    async def div(a: int, b: int = 2, /, c: int = 0) -> int:
        return a // b + c

    signature = Signature(div)
    assert signature.load_input(b'{"a":4,"c":1}') == ([4, 2], {"c": 1})


@pytest.mark.parametrize(
    ("data", "paths"),
    [
        (b"{", [""]),
        (b"[]", [""]),
        (b"{}", ["name", "age"]),
        (b'{"name":1,"age":"x"}', ["name", "age"]),
        (b'{"name":"a","age":1,"more":1}', ["more"]),
    ],
)
def test_every_violation_is_listed(data: bytes, paths: list[str]) -> None:
    """Path first, then what is wrong there."""

    async def person(name: str, age: int) -> None: ...

    with pytest.raises(InputInvalid) as invalid:
        Signature(person).load_input(data)
    assert [one.partition(":")[0] if paths != [""] else "" for one in invalid.value.violations] == paths


def test_a_value_without_a_json_form_is_named() -> None:
    """The message says which function and which type."""

    async def make() -> Any: ...

    signature = Signature(make)
    with pytest.raises(Unserializable, match="make returned a object"):
        signature.dump_output(object())
    with pytest.raises(Unserializable, match="surrogates"):
        signature.dump_output("\ud83d")
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Unserializable, match="make returned a list"):
        signature.dump_output(deep)


def test_an_input_without_a_json_form_is_none() -> None:
    """A component may take a connection."""

    async def query(connection: object, text: str) -> None: ...

    assert dumped(Signature(query), object(), "select") is None


def test_types_of_the_enclosing_function_are_found() -> None:
    """Tests define their types where they use them."""

    @dataclass
    class Local:
        x: int

    async def make(local: Local) -> Local:
        return local

    signature = Signature(make)
    assert signature.load_input(b'{"local":{"x":1}}') == ([], {"local": Local(1)})


def test_an_annotation_that_does_not_resolve_is_named() -> None:
    """A component runs without, a workflow cannot."""

    async def make(x: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - that is the point

    signature = Signature(make)
    assert dumped(signature, 1) == {"x": 1}
    with pytest.raises(TypeError, match="Missing"):
        signature.input_schema()


def test_a_type_without_a_schema_is_named() -> None:
    """An arbitrary class cannot come from JSON."""

    class Connection: ...

    async def query(connection: Connection) -> Connection:
        return connection

    signature = Signature(query)
    with pytest.raises(TypeError, match="query: a parameter's type has no JSON form"):
        signature.input_schema()
    with pytest.raises(TypeError, match="query: the result has no JSON Schema"):
        signature.output_schema()


def test_a_default_that_is_no_json_is_left_out_of_the_schema() -> None:
    """And warns nobody: the function knows it."""
    nothing = object()

    async def ask(model: Any = nothing) -> None: ...

    assert Signature(ask).input_schema()["properties"] == {"model": {"title": "Model"}}


async def text() -> AsyncIterator[str]:
    yield "a"


async def numbers() -> AsyncGenerator[int, None]:
    yield 1


async def untyped():  # type: ignore[no-untyped-def]
    yield 1


def handed_on() -> AsyncIterator[str]:
    return text()


def plain() -> int:
    return 1


async def coroutine() -> int:
    return 1


@pytest.mark.parametrize(
    ("fn", "kind", "gives"),
    [
        (text, Kind.STREAM, str),
        (numbers, Kind.STREAM, list[int]),
        (handed_on, Kind.STREAM, str),
        (plain, Kind.SYNC, int),
        (coroutine, Kind.COROUTINE, int),
        (functools.partial(coroutine), Kind.COROUTINE, int),
    ],
)
def test_how_a_function_runs_and_what_it_gives(fn: Any, kind: Kind, gives: Any) -> None:
    """Streams of text give one text, others a list."""
    signature = Signature(fn)
    assert (signature.kind, signature.gives) == (kind, gives)


def test_a_stream_without_annotation_says_nothing_of_its_result() -> None:
    """Its first item will tell."""
    signature = Signature(untyped)
    assert signature.kind is Kind.STREAM
    assert signature.output_schema() is None


def test_what_cannot_be_a_component_is_refused() -> None:
    """Each with what to do about it."""

    class Agent:
        async def ask(self) -> None: ...

        async def __call__(self) -> None: ...

    def generate() -> Any:
        yield 1

    with pytest.raises(TypeError, match="synchronous generator: make it `async def`"):
        Signature(generate)
    with pytest.raises(TypeError, match="is a method"):
        Signature(Agent.ask)
    with pytest.raises(TypeError, match="made of a function, not of a Agent"):
        Signature(Agent())


async def test_a_result_that_was_not_awaited_is_told_as_such() -> None:
    """The commonest slip there is."""

    async def later() -> int:
        return 1

    forgotten = later()
    with pytest.raises(OutputInvalid, match="Is an await missing"):
        Signature(later).dump_output(forgotten)
    assert await forgotten == 1
