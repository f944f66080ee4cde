"""Onward runs long agent workflows and never loses the thread."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onward.chance import now as now
    from onward.chance import random as random
    from onward.chance import uuid as uuid
    from onward.children import Child as Child
    from onward.children import start_child as start_child
    from onward.client import Client as Client
    from onward.client import SyncClient as SyncClient
    from onward.components import Component as Component
    from onward.components import component as component
    from onward.continuing import continue_as as continue_as
    from onward.errors import ComponentError as ComponentError
    from onward.errors import Denied as Denied
    from onward.errors import InternalError as InternalError
    from onward.errors import InvalidInput as InvalidInput
    from onward.errors import InvalidRequest as InvalidRequest
    from onward.errors import LimitReached as LimitReached
    from onward.errors import NotFound as NotFound
    from onward.errors import OnwardError as OnwardError
    from onward.errors import PositionLost as PositionLost
    from onward.errors import RequestError as RequestError
    from onward.errors import RequestReused as RequestReused
    from onward.errors import RunFailed as RunFailed
    from onward.errors import RunNotFound as RunNotFound
    from onward.errors import Unavailable as Unavailable
    from onward.errors import Untrusted as Untrusted
    from onward.errors import WaitTimeout as WaitTimeout
    from onward.errors import WorkflowNotFound as WorkflowNotFound
    from onward.errors import WrongState as WrongState
    from onward.mapping import map as map  # noqa: A004 - read as `onward.map`
    from onward.show import publish as publish
    from onward.show import status as status
    from onward.streams import Stream as Stream
    from onward.views import View as View
    from onward.views import fold as fold
    from onward.waiting import request_input as request_input
    from onward.waiting import signal as signal
    from onward.waiting import sleep as sleep
    from onward.workflows import Workflow as Workflow
    from onward.workflows import workflow as workflow

__version__ = "0.1.0"

# Imported when first asked for: who wants only the contract (`onward.v1`) does not pay for the rest.
_HOMES = {
    "Client": "client",
    "SyncClient": "client",
    "View": "views",
    "fold": "views",
    "Component": "components",
    "component": "components",
    "map": "mapping",
    "Child": "children",
    "start_child": "children",
    "continue_as": "continuing",
    "now": "chance",
    "random": "chance",
    "uuid": "chance",
    "publish": "show",
    "status": "show",
    "Stream": "streams",
    "request_input": "waiting",
    "signal": "waiting",
    "sleep": "waiting",
    "Workflow": "workflows",
    "workflow": "workflows",
    **dict.fromkeys(
        (
            "ComponentError",
            "Denied",
            "InternalError",
            "InvalidInput",
            "InvalidRequest",
            "LimitReached",
            "NotFound",
            "OnwardError",
            "PositionLost",
            "RequestError",
            "RequestReused",
            "RunFailed",
            "RunNotFound",
            "Unavailable",
            "Untrusted",
            "WaitTimeout",
            "WorkflowNotFound",
            "WrongState",
        ),
        "errors",
    ),
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'onward' has no attribute {name!r}")
    value = getattr(import_module(f"onward.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
