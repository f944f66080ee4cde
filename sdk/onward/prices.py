"""What a model call costs, by the price list in the genai-prices package: offline, as of that package's release."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

from onward.v1.run_pb2 import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

logger = logging.getLogger(__name__)

_loaded = False


async def ready() -> None:
    """Load the list, which takes half a second the first time, without holding the event loop."""
    global _loaded  # noqa: PLW0603 - one list per process
    if _loaded:
        return
    # Not in the loop's pool: all of its threads may be waiting for this.
    pool = ThreadPoolExecutor(1, "onward prices")
    try:
        await asyncio.get_running_loop().run_in_executor(pool, _micros, "gpt-4o", "https://api.openai.com/v1", 1, 1, 0)
    finally:
        pool.shutdown(wait=False)
    _loaded = True


def micros(usage: Usage, models: Sequence[str], url: str) -> int:
    """Return the price of tokens in millionths of a US dollar; 0 where the model's price is unknown.

    Args:
        usage: The tokens.
        models: Names of the model: that of which the price is known first counts.
        url: The provider's base URL.
    """
    if not usage.input_tokens and not usage.output_tokens:
        return 0
    for model in models:
        price = _micros(model, url, usage.input_tokens, usage.output_tokens, usage.cached_input_tokens)
        if price is not None:
            return price
    _note_unknown(" or ".join(dict.fromkeys(models)))
    return 0


def _micros(model: str, url: str, input_tokens: int, output_tokens: int, cached_tokens: int) -> int | None:
    priced = _priced(model, url)
    if priced is None:
        return None
    import genai_prices  # As late as its list is needed.

    provider, info = priced
    tokens = genai_prices.Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=min(cached_tokens, input_tokens) or None,
    )
    try:
        return round(info.calc_price(tokens, provider).total_price * 1_000_000)
    except ValueError:
        return None


@lru_cache(1024)
def _priced(model: str, url: str) -> tuple[Provider, ModelInfo] | None:
    """Return where a model stands in the list. A name that is not there is compared with all that are: once."""
    from genai_prices.data_snapshot import get_snapshot

    prices = get_snapshot()
    # A gateway of one's own serves models of others: then the model's name alone tells.
    for address in (url, None):
        try:
            return prices.find_provider_model(model, None, None, address)
        except LookupError:
            pass
    return None


@lru_cache(1024)
def _note_unknown(model: str) -> None:
    logger.info("no price is known for the model %s: its calls count as free", model)
