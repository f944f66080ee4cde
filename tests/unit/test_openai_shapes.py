"""What is made of a provider's data is what the `openai` package makes of it."""

from __future__ import annotations

import typing
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._models import BaseModel, construct_type
from openai.types.chat import ChatCompletionChunk

from onward.openai.shapes import FITTING, fitted

ODD = st.sampled_from([None, "", "7", 7, -1, 2.0, 1.5, 2**60, True, [], [None], {}, {"type": "text"}])
"""What a provider may say where something else is expected."""

TYPES = sorted(FITTING, key=lambda one: one.__name__)


def said(hint: Any) -> st.SearchStrategy[Any]:
    """Return JSON of a type, as the wire has it."""
    origin = get_origin(hint)
    if origin is typing.Annotated:
        return said(get_args(hint)[0])
    if origin is Literal:
        return st.sampled_from(get_args(hint))
    if origin is list:
        return st.lists(wild(get_args(hint)[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), wild(get_args(hint)[1]), max_size=2)
    if origin is not None:
        return st.one_of([said(one) for one in get_args(hint)])
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return st.deferred(lambda: fields_of(hint))
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(max_size=5),
        int: st.integers(-(2**40), 2**40),
        float: st.one_of(st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False)),
        bool: st.booleans(),
        object: ODD,
        NoneType: st.none(),
    }
    return plain[hint]


def wild(hint: Any) -> st.SearchStrategy[Any]:
    """Return JSON of a type, now and then of another."""
    return st.integers(0, 30).flatmap(lambda dice: ODD if dice == 0 else said(hint))


def fields_of(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Return an object, often whole, at times with fields that nobody knows."""
    required = {name: wild(field.annotation) for name, field in model.model_fields.items() if field.is_required()}
    optional = {name: wild(field.annotation) for name, field in model.model_fields.items() if not field.is_required()}
    whole = st.fixed_dictionaries(required, optional={**optional, "x_unknown": ODD})
    part = st.fixed_dictionaries({}, optional={**required, **optional})
    return st.integers(0, 30).flatmap(lambda dice: part if dice == 0 else whole)


def models_of(hint: Any, found: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """Return all models that a type is made of."""
    if isinstance(hint, type) and issubclass(hint, BaseModel) and hint not in found:
        found.add(hint)
        for field in hint.model_fields.values():
            models_of(field.annotation, found)
    for one in get_args(hint):
        models_of(one, found)
    return found


def anatomy(value: Any) -> Any:
    """Return everything that tells one object from another, types and order included."""
    if isinstance(value, BaseModel):
        private = value.__pydantic_private__
        parts = [(name, anatomy(one)) for name, one in vars(value).items()]
        extra = [(name, anatomy(one)) for name, one in (value.model_extra or {}).items()]
        return type(value), parts, extra, sorted(value.model_fields_set), private
    if isinstance(value, list):
        return [anatomy(one) for one in value]
    if isinstance(value, dict):
        return [(name, anatomy(one)) for name, one in value.items()]
    return type(value), value


@pytest.mark.parametrize("cast_to", TYPES)
def test_both_ways_make_the_same(cast_to: type[BaseModel]) -> None:
    """Of whatever a provider may say; and what fits is not rare."""
    fit = 0

    @settings(max_examples=150, deadline=None)
    @given(fields_of(cast_to))
    def check(data: dict[str, Any]) -> None:
        nonlocal fit
        made = fitted(cast_to, data)
        if made is not None:
            fit += 1
            assert anatomy(made) == anatomy(construct_type(type_=cast_to, value=data))

    check()
    assert fit > 20


@pytest.mark.parametrize("cast_to", TYPES)
def test_a_type_fits_by_what_it_is_made_of(cast_to: type[BaseModel]) -> None:
    """An alias stays among what is unknown if the package reads it, and null would not become a default."""
    for model in models_of(cast_to, set()):
        decorators = model.__pydantic_decorators__
        assert not [*decorators.validators, *decorators.field_validators, *decorators.model_validators]
        for name, field in model.model_fields.items():
            assert field.alias in (None, name), (model, name)
            if NoneType in get_args(field.annotation):
                assert field.is_required() or field.default is None, (model, name)


def test_what_does_not_fit_is_left_to_the_package() -> None:
    """As is what it reads by other rules."""
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    assert isinstance(fitted(ChatCompletionChunk, chunk), ChatCompletionChunk)
    odd: tuple[object, ...] = ({**chunk, "created": "1"}, {**chunk, "choices": [None]}, {"id": "1"}, [], None, "x")
    for one in odd:
        assert fitted(ChatCompletionChunk, one) is None
    for other in (dict, str, dict[str, object], list[ChatCompletionChunk], BaseModel):
        assert fitted(other, chunk) is None
