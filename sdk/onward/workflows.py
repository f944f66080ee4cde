"""Workflows: components that can be started by name from outside."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Generic, Never, ParamSpec, Self, TypeVar, overload

from onward.calls import DEFAULT, Policy
from onward.components import C_co, Component, F_co, Fluent
from onward.durations import Duration, seconds
from onward.limits import above_0
from onward.retry import Errors
from onward.signature import Signature
from onward.streams import Stream
from onward.v1 import gateway_service_pb2 as contract
from onward.v1.run_pb2 import Payload

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
U_co = TypeVar("U_co", covariant=True)
"""What a fallback gives."""
I = TypeVar("I")  # noqa: E741 - an item
R = TypeVar("R")
G = TypeVar("G")
Text = TypeVar("Text", bound=AsyncIterable[str])

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class Workflow(Component[P, C_co, F_co]):
    """A component that can be started by name. Its input is a JSON object of its parameters by name, even of one.

    Called inside another workflow it runs there, as a component.

    Attributes:
        run_timeout_s: How long a run of it may take in all, waiting included, in seconds; None is without limit.
    """

    def __init__(
        self,
        fn: Callable[P, F_co],
        policy: Policy = DEFAULT,
        *,
        name: str = "",
        signature: Signature | None = None,
        run_timeout_s: float | None = None,
    ) -> None:
        super().__init__(fn, policy, name=name, signature=signature)
        self.run_timeout_s = run_timeout_s
        for parameter in self.signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                raise TypeError(
                    f"{self.name}: a workflow's input is a JSON object, where *{parameter.name} has no name"
                )

    def _check_name(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"a workflow's name is 1 to 128 of A-Z a-z 0-9 _ . -, not {self.name!r}: give it one with .named()"
            )

    def _with(self, policy: Policy, *, name: str = "") -> Self:
        return type(self)(
            self.fn, policy, name=name or self.name, signature=self.signature, run_timeout_s=self.run_timeout_s
        )

    # A stream's fallback gives the same items. Anything else may give something of its own: the result is either.
    @overload
    def fallback(
        self: Workflow[P, Stream[I, R], G],
        answer: Callable[P, AsyncIterable[I]],
        *,
        on: Errors = ...,
    ) -> Workflow[P, Stream[I, R], G]: ...
    @overload
    def fallback(
        self: Workflow[P, Stream[I, R], G], answer: Callable[P, Awaitable[R]] | R, *, on: Errors = ...
    ) -> Workflow[P, Stream[I, R], G]: ...
    @overload
    def fallback(
        self: Workflow[P, Coroutine[object, object, T], G], answer: Callable[P, Awaitable[U]], *, on: Errors = ...
    ) -> Workflow[P, Coroutine[object, object, T | U], G]: ...
    @overload
    def fallback(
        self: Workflow[P, Coroutine[object, object, T], G], answer: Callable[P, U], *, on: Errors = ...
    ) -> Workflow[P, Coroutine[object, object, T | U], G]: ...
    @overload
    def fallback(
        self: Workflow[P, Coroutine[object, object, T], G], answer: U, *, on: Errors = ...
    ) -> Workflow[P, Coroutine[object, object, T | U], G]: ...
    def fallback(self, answer: Any, *, on: Errors = Exception) -> Any:
        """As `Component.fallback`: the run succeeds, and this is its output."""
        return self._with_fallback(answer, on)

    def run_timeout(self, whole: Duration | None) -> Self:
        """Give every run this much time in all, queueing, waiting and every attempt included; None is without limit.

        Kept from outside, so it also ends a run whose executor is frozen. Whoever starts a run may set another limit.
        """
        copy = self._with(self.policy)
        copy.run_timeout_s = None if whole is None else above_0(seconds(whole))
        return copy

    def to_proto(self) -> contract.Workflow:
        """Return what an executor tells about it.

        Raises:
            TypeError: A parameter or the result cannot be JSON.
        """
        workflow = contract.Workflow(
            name=self.name,
            description=_first_paragraph(self.__doc__),
            input_schema=_schema(self.signature.input_schema()),
            output_schema=_schema(self.signature.output_schema()),
        )
        if self.run_timeout_s is not None:
            workflow.run_timeout.FromNanoseconds(round(self.run_timeout_s * 1e9))
        return workflow


class WorkflowDecorator(Fluent, Generic[U_co]):
    """Makes workflows: `@workflow`, or with a policy first, `@workflow.run_timeout("1h")`."""

    __slots__ = ("_run_timeout_s",)

    def __init__(self, policy: Policy = DEFAULT, *, run_timeout_s: float | None = None) -> None:
        self.policy = policy
        self._run_timeout_s = run_timeout_s

    def _with(self, policy: Policy) -> Self:
        return type(self)(policy, run_timeout_s=self._run_timeout_s)

    @overload
    def fallback(self, answer: Callable[..., Awaitable[U]], *, on: Errors = ...) -> WorkflowDecorator[U]: ...
    @overload
    def fallback(self, answer: Callable[..., U], *, on: Errors = ...) -> WorkflowDecorator[U]: ...
    @overload
    def fallback(self, answer: U, *, on: Errors = ...) -> WorkflowDecorator[U]: ...
    def fallback(self, answer: Any, *, on: Errors = Exception) -> Any:
        """As `Workflow.fallback`."""
        return self._with_fallback(answer, on)

    def run_timeout(self, whole: Duration) -> Self:
        """As `Workflow.run_timeout`."""
        return type(self)(self.policy, run_timeout_s=above_0(seconds(whole)))

    # Text comes first: the stream of it gives one text, while a stream of anything else gives a list. And where a call
    # gives a coroutine it says object, since beside an Any mypy would give up on asyncio.gather.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Text]
    ) -> Workflow[P, Stream[str, str], Text]: ...
    @overload
    def __call__(
        self, fn: Callable[P, AsyncGenerator[T, Any]]
    ) -> Workflow[P, Stream[T, list[T]], AsyncGenerator[T, Any]]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[T]]) -> Workflow[P, Stream[T, list[T]], AsyncIterator[T]]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncIterable[T]]) -> Workflow[P, Stream[T, list[T]], AsyncIterable[T]]: ...
    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]]
    ) -> Workflow[P, Coroutine[object, object, T | U_co], Coroutine[Any, Any, T]]: ...
    @overload
    def __call__(
        self, fn: Callable[P, Awaitable[T]]
    ) -> Workflow[P, Coroutine[object, object, T | U_co], Awaitable[T]]: ...
    @overload
    def __call__(self, fn: Callable[P, T]) -> Workflow[P, Coroutine[object, object, T | U_co], T]: ...
    def __call__(self, fn: Callable[..., Any]) -> Workflow[..., Any, Any]:
        """Make a workflow of a function.

        Args:
            fn: As for `component`. It takes no *args, since its input is a JSON object.

        Raises:
            TypeError: It cannot be one.
        """
        return Workflow(fn, self.policy, run_timeout_s=self._run_timeout_s)


workflow: WorkflowDecorator[Never] = WorkflowDecorator()


def _first_paragraph(doc: str | None) -> str:
    return " ".join(inspect.cleandoc(doc or "").partition("\n\n")[0].split())


def _schema(schema: dict[str, Any] | None) -> Payload | None:
    if schema is None:
        return None
    data = json.dumps(schema, separators=(",", ":")).encode()
    return Payload(data=data, size=len(data))
