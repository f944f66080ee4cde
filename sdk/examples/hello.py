"""The smallest workflow: one component that thinks, one that streams what it says word by word.

onward dev sdk/examples/hello.py
onward start hello --input '{"name": "Ada"}' --follow
"""

import asyncio
from collections.abc import AsyncIterator

from onward import component, status, workflow

PAUSE_S = 0.1


@component
async def greeting(name: str) -> str:
    """Find the words."""
    return f"Hello {name}, this run goes on while you look away."


@component
async def say(text: str) -> AsyncIterator[str]:
    """Stream the text: who yields is read as it comes, and who awaits gets the whole."""
    for word in text.split(" "):
        await asyncio.sleep(PAUSE_S)
        yield f"{word} "


@workflow
async def hello(name: str = "world") -> str:
    """Greet somebody, slowly."""
    status("Thinking")
    text = await greeting(name)
    status("Speaking")
    return (await say(text)).strip()


if __name__ == "__main__":
    print(asyncio.run(greeting("Ada")))  # outside a run a component is a function
