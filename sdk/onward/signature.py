"""What a function takes and gives, and how that looks as JSON.

Everything is worked out at first use and kept: a call costs a dictionary and one pass of pydantic's serializer.
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
import warnings
from collections.abc import Callable, Mapping
from copy import copy
from enum import Enum
from functools import cache, cached_property, partial
from typing import Any, Protocol, get_args, get_origin

import typing_extensions
from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError, create_model
from pydantic.json_schema import PydanticJsonSchemaWarning
from pydantic_core import PydanticSerializationError, SchemaSerializer, from_json

from onward.alike import PLAIN, alike, holds_set, sets_sorted
from onward.retry import NotRetryable

_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")
_LENIENT = ConfigDict(**_CONFIG, arbitrary_types_allowed=True, extra="allow")
_STREAMS = (collections.abc.AsyncIterator, collections.abc.AsyncIterable, collections.abc.AsyncGenerator)
NO_HINT = inspect.Parameter.empty
_ARGS = inspect.Parameter.VAR_POSITIONAL
_KWARGS = inspect.Parameter.VAR_KEYWORD
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


VIOLATIONS_TOLD = 10
"""Of a value that is wrong in more places, so many are told."""

VIOLATIONS_MADE = 1_000
"""Of a value that is wrong in more places, their number is told: pydantic gives all or none, and the event loop stands
still while it makes a quarter of a million."""


class Kind(Enum):
    """How a function runs."""

    SYNC = "sync"
    """In a thread."""
    COROUTINE = "coroutine"
    """On the event loop."""
    STREAM = "stream"
    """On the event loop, giving item after item."""


class Unserializable(NotRetryable):
    """A value has no JSON form."""


class OutputInvalid(Unserializable):
    """What a component gave cannot be remembered as it is."""


class InputInvalid(ValueError):
    """A run's input is not what its workflow takes.

    Attributes:
        violations: One "path: what is wrong" per violation, or how many there are where they are very many.
    """

    def __init__(self, violations: list[str]) -> None:
        super().__init__("; ".join(violations))
        self.violations = violations


class Widening(Protocol):
    """Something else than the result that a function may give."""

    def widened(self, own: Any) -> Any:
        """Return the annotation of either, given that of the function's result."""


class Signature:
    """The parameters and the result of one function."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        """Look at `fn`.

        Raises:
            TypeError: It is no plain function, or one that cannot run as a component.
        """
        self.fn = fn
        # What annotations, names and the kind are read from: the function below partials and decorators.
        self._function = inspect.unwrap(fn.func if isinstance(fn, partial) else fn)
        self.fallback: Widening | None = None
        if not inspect.isroutine(self._function):
            raise TypeError(f"a component is made of a function, not of a {type(fn).__name__}")
        self.name = self._function.__name__
        self._signature = inspect.signature(fn)
        self.parameters = self._signature.parameters
        if _is_method(self._function, self.parameters):
            raise TypeError(f"{self._function.__qualname__} is a method: a component is a plain function")
        # Types that are local to a function can be seen now and never again.
        local = _enclosing_locals(self._function)
        if local is not None:
            try:
                self.hints = self._resolve(local)
            except NameError:
                pass  # Defined further below, perhaps at module level: looked up again when needed.
        self.kind = self._kind()
        positional = [p for p in self.parameters.values() if p.kind in _POSITIONAL]
        required = [p for p in positional if p.default is NO_HINT]
        self._positional = tuple(p.name for p in positional)
        self._keywords = next((p.name for p in self.parameters.values() if p.kind is _KWARGS), "")
        keywords_required = any(
            p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is NO_HINT for p in self.parameters.values()
        )
        # How many arguments a call without keywords may bring; none will do where a keyword is required.
        self._counts = range(0) if keywords_required else range(len(required), len(positional) + 1)

    def _kind(self) -> Kind:
        function = self._function
        if inspect.isasyncgenfunction(function):
            return Kind.STREAM
        if inspect.isgeneratorfunction(function):
            raise TypeError(
                f"{self.name} is a synchronous generator: make it `async def`, and it streams what it yields"
            )
        if inspect.iscoroutinefunction(function):
            return Kind.COROUTINE
        returns = self._known_hints.get("return")
        return Kind.STREAM if (get_origin(returns) or returns) in _STREAMS else Kind.SYNC

    @cached_property
    def hints(self) -> Mapping[str, Any]:
        """The annotations, resolved.

        Raises:
            NameError: One of them names what does not exist.
        """
        return self._resolve(None)

    def _resolve(self, local: dict[str, Any] | None) -> Mapping[str, Any]:
        return typing.get_type_hints(self._function, localns=local, include_extras=True)

    @property
    def _known_hints(self) -> Mapping[str, Any]:
        """The annotations, or none where they do not resolve: a component runs without them too."""
        try:
            return self.hints
        except (NameError, TypeError, AttributeError, SyntaxError):
            return {}

    # Calls

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return what a call brings, by parameter.

        Raises:
            TypeError: The function does not take these.
        """
        if not kwargs and len(args) in self._counts:
            return dict(zip(self._positional, args, strict=False))
        try:
            arguments = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self.name}() {error}") from None
        if self._keywords:
            arguments.update(arguments.pop(self._keywords, {}))
        return arguments

    def dump_input(self, arguments: dict[str, Any]) -> bytes | None:
        """Return `arguments` as a JSON object, None where one of them has no JSON form."""
        if not arguments:
            return b"{}"
        try:
            return self._input_serializer.to_json(arguments, warnings="none")
        except (PydanticSerializationError, ValueError, RecursionError):
            return None

    def canonical(self, arguments: dict[str, Any], data: bytes | None) -> bytes | None:
        """Return what identifies `arguments`, given what `dump_input` made of them.

        It is that, but for sets: their order is another in every process. The order of a dictionary is its own.
        """
        if data is None or not self._may_hold_sets:
            return data
        if not any(type(value) not in PLAIN and holds_set(value) for value in arguments.values()):
            return data
        try:
            return _any_serializer().to_json(sets_sorted(arguments), warnings="none")
        except (PydanticSerializationError, ValueError, RecursionError):
            return data

    @cached_property
    def _may_hold_sets(self) -> bool:
        """Whether the annotations leave room for a set."""
        hints = self._known_hints
        return any(_may_be_set(hints.get(name, Any)) for name in self.parameters)

    @cached_property
    def _input_serializer(self) -> SchemaSerializer:
        hints = self._known_hints
        fields: dict[str, Any] = {}
        for parameter in self.parameters.values():
            hint = hints.get(parameter.name, Any)
            if parameter.kind is _ARGS:
                hint = list[hint]  # type: ignore[valid-type]
            elif parameter.kind is _KWARGS:
                continue
            fields[parameter.name] = hint
        try:
            return _serializer(_typed_dict(fields))
        except PydanticUserError:
            return _serializer(dict[str, Any])

    # Results

    @cached_property
    def gives(self) -> Any:
        """The annotation of what awaiting a call gives: the result, or all items together. NO_HINT if there is none."""
        if self.kind is not Kind.STREAM:
            own = self._known_hints.get("return", NO_HINT)
            return own if self.fallback is None else self.fallback.widened(own)
        if self.item is NO_HINT:
            return NO_HINT
        return str if self.item is str else list[self.item]  # type: ignore[name-defined]

    def with_fallback(self, fallback: Widening) -> Signature:
        """Return the same signature for a function that may give what a fallback gives instead."""
        made = copy(self)
        for name in ("gives", "_plain_outputs", "_output_serializer", "_output_adapter"):
            made.__dict__.pop(name, None)
        made.fallback = fallback
        return made

    @cached_property
    def item(self) -> Any:
        """The annotation of the items of a stream. NO_HINT if there is none."""
        returns = self._known_hints.get("return", NO_HINT)
        arguments = get_args(returns)
        return arguments[0] if self.kind is Kind.STREAM and arguments else NO_HINT

    def dump_output(self, value: Any) -> bytes:
        """Return a result as JSON.

        Raises:
            OutputInvalid: It has no JSON form.
        """
        return self._dump(self._output_serializer, value, "returned")

    def dump_item(self, value: Any) -> bytes:
        """Return one item of a stream as JSON.

        Raises:
            OutputInvalid: It has no JSON form.
        """
        return self._dump(self._item_serializer, value, "yielded")

    def check_output(self, value: Any, data: bytes) -> None:
        """Make sure that a later attempt, which has but `data`, gets what the caller gets now.

        Raises:
            OutputInvalid: It would get something else.
        """
        if type(value) in self._plain_outputs:
            return
        self._check(self._output_adapter, self.gives, value, data, "result")

    def check_own(self, data: bytes) -> None:
        """Make sure that whoever reads the output of a run finds what its annotation says.

        Raises:
            OutputInvalid: It is something else.
        """
        try:
            self.load_output(data)
        except ValueError as error:
            raise OutputInvalid(f"the output of {self.name} is not what is annotated, {self.gives}: {error}") from None

    def check_item(self, value: Any, data: bytes) -> None:
        """`check_output` for one item of a stream.

        Raises:
            OutputInvalid: A later attempt would get something else.
        """
        self._check(self._item_adapter, self.item, value, data, "items")

    def _check(self, adapter: TypeAdapter[Any], hint: Any, value: Any, data: bytes, what: str) -> None:
        loose = hint is NO_HINT or hint is Any or hint is object
        try:
            if alike(from_json(data) if loose else value_of(adapter, data), value, exact=loose):
                return
            why = "would come back as something else"
        except (ValueError, RecursionError) as error:
            why = f"could not be read back: {error}"
        told = "has no annotation of the type" if loose else f"is annotated as {hint}"
        raise OutputInvalid(
            f"{self.name} gave a {type(value).__name__} that {why} when the run goes on after a crash: its {what} "
            f"{told}. Annotate the {what} of {self.name} with the type, or give what JSON can say"
        )

    @cached_property
    def _plain_outputs(self) -> frozenset[type]:
        """Types of results that need no check."""
        gives = type(None) if self.gives is None else self.gives
        if gives in (NO_HINT, Any, object):
            return PLAIN
        return frozenset((gives,)) if gives in PLAIN else frozenset()

    def _dump(self, serializer: SchemaSerializer, value: Any, verb: str) -> bytes:
        try:
            return serializer.to_json(value, warnings="none")
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            hint = ". Is an await missing?" if inspect.isawaitable(value) else ""
            raise OutputInvalid(
                f"{self.name} {verb} a {type(value).__name__} that has no JSON form: {error}{hint}"
            ) from error

    @cached_property
    def _output_serializer(self) -> SchemaSerializer:
        return _lenient_serializer(self.gives)

    @cached_property
    def _item_serializer(self) -> SchemaSerializer:
        return _lenient_serializer(self.item)

    def load_output(self, data: bytes) -> Any:
        """Return a result from its JSON, in the annotated type.

        Raises:
            ValueError: It is not one.
        """
        return value_of(self._output_adapter, data)

    def load_item(self, data: bytes) -> Any:
        """Return an item of a stream from its JSON, in the annotated type.

        Raises:
            ValueError: It is not one.
        """
        return value_of(self._item_adapter, data)

    @cached_property
    def _output_adapter(self) -> TypeAdapter[Any]:
        return _lenient_adapter(self.gives)

    @cached_property
    def _item_adapter(self) -> TypeAdapter[Any]:
        return _lenient_adapter(self.item)

    # The public face of a workflow

    def load_input(self, data: bytes) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments that a JSON object of parameters by name stands for. Defaults are left to the function.

        Raises:
            InputInvalid: It is not JSON, or not what the function takes.
        """
        try:
            model = self._input_model.model_validate_json(data)
        except ValidationError as error:
            raise InputInvalid(_violations(error)) from None
        except Exception as error:
            raise InputInvalid([_raised(error)]) from error
        given = model.model_fields_set
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for index, parameter in enumerate(self.parameters.values()):
            if f"p{index}" not in given:
                # A positional-only parameter after one that was left out would slip into its place.
                if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and parameter.default is not NO_HINT:
                    args.append(parameter.default)
                continue
            value = getattr(model, f"p{index}")
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                args.append(value)
            else:
                kwargs[parameter.name] = value
        kwargs.update(model.__pydantic_extra__ or {})
        return args, kwargs

    def input_schema(self) -> dict[str, Any]:
        """Return the JSON Schema 2020-12 of the input: an object of the parameters by name.

        Raises:
            TypeError: A parameter cannot be part of a JSON object.
        """
        schema = self._schema(lambda: self._input_model.model_json_schema(mode="validation"))
        schema["title"] = self.name
        schema.setdefault("properties", {})
        return schema

    def output_schema(self) -> dict[str, Any] | None:
        """Return the JSON Schema 2020-12 of the result, None where the function does not say.

        Raises:
            TypeError: The result cannot be JSON.
        """
        if self.gives is NO_HINT:
            return None
        try:
            adapter = _plain_adapter(self.gives)
        except PydanticUserError as error:
            raise TypeError(f"{self.name}: the result has no JSON Schema: {error.message}") from None
        return self._schema(lambda: adapter.json_schema(mode="serialization"))

    def _schema(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with warnings.catch_warnings():
            # A default that is no JSON is left out of the schema; the function knows it.
            warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
            try:
                return make()
            except PydanticUserError as error:
                raise TypeError(f"{self.name}: no JSON Schema can be made: {error.message}") from None

    @cached_property
    def _input_model(self) -> type[BaseModel]:
        try:
            hints = self.hints
        except NameError as error:
            raise TypeError(f"{self.name}: an annotation cannot be resolved: {error}") from None
        extra: typing.Literal["forbid", "allow"] = "forbid"
        fields: dict[str, Any] = {}
        base: type[BaseModel] = BaseModel
        for index, parameter in enumerate(self.parameters.values()):
            hint = hints.get(parameter.name, Any)
            if parameter.kind is _ARGS:
                raise TypeError(
                    f"{self.name}: *{parameter.name} has no name in a JSON object: take a list, under a name of its own"
                )
            if parameter.kind is _KWARGS:
                extra = "allow"
                extras: Any = dict[str, hint]  # type: ignore[valid-type]
                annotations = {"__pydantic_extra__": extras}
                base = type("Extra", (BaseModel,), {"__annotations__": annotations, "__module__": __name__})
                continue
            default = ... if parameter.default is NO_HINT else parameter.default
            # Under a name that no attribute of a model has; the outside knows the alias alone.
            fields[f"p{index}"] = (hint, Field(default, alias=parameter.name))
        base = type("Input", (base,), {"model_config": ConfigDict(**_CONFIG, extra=extra), "__module__": __name__})
        try:
            return create_model(self.name, __base__=base, **fields)
        except PydanticUserError as error:
            raise TypeError(f"{self.name}: a parameter's type has no JSON form: {error.message}") from None


def value_of(adapter: TypeAdapter[Any], data: bytes, *, strict: bool | None = None) -> Any:
    """Return a value from its JSON.

    Raises:
        ValueError: It is not one, in pydantic's eyes or in those of the type's own validators, whatever these raise.
            The message says where and why, and not what the value is: that may be private.
    """
    try:
        return adapter.validator.validate_json(data, strict=strict)
    except ValidationError as error:
        violations = _violations(error)
        more = len(violations) - VIOLATIONS_TOLD
        raise ValueError("; ".join(violations[:VIOLATIONS_TOLD]) + (f"; and {more} more" if more > 0 else "")) from None
    except Exception as error:
        raise ValueError(_raised(error)) from error


def _raised(error: Exception) -> str:
    return f"a validator raised {type(error).__name__}: {error}"


def adapter_of(hint: Any) -> TypeAdapter[Any]:
    """Return what reads values of a type from JSON.

    Raises:
        TypeError: pydantic does not know the type.
    """
    try:
        return TypeAdapter(_alias(hint), config=_CONFIG)
    except PydanticUserError as error:
        raise TypeError(f"{hint} has no JSON form: {error.message}") from None


def schema_of(hint: Any) -> dict[str, Any]:
    """Return the JSON Schema 2020-12 that a value of a type satisfies.

    Raises:
        TypeError: There is none.
    """
    try:
        return _plain_adapter(hint).json_schema(mode="validation")
    except PydanticUserError as error:
        raise TypeError(f"{hint} has no JSON Schema: {error.message}") from None


def _plain_adapter(hint: Any) -> TypeAdapter[Any]:
    # Without the alias: a schema that is a reference to its own definition is hard to read.
    try:
        return TypeAdapter(hint, config=_CONFIG)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(hint)


def _violations(error: ValidationError) -> list[str]:
    if (count := error.error_count()) > VIOLATIONS_MADE:
        return [f"{count} places do not fit"]
    return [_violation(one) for one in error.errors(include_url=False, include_input=False)]


def _violation(error: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    return f"{path}: {error['msg']}" if path else str(error["msg"])


def _alias(hint: Any) -> Any:
    # pydantic refuses a configuration beside a type that could carry one itself; behind an alias it takes it.
    return typing_extensions.TypeAliasType("Value", hint)


def _typed_dict(fields: dict[str, Any]) -> Any:
    make: Any = typing_extensions.TypedDict
    made = make("Input", fields, total=False)
    made.__pydantic_config__ = _LENIENT  # Whatever **keywords bring is extra.
    return made


def _serializer(hint: Any) -> SchemaSerializer:
    serializer = TypeAdapter(_alias(hint), config=_LENIENT).serializer
    assert isinstance(serializer, SchemaSerializer)
    return serializer


def _lenient_serializer(hint: Any) -> SchemaSerializer:
    try:
        return _serializer(Any if hint is NO_HINT else hint)
    except (PydanticUserError, TypeError):
        return _serializer(Any)


def _lenient_adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(_alias(Any if hint in (NO_HINT, object) else hint), config=_LENIENT)
    except (PydanticUserError, TypeError):
        return TypeAdapter(_alias(Any), config=_LENIENT)


def _may_be_set(hint: Any) -> bool:
    if hint in (str, int, float, bool, bytes, None, type(None)):
        return False
    if get_origin(hint) in (list, tuple, dict):
        return any(_may_be_set(argument) for argument in get_args(hint) if argument is not ...)
    return True


def _is_method(fn: Callable[..., Any], parameters: Mapping[str, Any]) -> bool:
    within = fn.__qualname__.rpartition(".")[0]
    return bool(within) and not within.endswith("<locals>") and next(iter(parameters), "") in ("self", "cls")


def _enclosing_locals(fn: Callable[..., Any]) -> dict[str, Any] | None:
    """Return the names of the running function that `fn` is defined in, None where it is not defined in one."""
    outer, inside, _ = getattr(fn, "__qualname__", "").rpartition(".<locals>.")
    if not inside:
        return None
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_qualname == outer:
            return dict(frame.f_locals)
        frame = frame.f_back
    return None


@cache
def _any_serializer() -> SchemaSerializer:
    return _serializer(Any)


def dump_any(value: Any, what: str) -> bytes:
    """Return a value of whatever type as JSON.

    Raises:
        Unserializable: It has no JSON form; the message begins with `what`.
    """
    try:
        return _any_serializer().to_json(value, warnings="none")
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise Unserializable(f"{what} is a {type(value).__name__} that has no JSON form: {error}") from error
