"""The package's types out of data: by pydantic's validator where the data fits to the letter.

The package makes them of whatever comes, field by field in Python: for a chunk of an answer that is two thirds of what
it costs. The validator takes a thirtieth of the time and makes the same, or refuses; then the package does it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, get_args, get_origin

from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, ValidationError

FITTING = frozenset((ChatCompletion, ChatCompletionChunk, CreateEmbeddingResponse))
"""Types of which both ways make the same: no name that is not the one on the wire, no default that null would miss."""


def fitted(cast_to: Any, data: object) -> Any:
    """Return the object of a type that `data` describes; None where it does not fit, or the package has to say."""
    if cast_to not in FITTING:
        return None
    try:
        made = cast_to.model_validate(data, strict=True)
    except ValidationError:
        return None
    _forget_unknown(made)
    return made


def _forget_unknown(made: BaseModel) -> None:
    """Take what the type does not know out of what was set, where the package does not count it."""
    if made.__pydantic_extra__:
        made.__pydantic_fields_set__.difference_update(made.__pydantic_extra__)
    for name in _built(type(made)):
        value = getattr(made, name)
        for one in value if type(value) is list else (value,):
            _forget_unknown(one)


@cache
def _built(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the fields whose objects the package builds itself. One of several types it has validated, too."""
    found = []
    for name, field in model.model_fields.items():
        hint = get_args(field.annotation)[0] if get_origin(field.annotation) is list else field.annotation
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            found.append(name)
    return tuple(found)
