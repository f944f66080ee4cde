"""Workflows: components that can be started by name from outside."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every run of a workflow, and is kept from outside.

    Attributes:
        timeout_s: How long it may take in all, waiting included, in seconds; None is without limit.
        on_end: Who is told when it has ended: URLs, or names of workflows.
        on_paused: Who is told when it is PAUSED.
    """

    timeout_s: float | None = None
    on_end: tuple[str, ...] = ()
    on_paused: tuple[str, ...] = ()


NO_TERMS = Terms()


class Workflow(Component[P, C_co, F_co]):
    """A component that can be started by name. Its input is a JSON object of its parameters by name, even of one.

    Called inside another workflow it runs there, as a component.

    Attributes:
        terms: What holds for every run of it.
    """

    def __init__(
        self,
        fn: Callable[P, F_co],
        policy: Policy = DEFAULT,
        *,
        name: str = "",
        signature: Signature | None = None,
        terms: Terms = NO_TERMS,
    ) -> None:
        super().__init__(fn, policy, name=name, signature=signature)
        self.terms = terms
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
        return type(self)(self.fn, policy, name=name or self.name, signature=self.signature, terms=self.terms)

    def _on(self, terms: Terms) -> Self:
        return type(self)(self.fn, self.policy, name=self.name, signature=self.signature, terms=terms)

    @property
    def run_timeout_s(self) -> float | None:
        """How long a run of it may take in all, waiting included, in seconds; None is without limit."""
        return self.terms.timeout_s

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
        return self._on(replace(self.terms, timeout_s=None if whole is None else above_0(seconds(whole))))

    def on_run_end(self, *hooks: str | Workflow[..., Any, Any]) -> Self:
        """Have each of these told when a run of it has ended, however it did.

        Told at least once each, and tried again for a day; nothing waits for it. A URL gets a webhook that is signed
        with the Scheduler's secret (the headers are those of Standard Webhooks, and `webhook-id` tells a repeat). A
        workflow is started with one parameter, `run`: its ids, state, error and labels.

        Args:
            hooks: http(s) URLs, or workflows, or names of workflows.
        """
        return self._on(replace(self.terms, on_end=_hooks(hooks)))

    def on_run_paused(self, *hooks: str | Workflow[..., Any, Any]) -> Self:
        """The same for each time that a run of it is PAUSED: a person has to look at it."""
        return self._on(replace(self.terms, on_paused=_hooks(hooks)))

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
            on_run_end=self.terms.on_end,
            on_run_paused=self.terms.on_paused,
        )
        if self.run_timeout_s is not None:
            workflow.run_timeout.FromNanoseconds(round(self.run_timeout_s * 1e9))
        return workflow


class WorkflowDecorator(Fluent, Generic[U_co]):
    """Makes workflows: `@workflow`, or with a policy first, `@workflow.run_timeout("1h")`."""

    __slots__ = ("_terms",)

    def __init__(self, policy: Policy = DEFAULT, *, terms: Terms = NO_TERMS) -> None:
        self.policy = policy
        self._terms = terms

    def _with(self, policy: Policy) -> Self:
        return type(self)(policy, terms=self._terms)

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
        return type(self)(self.policy, terms=replace(self._terms, timeout_s=above_0(seconds(whole))))

    def on_run_end(self, *hooks: str | Workflow[..., Any, Any]) -> Self:
        """As `Workflow.on_run_end`."""
        return type(self)(self.policy, terms=replace(self._terms, on_end=_hooks(hooks)))

    def on_run_paused(self, *hooks: str | Workflow[..., Any, Any]) -> Self:
        """As `Workflow.on_run_paused`."""
        return type(self)(self.policy, terms=replace(self._terms, on_paused=_hooks(hooks)))

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
        return Workflow(fn, self.policy, terms=self._terms)


workflow: WorkflowDecorator[Never] = WorkflowDecorator()


def _hooks(hooks: tuple[str | Workflow[..., Any, Any], ...]) -> tuple[str, ...]:
    names = tuple(hook if isinstance(hook, str) else hook.name for hook in hooks)
    for name in names:
        if not name.startswith(("https://", "http://")) and not _NAME.fullmatch(name):
            raise ValueError(f"who is told is an http(s) URL or a workflow, not {name!r}")
    return names


def _first_paragraph(doc: str | None) -> str:
    return " ".join(inspect.cleandoc(doc or "").partition("\n\n")[0].split())


def _schema(schema: dict[str, Any] | None) -> Payload | None:
    if schema is None:
        return None
    data = json.dumps(schema, separators=(",", ":")).encode()
    return Payload(data=data, size=len(data))
