"""The seam between model calls and what all executors together may ask of a provider: limits by name, in one place.

A call reserves what it will likely use, and is told to go or when to ask again; who waits need not poll, and tenants
that want more than there is get the same share each. What it really used is settled afterwards. Implemented on Redis by
`onward_runlog`. Without budgets (in tests by `onward.testing`) nobody waits.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

LEARNED_S = 600.0
"""How long what a provider said of its limits is gone by, after it last did."""


class Caller(NamedTuple):
    """Who asks.

    Attributes:
        call: Names one try of one call: its run, its instance, its number.
        attempt: The attempt of the run. A later one takes the place in line over.
        tenant: Whose share it is.
    """

    call: str
    attempt: int
    tenant: str


class Limit(NamedTuple):
    """What a provider allows in a window.

    Attributes:
        amount: Tokens or requests.
        window_s: In how many seconds.
        left: What is left of it now; None where that is not known.
    """

    amount: float
    window_s: float
    left: float | None = None


class Budgets(Protocol):
    """Limits by name. One event loop uses it. A name stands for one provider, model and key."""

    def limited(self, name: str) -> bool:
        """Tell whether a provider has shown that it limits `name`, to whomever. Asks nobody."""

    async def reserve(
        self, name: str, caller: Caller, asked: int, *, tokens: float | None, requests: float | None, window_s: float
    ) -> float | None:
        """Reserve what a call will likely use.

        Args:
            name: The budget.
            caller: Who asks. The same caller may ask again: it has one reservation.
            asked: Tokens that the call may use. What calls really used of theirs is learned, and reserved is as much.
            tokens: How many there are in a window; None is without limit.
            requests: How many, likewise.
            window_s: How long it is.

        Returns:
            Seconds after which it is likely its turn, and it is to ask again; 0 where it may go now. Who goes settles.
            None: there is no limit at all, and nothing to settle.

        Raises:
            ConnectionError: The budgets do not answer.
        """

    def settle(self, name: str, caller: Caller, *, tokens: int | None = None, requests: int = 1) -> None:
        """Tell what was used, or give up a place in line. Nobody waits for this; it may be lost.

        Args:
            name: The budget.
            caller: Who reserved it.
            tokens: None is as much as was reserved.
            requests: 0 where the provider has counted none.
        """

    def learn(
        self, name: str, *, refused: bool, after_s: float | None, tokens: Limit | None, requests: Limit | None
    ) -> None:
        """Tell what a provider said. Nobody waits for this.

        Args:
            name: The budget.
            refused: It took the call for one too many: nobody asks before its time.
            after_s: When that is; None where it did not say: a while, longer with each refusal.
            tokens: Its limit; None where it did not say.
            requests: Likewise.
        """
