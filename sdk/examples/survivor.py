"""A text is written by whoever is alive: what holds it may be killed in mid-sentence, and it goes on.

    make demo-crash

or, with a server of your own:

    onward dev sdk/examples/survivor.py --executors 2
    onward start story --input '{"topic": "tea"}' --follow        # then: kill -9 the process that it names

Nothing here is about crashes but the name of the process in a status, so that there is something to aim at.
"""

import os
from collections.abc import AsyncIterator

import model
from onward import component, status, workflow

PARAGRAPHS = 3


@component.retry(attempts=4, backoff="1s..30s", never=model.REFUSED).timeout("2m")
async def paragraph(topic: str, number: int) -> AsyncIterator[str]:
    """Write one paragraph."""
    status(f"process {os.getpid()} writes paragraph {number} of {PARAGRAPHS}")
    async for text in model.write(f"Write paragraph {number} of a short text about {topic}, of three sentences."):
        yield text


@workflow
async def story(topic: str) -> AsyncIterator[str]:
    """Write some paragraphs, one after another, word by word."""
    status(f"Model: {model.in_use().note}")
    for number in range(1, PARAGRAPHS + 1):
        async for text in paragraph(topic, number):
            yield text
        yield "\n\n"
