"""What answers for a component when all its tries have failed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, Union

from onward.retry import Errors, NotRetryable, is_one
from onward.signature import NO_HINT, Kind, OutputInvalid, Signature


class Fallback:
    """A value, or a function of the same arguments.

    Attributes:
        value: The value; None where there is a function.
        fn: What is called: a component, or a function.
        kind: How `fn` runs. A component runs itself.
        on: Errors that it answers for.
    """

    __slots__ = ("_signature", "fn", "kind", "on", "value")

    def __init__(self, answer: Any, on: Errors) -> None:
        """Take what `Component.fallback` was given.

        Raises:
            TypeError: It can be called, but is no plain function.
        """
        self.on = on
        self.value: Any = None
        self.fn: Callable[..., Any] | None = None
        self.kind = Kind.COROUTINE
        self._signature: Signature | None = None
        of_component = getattr(answer, "signature", None)
        if isinstance(of_component, Signature):
            self.fn, self._signature = answer, of_component
            if of_component.kind is Kind.STREAM:
                self.kind = Kind.STREAM
        elif inspect.isroutine(answer) or isinstance(answer, partial):
            self.fn, self._signature = answer, Signature(answer)
            self.kind = self._signature.kind
        elif callable(answer):
            raise TypeError(f"a fallback is a value, a function or a component; wrap {answer!r} in a function")
        else:
            self.value = answer

    def given(self) -> Any:
        """Return the value for one caller: who changes it changes nobody else's."""
        try:
            hash(self.value)  # What can be hashed does not change.
        except TypeError:
            return deepcopy(self.value)
        return self.value

    def covers(self, error: BaseException) -> bool:
        """Tell whether it answers for `error`. A mistake in the calling code stays one."""
        return isinstance(error, Exception) and not isinstance(error, NotRetryable) and is_one(error, self.on)

    def widened(self, own: Any) -> Any:
        """Return the annotation of a result that is `own`, or what this gives instead."""
        if own is NO_HINT or own is Any:
            return own
        if self._signature is not None:
            other = self._signature.gives
        elif _fits(own, self.value):
            return own
        else:
            other = type(self.value)
        if other is NO_HINT or other is Any or other == own:
            return own  # What says nothing of itself has to be what the component's own annotation says.
        return Union[own, other]  # noqa: UP007 - of whatever two annotations


def _fits(own: Any, value: Any) -> bool:
    """Tell whether a value comes back from its JSON by this annotation."""

    def gives() -> None: ...

    gives.__annotations__ = {"return": own}
    signature = Signature(gives)
    try:
        signature.check_output(value, signature.dump_output(value))
    except OutputInvalid:
        return False
    return True
