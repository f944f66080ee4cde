"""What budgets read off requests and responses."""

from __future__ import annotations

import json

import httpx2
import pytest

from onward.budgets import Limit
from onward.openai import Budget
from onward.openai.budgets import _limit, budget_of, duration_s, estimate


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("6m0s", 360), ("120ms", 0.12), ("1h2m3.5s", 3723.5), ("1d", 86_400), ("7.66s", 7.66), ("2", 2)]
    + [(one, 0) for one in ("", "soon", "1.2.3s", "-5", "5 parsecs", "nan", "inf", "1e400")],
)
def test_a_time_is_read_as_providers_tell_it(told: str, seconds: float) -> None:
    assert duration_s(told) == pytest.approx(seconds)


def headers(limit: str, left: str | None = None, reset: str | None = None) -> httpx2.Headers:
    said = {"limit": limit, "remaining": left, "reset": reset}
    return httpx2.Headers({f"x-ratelimit-{name}-tokens": value for name, value in said.items() if value is not None})


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        (headers("200000", "199000", "300ms"), Limit(200_000, 60, 199_000)),
        (headers("14400", "14370", "2m59.56s"), Limit(14_400, 86_400, 14_370)),
        (headers("100", "100", "0s"), Limit(100, 60, 100)),
        (headers("100"), Limit(100, 60, None)),
        (headers("0", "0"), None),
        (headers("many"), None),
        (headers("nan", "1"), None),
        (headers("-1", "1"), None),
        (httpx2.Headers(), None),
    ],
)
def test_how_long_a_limit_is_for_is_told_by_when_all_of_it_is_back(said: httpx2.Headers, limit: Limit | None) -> None:
    """A minute, an hour or a day; what makes no sense is no limit."""
    assert _limit(said, "tokens") == limit


def asked(path: str = "chat/completions", **body: object) -> int:
    request = httpx2.Request("POST", f"https://api.test/v1/{path}", content=json.dumps(body).encode())
    return estimate(request, body)


def test_an_estimate_is_the_text_and_the_longest_answer() -> None:
    """For each choice; a picture is not counted by its bytes, and embeddings have no answer."""
    text = "x" * 4_000
    assert 1_000 <= asked(input=text, max_output_tokens=0) - 1_000 < 1_050
    assert 1_000 <= asked(messages=text, max_tokens=500) - 500 < 1_050
    assert 1_000 <= asked(messages=text, max_completion_tokens=500, n=3) - 1_500 < 1_050
    assert 1_000 <= asked("embeddings", input=text) < 1_050
    assert asked(messages=f"data:image/png;base64,{text}") < 1_050
    assert asked(messages="", max_tokens="many", n=None) < 1_050


def test_a_budget_is_for_every_model_or_for_some() -> None:
    one = Budget(tokens=1)
    assert budget_of(one, "any") is one
    assert budget_of({"m": one}, "m") is one
    assert budget_of({"m": one}, "other") is None
    assert budget_of(None, "m") is None


@pytest.mark.parametrize(
    "wrong", [{"tokens": 0}, {"requests": -1}, {"tokens": float("nan")}, {"per": 0}, {"per": "1y"}]
)
def test_a_budget_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"budget|duration"):
        Budget(**wrong)  # type: ignore[arg-type]
