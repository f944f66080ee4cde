"""Seeded chaos in process: a workflow that loses its executors at random places, again and again, and is checked."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, ParamSpec, TypeVar

from onward.testing.checking import Finding, check
from onward.testing.relatives import Relative, check_relatives
from onward.testing.running import Result, crash, no_replay, run
from onward.workflows import Workflow

P = ParamSpec("P")
T = TypeVar("T")


class Broken(AssertionError):
    """A run that lost its executors did not keep what always holds.

    Attributes:
        findings: What was found.
        crashes: The offsets after which its executors died: `testing.crash(*crashes)` does it again.
    """

    def __init__(self, workflow: str, findings: list[Finding], crashes: tuple[int, ...]) -> None:
        told = "\n".join(f"  {finding}" for finding in findings)
        super().__init__(f"{workflow} under testing.crash({', '.join(map(str, crashes))}):\n{told}")
        self.findings = findings
        self.crashes = crashes


@dataclass(frozen=True, kw_only=True)
class Chaos:
    """Runs a workflow many times, each time with other crashes.

        await testing.Chaos(runs=50).run(blog_post, "tea")

    Attributes:
        runs: How often.
        crashes: How many executors each run loses, at most.
        seed: The same one gives the same crashes.
        alike: Whether every undisturbed run shows and gives the same. Then the others have to, too. Where a model or
            the world has a say it is False, and only what holds for every run is checked.
    """

    runs: int = 20
    crashes: int = 3
    seed: int = 0
    alike: bool = True

    async def run(
        self, workflow: Workflow[P, Coroutine[Any, Any, T], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[Result[T]]:
        """Run `workflow` with these arguments, and return how each run went.

        Raises:
            Broken: One of them did not keep what always holds.
            TypeError: The workflow does not take them, or they have no JSON form.
        """
        results = []
        with no_replay():
            calm = await run(workflow, *args, **kwargs)
            for number in range(self.runs):
                places = self._places(Random(f"{self.seed}/{number}"), len(calm.events))
                with crash(*places):
                    result = await run(workflow, *args, **kwargs)
                if found := self._check(result, calm if self.alike else None):
                    raise Broken(workflow.name, found, places)
                results.append(result)
        return results

    def _check(self, result: Result[Any], calm: Result[Any] | None) -> list[Finding]:
        found = check(
            result.events, record=result.record, reference=None if calm is None else calm.view, cancelled=False
        )
        family = [result, *_descendants(result)]
        for one in family[1:]:
            found += check(one.events, run_id=one.record.run_id, record=one.record)
        if result.continued_with is not None:
            family = family[1:]  # What it goes on as is not run.
        return found + check_relatives(Relative(one.events, one.record) for one in family)

    def _places(self, chance: Random, length: int) -> tuple[int, ...]:
        """Return where executors die. What an attempt adds may be as long as the first one's log, or short."""
        places: list[int] = []
        for _ in range(chance.randint(1, self.crashes)):
            last = places[-1] if places else 1
            places.append(last + chance.randint(1, max(2, length if not places else length // 2)))
        return tuple(places)


def _descendants(result: Result[Any]) -> Iterator[Result[Any]]:
    for child in result.children:
        yield child
        yield from _descendants(child)
