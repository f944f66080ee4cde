"""Ask a person, and go on next day: the run is parked meanwhile and needs no executor.

onward dev sdk/examples/approval.py
onward start send_offer customer=Ada
onward signal RUN approval true
"""

from __future__ import annotations

import onward
from onward import component, status, workflow


@component.retry(attempts=3)
async def write(customer: str) -> str:
    return f"Dear {customer}, we have an offer for you."


@component.retry(attempts=3)
async def send(text: str) -> str:
    # What touches the world is a component: when the run wakes, this workflow runs again from its first line, and what
    # its components gave is remembered.
    return f"sent: {text}"


@workflow
async def send_offer(customer: str) -> str:
    text = await write(customer)
    status("Waiting for approval")
    try:
        approved = await onward.request_input("approval", bool, prompt=f"Send this? {text}", timeout="3d")
    except TimeoutError:
        return "nobody answered"
    if not approved:
        return "not sent"
    status("Sending it in the morning")
    await onward.sleep("12h")
    return await send(text)
