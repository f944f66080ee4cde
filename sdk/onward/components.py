"""Components: plain functions made into steps that are retried, timed, traced and recorded, and can be tested alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import update_wrapper
from typing import Any, Generic, Never, ParamSpec, Self, TypeVar, cast, overload

from onward.calls import DEFAULT, Call, Policy, run
from onward.concurrency import ConcurrencyLimit
from onward.durations import Duration
from onward.fallback import Fallback
from onward.flights import TTL_DEFAULT, CachePolicy
from onward.instance import CURRENT
from onward.limits import Limits
from onward.retry import ATTEMPTS_DEFAULT, BACKOFF_DEFAULT, Errors, RetryPolicy
from onward.signature import Kind, Signature
from onward.streams import Stream

NAME_CHARS_MAX = 128

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
U_co = TypeVar("U_co", covariant=True)
"""What a fallback gives."""
I = TypeVar("I")  # noqa: E741 - an item
R = TypeVar("R")
G = TypeVar("G")
Text = TypeVar("Text", bound=AsyncIterable[str])
C_co = TypeVar("C_co", covariant=True)
"""What a call of a component gives: a coroutine, or a `Stream`."""
F_co = TypeVar("F_co", covariant=True)
"""What a call of the function itself gives."""


class Fluent:
    """The ways to say how a component is called. Each returns a new one and leaves the old one as it was."""

    __slots__ = ("policy",)

    policy: Policy

    def _with(self, policy: Policy) -> Self:
        raise NotImplementedError

    def retry(
        self,
        attempts: int = ATTEMPTS_DEFAULT,
        backoff: Duration | tuple[Duration, Duration] = BACKOFF_DEFAULT,
        *,
        total: Duration | None = None,
        on: Errors = Exception,
        never: Errors = (),
    ) -> Self:
        """Try again when it fails. Without this a component is tried once.

        A failed try is void: what it and the components below it had shown to the user is rolled back, and what it has
        left running (the other calls of an asyncio.gather) is cancelled.

        Args:
            attempts: Tries in all, the first included: 1 to 1,000, 4 by default.
            backoff: How long to wait at most before the second try, and before any: "1s..30s" by default. The bound
                doubles from the one to the other, and the wait is a random share of it. An error's Retry-After is
                waited for where it is longer. A run with nothing else to do parks for a wait of more than 2 s, as for
                `onward.sleep`.
            total: No further try begins when this much time has passed since the first did. Unlimited by default.
            on: Errors that are worth another try: all by default. The error of a component below counts as the one it
                began with.
            never: Errors that are not, even where `on` names them.

        Raises:
            ValueError: A bound or a duration makes no sense.
        """
        return self._with(
            replace(self.policy, retry=RetryPolicy.of(attempts, backoff, total=total, on=on, never=never))
        )

    def timeout(
        self,
        each: Duration | None = None,
        *,
        total: Duration | None = None,
        first: Duration | None = None,
        between: Duration | None = None,
    ) -> Self:
        """Limit the time that it takes. What is not named has no limit, whatever was said before.

        What is out of time fails with a TimeoutError that says which limit it was; in a run the ComponentError's reason
        is TIMEOUT. A synchronous function cannot be stopped: it goes on in its thread, and what it gives is dropped.

        Args:
            each: For every try. Of a stream that is read by `async for` only the time that the component takes counts,
                not the reader's. A try that was lost with its executor begins again with all of its time.
            total: For all tries together, with the waits between them, from the moment when it began; time in which
                nobody ran it counts too. No further try follows.
            first: Of a stream, from the beginning of a try to its first item, e.g. a model's first token.
            between: Of a stream, from one item to the next, and from the last to the end; the reader's time does not
                count. A try that `first` or `between` ends may be followed by another, as with `each`. Both are about
                code that has fallen silent: time in which the run is parked (`onward.sleep`, an answer, a child) is
                not theirs. It counts for `each` and `total`.

        Raises:
            ValueError: One is not a duration above 0.
            TypeError: `first` or `between` is for what is no stream.
        """
        return self._with(replace(self.policy, limits=Limits.of(each, total=total, first=first, between=between)))

    def _with_fallback(self, answer: Any, on: Errors) -> Self:
        return self._with(replace(self.policy, fallback=Fallback(answer, on)))

    def cache(self, ttl: Duration = TTL_DEFAULT, *, version: str = "", key: Callable[..., Any] | None = None) -> Self:
        """Give its result to other runs, too: of calls with the same input one runs, and the others get what it gave.

        That holds for all runs of the namespace, on all executors: who calls while another makes the result waits for
        it. A hit is told in the log (`cached`), and remembered by the run as any other result. Errors and the answers
        of a fallback are not kept, nor are results over 1 MiB. A stream that was kept comes at once, a text in one
        piece. The component's name and the `version` count, its code does not: give a new version where the same input
        is to give something else. Outside a run, and for a workflow as a run of its own, it has no effect.

        Args:
            ttl: How long a result is kept, up to 30 days; 1 hour by default.
            version: Part of what a call is known by.
            key: Takes the arguments and gives what a call is known by instead of them: anything that JSON can say.
                Without it the whole input is; what has no JSON form is not kept.

        Raises:
            ValueError: The time is not above 0, or too long.
        """
        return self._with(replace(self.policy, cache=CachePolicy.of(ttl, version=version, key=key)))

    def concurrency(self, limit: int, *, key: str | Callable[..., Any] = "") -> Self:
        """Let at most `limit` of them run at once: in all runs of the namespace, on all executors.

        Each try waits in line for a permit, first come, first served, and gives it back when it ends: between two tries
        it has none. A wait is no part of the try's time, but counts for `timeout(total=…)`. A result that the run
        remembers or the cache has asks for none, nor does a fallback. A stream holds its permit from the first item
        that is asked for to its end. A run that waits for one stays in its executor; one that parks (`onward.sleep`)
        gives its permits back, and asks again when it wakes.

        The component's name counts, and the key: what calls differ by in it is counted apart. A permit of an executor
        that died is free after 10 s. A call below one of the same name and key fails, since both could wait for ever.
        So could two components that call each other: give them a total time. A synchronous function whose time is up
        goes on in its thread, without a permit. Outside a run, and for a workflow as a run of its own, there is no
        limit. `onward.map(…, concurrency=)` is about one map, this is about all executors.

        Args:
            limit: How many at most, from 1. Where deployments name different limits, each keeps its own.
            key: A string, or a function that takes the arguments and gives anything that JSON can say, e.g. a tenant.

        Raises:
            ValueError: The limit is no whole number from 1.
        """
        return self._with(replace(self.policy, concurrency=ConcurrencyLimit.of(limit, key=key)))

    def private(self, hidden: bool = True) -> Self:
        """Hide input and result from everybody who reads the log."""
        return self._with(replace(self.policy, private=hidden))


class Component(Fluent, Generic[P, C_co, F_co]):
    """A function as a step. Call it like the function, and await the call, also where the function is synchronous.

    Inside a run the call is recorded and its error arrives as `ComponentError`. Outside it is just the function, with
    its retries and its timeout, and errors stay as they are.

    Attributes:
        fn: The function itself.
        name: What the log and traces call it: the function's name, unless `named` gave it another.
        policy: How it is called.
        signature: What it takes and gives.
    """

    def __init__(
        self, fn: Callable[P, F_co], policy: Policy = DEFAULT, *, name: str = "", signature: Signature | None = None
    ) -> None:
        """Make a component of `fn`; `component` and `workflow` do it with types that fit.

        Raises:
            TypeError: `fn` cannot be one.
            ValueError: The name cannot be one.
        """
        if isinstance(fn, Component):
            raise TypeError(f"{fn.name} is a component already")
        self.fn = fn
        self.policy = policy
        self.signature = signature or Signature(fn)
        if policy.fallback is not None and policy.fallback is not self.signature.fallback:
            self.signature = self.signature.with_fallback(policy.fallback)
        limits = policy.limits
        if not (limits.first_s is limits.between_s is None) and self.signature.kind is not Kind.STREAM:
            raise TypeError(
                f"{self.signature.name} is no stream: it has no items that `first` or `between` could limit"
            )
        self.name: str = name or self.signature.name
        update_wrapper(self, fn, updated=())
        self._check_name()

    def _check_name(self) -> None:
        if not 0 < len(self.name) <= NAME_CHARS_MAX or not self.name.isprintable():
            raise ValueError(f"a component's name is 1 to {NAME_CHARS_MAX} printable characters, not {self.name!r}")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C_co:
        signature = self.signature
        arguments = signature.arguments(args, kwargs)
        parent = CURRENT.get()
        streams = signature.kind is Kind.STREAM
        instance = None if parent is None else parent.child(self.name, streams=streams, key=self.policy.key)
        call = Call(self.name, signature, self.policy, instance, args, kwargs, arguments)
        return cast("C_co", Stream[Any, Any](call) if streams else run(call))

    def named(self, name: str) -> Self:
        """Return the same component under another name.

        Raises:
            ValueError: The name cannot be one.
        """
        if not name:
            raise ValueError("a name is not empty")
        return self._with(self.policy, name=name)

    def keyed(self, key: str) -> Self:
        """Return the same component with a name of its own for its next call, unique among the caller's calls of it.

        A call is recognised after a crash by how often its caller had called the component before. Where that number is
        up to chance (results taken in the order they arrive, a loop over a set), a key says which call it is.
        `onward.map` sets keys itself.
        """
        if not key:
            raise ValueError("a key is not empty")
        return self._with(replace(self.policy, key=key))

    # A stream's fallback gives the same items. Anything else may give something of its own: the result is either.
    @overload
    def fallback(
        self: Component[P, Stream[I, R], G],
        answer: Callable[P, AsyncIterable[I]],
        *,
        on: Errors = ...,
    ) -> Component[P, Stream[I, R], G]: ...
    @overload
    def fallback(
        self: Component[P, Stream[I, R], G], answer: Callable[P, Awaitable[R]] | R, *, on: Errors = ...
    ) -> Component[P, Stream[I, R], G]: ...
    @overload
    def fallback(
        self: Component[P, Coroutine[object, object, T], G], answer: Callable[P, Awaitable[U]], *, on: Errors = ...
    ) -> Component[P, Coroutine[object, object, T | U], G]: ...
    @overload
    def fallback(
        self: Component[P, Coroutine[object, object, T], G], answer: Callable[P, U], *, on: Errors = ...
    ) -> Component[P, Coroutine[object, object, T | U], G]: ...
    @overload
    def fallback(
        self: Component[P, Coroutine[object, object, T], G], answer: U, *, on: Errors = ...
    ) -> Component[P, Coroutine[object, object, T | U], G]: ...
    def fallback(self, answer: Any, *, on: Errors = Exception) -> Any:
        """Give this where it would fail: when no further try follows.

        What the last try and the components below it had shown is rolled back, the log keeps the error, and the answer
        is the result: it is remembered as any other. It is not given for a cancellation, nor for a mistake such as a
        result without a JSON form. A stream whose first item has reached a reader (by `async for`) can no longer be
        answered for: its error goes up.

        Args:
            answer: A value, falsy or not (of a stream, the whole text or a list of items); or a function or component
                that is called with the same arguments. None of the component's limits and tries hold for it, and where
                it fails its error is the component's.
            on: Errors that it is given for: all by default. The error of a component below counts as the one it began
                with.

        Raises:
            TypeError: It can be called, but is neither a function nor a component.
        """
        return self._with_fallback(answer, on)

    def _with(self, policy: Policy, *, name: str = "") -> Self:
        return type(self)(self.fn, policy, name=name or self.name, signature=self.signature)

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {self.name}>"


class ComponentDecorator(Fluent, Generic[U_co]):
    """Makes components: `@component`, or with a policy first, `@component.retry(attempts=4).timeout("2m")`."""

    __slots__ = ()

    def __init__(self, policy: Policy = DEFAULT) -> None:
        self.policy = policy

    def _with(self, policy: Policy) -> Self:
        return type(self)(policy)

    @overload
    def fallback(self, answer: Callable[..., Awaitable[U]], *, on: Errors = ...) -> ComponentDecorator[U]: ...
    @overload
    def fallback(self, answer: Callable[..., U], *, on: Errors = ...) -> ComponentDecorator[U]: ...
    @overload
    def fallback(self, answer: U, *, on: Errors = ...) -> ComponentDecorator[U]: ...
    def fallback(self, answer: Any, *, on: Errors = Exception) -> Any:
        """As `Component.fallback`."""
        return self._with_fallback(answer, on)

    # Text comes first: the stream of it gives one text, while a stream of anything else gives a list. And where a call
    # gives a coroutine it says object, since beside an Any mypy would give up on asyncio.gather.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Text]
    ) -> Component[P, Stream[str, str], Text]: ...
    @overload
    def __call__(
        self, fn: Callable[P, AsyncGenerator[T, Any]]
    ) -> Component[P, Stream[T, list[T]], AsyncGenerator[T, Any]]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[T]]) -> Component[P, Stream[T, list[T]], AsyncIterator[T]]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncIterable[T]]) -> Component[P, Stream[T, list[T]], AsyncIterable[T]]: ...
    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]]
    ) -> Component[P, Coroutine[object, object, T | U_co], Coroutine[Any, Any, T]]: ...
    @overload
    def __call__(
        self, fn: Callable[P, Awaitable[T]]
    ) -> Component[P, Coroutine[object, object, T | U_co], Awaitable[T]]: ...
    @overload
    def __call__(self, fn: Callable[P, T]) -> Component[P, Coroutine[object, object, T | U_co], T]: ...
    def __call__(self, fn: Callable[..., Any]) -> Component[..., Any, Any]:
        """Make a component of a function.

        Args:
            fn: `async def`, a plain function (it will run in a thread), or an `async def` with `yield` (it streams).

        Raises:
            TypeError: It is none of these.
        """
        return Component(fn, self.policy)


component: ComponentDecorator[Never] = ComponentDecorator()
