"""The smallest workflow: one component finds the words, another streams them.

onward dev sdk/examples/hello.py
onward start hello --input '{"name": "Ada"}' --follow
"""

import asyncio
from collections.abc import AsyncIterator

from onward import component, status, workflow

PAUSE_S = 0.1


@component.retry(attempts=3, backoff="1s..10s").timeout("30s")
async def greeting(name: str) -> str:
    """Find the words."""
    return f"Hello {name}, this goes on while you look away."


@component
async def say(text: str) -> AsyncIterator[str]:
    """Stream them: what it yields is shown as it comes, and who awaits it gets the whole."""
    for word in text.split():
        await asyncio.sleep(PAUSE_S)  # so that there is something to watch
        yield word + " "


@workflow
async def hello(name: str = "world") -> str:
    """Greet somebody."""
    status("Thinking")
    text = await greeting(name)
    status("Speaking")
    return await say(text)
