"""The clients: the `openai` package's own, with one seam. Inside a run what they send goes the way of an `Exchange`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from threading import get_ident
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypedDict

import httpx2
import openai
from openai import APIStatusError, NotGiven, Timeout
from typing_extensions import Unpack

from onward import secrets
from onward.components import NAME_CHARS_MAX
from onward.instance import CURRENT, Instance
from onward.openai.budgets import Budgeted
from onward.openai.exchanges import Asked, Exchange
from onward.openai.policy import DEFAULT, ModelPolicy
from onward.openai.providers import Providers, json_object
from onward.openai.shapes import fitted
from onward.openai.spans import operation
from onward.openai.sse import Decoder
from onward.openai.wires import Caller, LoopWire, ThreadWire, Wire


class Options(TypedDict, total=False):
    """What both clients take besides, as the `openai` package says."""

    admin_api_key: str | None
    organization: str | None
    project: str | None
    webhook_secret: str | None
    base_url: str | httpx2.URL | None
    websocket_base_url: str | httpx2.URL | None
    timeout: float | Timeout | NotGiven | None
    max_retries: int
    default_headers: Mapping[str, str] | None
    default_query: Mapping[str, object] | None
    _strict_response_validation: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run a request is made. Told when its method is called: what that awaits before it sends varies."""

    instance: Instance
    retries: int


_KEYS = ("authorization", "api-key", "x-api-key")
"""Headers that hold one."""

_PLACE: ContextVar[Place | None] = ContextVar("onward_openai_place", default=None)


def _place(options: Any, max_retries: int) -> Place | None:
    """Return the place of a request; None outside a run, and for what is not remembered: uploads."""
    parent = CURRENT.get()
    if parent is None or options.files is not None or not isinstance(options.content, bytes | None):
        return None
    body = options.json_data if isinstance(options.json_data, Mapping) else {}
    model = body.get("model")
    name = operation(options.url) or f"{options.method.upper()} {options.url.lstrip('/')}"
    if isinstance(model, str):
        name = f"{name} {model}"
    name = "".join(one if one.isprintable() else "?" for one in name[:NAME_CHARS_MAX])
    instance = parent.child(name, streams=body.get("stream") is True)
    return Place(instance, options.get_max_retries(max_retries))


def _keep_secret(client: openai.AsyncOpenAI | openai.OpenAI) -> None:
    for value in (client.api_key, client.admin_api_key, client.webhook_secret):
        secrets.register(value or "")
    for name, header in client.default_headers.items():
        if name.lower() in _KEYS and isinstance(header, str):
            secrets.register(header.removeprefix("Bearer "))


def _exchange(
    client: AsyncOpenAI | OpenAI, place: Place, request: httpx2.Request, base_url: httpx2.URL, wire: Wire
) -> Exchange:
    for name in _KEYS:  # A key may be made for each request.
        secrets.register(request.headers.get(name, "").removeprefix("Bearer "), passing=True)
    asked = Asked(place.instance, request, base_url, client.policy, place.retries)

    def status_error(response: httpx2.Response) -> APIStatusError:
        return client._make_status_error_from_response(response)  # noqa: SLF001 - which error it is, is the package's to say

    return Exchange(asked, request, base_url, client.policy, client.providers, client.budget, wire, status_error)


class _Reading:
    """How both clients read what comes back, in the place of how the package does."""

    def _make_sse_decoder(self) -> Any:
        own = super()._make_sse_decoder()  # type: ignore[misc]
        return own if _PLACE.get() is None else Decoder(own)  # inside a run the bytes are an `Exchange`'s

    def _process_response_data(self, *, data: object, cast_to: Any, response: httpx2.Response) -> Any:
        made = fitted(cast_to, data)
        if made is not None:
            return made
        return super()._process_response_data(data=data, cast_to=cast_to, response=response)  # type: ignore[misc]


def _with_first(providers: Providers | None, api_key: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a client's options, with the first provider's address and key where there are providers."""
    given = {"api_key": api_key, **options}
    if providers is not None:
        first = providers.all[0]
        given["base_url"] = options.get("base_url") or first.base_url
        given["api_key"] = api_key or first.api_key or "none"
    return given


def _to_first(providers: Providers | None, request: httpx2.Request, base_url: httpx2.URL) -> httpx2.Request:
    """Return a request as the first provider takes it, outside a run."""
    if providers is None or not (body := json_object(request)):
        return request
    return providers.all[0].addressed(request, base_url, body)


class AsyncOpenAI(_Reading, openai.AsyncOpenAI):
    """`openai.AsyncOpenAI`. Inside a run its calls are traced, retried, remembered, and their streams shown.

    Everything that the `openai` package offers works as it does there, and outside a run there is no difference. Inside
    one the tries are this client's: its `max_retries` and one, or what its `policy` says; errors are the package's own,
    the first time as on replay. A stream that ends before the answer does is an error. Uploads and WebSockets pass
    through and are not remembered: call those in a component.

    Where hundreds of calls are under way in one executor, `http_client=DefaultAioHttpClient()` takes a fraction of the
    processor's time for each: the pool of the default one is searched from end to end for every request. It needs
    `pip install 'onward[aiohttp]'`.

    Attributes:
        policy: How its calls are made inside a run.
        providers: Who answers them; None is the one at `base_url`.
        budget: What may be asked of that one, by all executors together. Providers have budgets of their own.
    """

    def __init__(
        self,
        *,
        api_key: str | Callable[[], Awaitable[str]] | None = None,
        http_client: httpx2.AsyncClient | None = None,
        policy: ModelPolicy = DEFAULT,
        providers: Providers | None = None,
        budget: Budgeted = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(http_client=http_client, **_with_first(providers, api_key, options))
        self.policy = policy
        self.providers = providers
        self.budget = budget
        _keep_secret(self)

    def with_policy(self, **changes: Any) -> Self:
        """Return a client whose policy has these fields of `ModelPolicy` changed. It shares this one's connections."""
        return self.copy(_extra_kwargs={"policy": replace(self.policy, **changes)})

    if not TYPE_CHECKING:  # The types are the package's.

        def copy(self, *, _extra_kwargs: Mapping[str, Any] = MappingProxyType({}), **options: Any) -> Self:
            mine = {"policy": self.policy, "providers": self.providers, "budget": self.budget, **_extra_kwargs}
            return super().copy(_extra_kwargs=mine, **options)

        with_options = copy

        async def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
            place = _place(options, self.max_retries)
            if place is not None:
                options = options.model_copy(update={"max_retries": 0})
            token = _PLACE.set(place)
            try:
                return await super().request(cast_to, options, stream=stream, stream_cls=stream_cls)
            finally:
                _PLACE.reset(token)

    async def _send_request(self, request: httpx2.Request, *, stream: bool, **options: Any) -> httpx2.Response:
        place = _PLACE.get()
        if place is None:
            request = _to_first(self.providers, request, self.base_url)
            return await super()._send_request(request, stream=stream, **options)
        send = super()._send_request
        wire = LoopWire(lambda request: send(request, stream=True, **options))
        return await _exchange(self, place, request, self.base_url, wire).respond()


class OpenAI(_Reading, openai.OpenAI):
    """`openai.OpenAI`, for synchronous components: those run in threads. See `AsyncOpenAI`.

    A thread that reads from a provider cannot be interrupted: there the limits of silence hold for each read.
    """

    def __init__(
        self,
        *,
        api_key: str | Callable[[], str] | None = None,
        http_client: httpx2.Client | None = None,
        policy: ModelPolicy = DEFAULT,
        providers: Providers | None = None,
        budget: Budgeted = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(http_client=http_client, **_with_first(providers, api_key, options))
        self.policy = policy
        self.providers = providers
        self.budget = budget
        _keep_secret(self)

    def with_policy(self, **changes: Any) -> Self:
        """Return a client whose policy has these fields of `ModelPolicy` changed. It shares this one's connections."""
        return self.copy(_extra_kwargs={"policy": replace(self.policy, **changes)})

    if not TYPE_CHECKING:  # The types are the package's.

        def copy(self, *, _extra_kwargs: Mapping[str, Any] = MappingProxyType({}), **options: Any) -> Self:
            mine = {"policy": self.policy, "providers": self.providers, "budget": self.budget, **_extra_kwargs}
            return super().copy(_extra_kwargs=mine, **options)

        with_options = copy

        def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
            place = _place(options, self.max_retries)
            if place is not None:
                if get_ident() == place.instance.journal.thread:
                    raise RuntimeError(
                        "OpenAI() would block the event loop here: use AsyncOpenAI, or a component without async"
                    )
                options = options.model_copy(update={"max_retries": 0})
            token = _PLACE.set(place)
            try:
                return super().request(cast_to, options, stream=stream, stream_cls=stream_cls)
            finally:
                _PLACE.reset(token)

    def _send_request(self, request: httpx2.Request, *, stream: bool, **options: Any) -> httpx2.Response:
        place = _PLACE.get()
        if place is None:
            request = _to_first(self.providers, request, self.base_url)
            return super()._send_request(request, stream=stream, **options)
        caller = Caller(place.instance.journal.loop)
        send = super()._send_request
        wire = ThreadWire(caller, lambda request: send(request, stream=True, **options))

        async def respond() -> httpx2.Response:
            return await _exchange(self, place, request, self.base_url, wire).respond()

        return caller.run(respond())
