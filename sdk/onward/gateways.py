"""The Gateways that a client knows: which one it asks, and how long it goes on while none answers."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import grpc

from onward.errors import RequestError, Unavailable
from onward.v1.gateway_service_pb2_grpc import GatewayServiceStub
from onward.wire import error_of

if TYPE_CHECKING:
    from onward.v1.gateway_service_pb2_grpc import GatewayServiceAsyncStub

ANSWER_S = 10.0
"""Seconds that one try of a call that answers at once may take."""

MESSAGE_BYTES_MAX = 8 * 1024 * 1024
"""Longest message that is taken in. Gateways send at most 1 MiB of events or of a blob, and inputs of up to 3 MiB."""

BACKOFF_S = (0.1, 5.0)
"""Seconds between rounds over all Gateways: the first pause, doubled each time up to the last; with full jitter."""

PORT_MAX = 65_535

_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # Servers refuse pings that come more often than every 30 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # How long a connection attempt may take (20 s by default), and how soon a Gateway that was down is tried again.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Gateways:
    """Connections to Gateways, one each, made when first used. Any of them answers for any run.

    All calls go to one Gateway until it fails or hands over; then all go to the next.

    Args:
        addresses: HOST:PORT of each, or https://HOST:PORT for one that encrypts.
        patience_s: Seconds that a call, or a stream without progress, goes on while nobody answers.
        api_key: Sent with every call; empty sends none.
        ca: Authorities to believe, in PEM, where one encrypts; None is those that are known to everybody.

    Raises:
        ValueError: One is no address.
    """

    def __init__(self, addresses: Sequence[str], patience_s: float, api_key: str = "", ca: bytes | None = None) -> None:
        self._targets = {address: _target(address) for address in addresses}
        self._ca = ca
        self.addresses = addresses
        self._patience_s = patience_s
        self._credentials = [("authorization", f"Bearer {api_key}")] if api_key else []
        self._turn = 0
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[str, GatewayServiceAsyncStub] = {}
        self._closed = False

    @property
    def address(self) -> str:
        """The Gateway in use."""
        return self.addresses[self._turn]

    @property
    def stub(self) -> GatewayServiceAsyncStub:
        """The Gateway in use, to call it.

        Raises:
            RuntimeError: The client was closed.
        """
        if self._closed:
            raise RuntimeError("the client is closed")
        address = self.address
        if address not in self._stubs:
            encrypted, target = self._targets[address]
            if encrypted:
                channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(self._ca), _OPTIONS)
            else:
                channel = grpc.aio.insecure_channel(target, _OPTIONS)
            self._channels[address] = channel
            self._stubs[address] = GatewayServiceStub(channel)
        return self._stubs[address]

    def leave(self, address: str) -> None:
        """Turn to the next Gateway, unless somebody else has turned away from `address` already."""
        if address == self.address:
            self._turn = (self._turn + 1) % len(self.addresses)

    def patience(self) -> Patience:
        """Return a fresh patience for one call or one stream."""
        return Patience(self._patience_s, len(self.addresses))

    async def ask(
        self,
        method: Callable[[GatewayServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, Answer]],
        request: Request,
        *,
        timeout_s: float = ANSWER_S,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Answer:
        """Call a method that may be repeated, until somebody answers.

        Args:
            method: Picks it from a stub.
            request: What to ask.
            timeout_s: Seconds that one try may take.
            metadata: Sent along.

        Raises:
            RequestError: It was refused, or nobody answered.
            RuntimeError: The client was closed.
        """
        patience = self.patience()
        while True:
            address = self.address
            cancelled = _cancellation()
            try:
                return await method(self.stub)(request, timeout=timeout_s, metadata=[*self._credentials, *metadata])
            except grpc.aio.AioRpcError as failure:
                error = error_of(failure)
            except asyncio.CancelledError:
                if cancelled() or not self._closed:
                    raise
                raise RuntimeError("the client is closed") from None
            if not isinstance(error, Unavailable):
                raise error
            self.leave(address)
            await patience.wait(error)

    def stream(
        self,
        method: Callable[[GatewayServiceAsyncStub], grpc.aio.UnaryStreamMultiCallable[Request, Answer]],
        request: Request,
        *,
        silence_s: float,
    ) -> Stream[Request, Answer]:
        """Open a stream at the Gateway in use. Repeating it is up to the caller, who knows where it was.

        Args:
            method: Picks it from a stub.
            request: What to ask.
            silence_s: Seconds without a message after which it is given up.
        """
        # No deadline: the server bounds a stream's life, and silence ends it.
        call = method(self.stub)(request, metadata=self._credentials)
        return Stream(call, self.address, silence_s, lambda: self._closed)

    async def close(self) -> None:
        """Close the connections; calls under way end."""
        self._closed = True
        for channel in self._channels.values():
            await channel.close()


def _target(address: str) -> tuple[bool, str]:
    """Return whether a Gateway encrypts, and what gRPC calls its address."""
    scheme, separator, target = address.rpartition("://")
    target = target.removesuffix("/")
    strange = separator and (scheme not in ("http", "https") or "/" in target)
    # gRPC would take the rest of a port above the highest, and ask somebody else.
    port = re.search(r":([0-9]+)$", target, re.ASCII)
    if strange or (port is not None and int(port[1]) > PORT_MAX):
        raise ValueError(f"{address!r} is no address of a Gateway: HOST:PORT, or https://HOST:PORT where it encrypts")
    return scheme == "https", target


class Stream(Generic[Request, Answer]):
    """A stream of answers. Close it in any case: gRPC never ends an abandoned one."""

    def __init__(
        self,
        call: grpc.aio.UnaryStreamCall[Request, Answer],
        address: str,
        silence_s: float,
        disconnected: Callable[[], bool],
    ) -> None:
        self._call = call
        self._disconnected = disconnected
        self._address = address
        self._silence_s = silence_s
        self._silent = False

    async def read(self) -> Answer | None:
        """Return the next answer, None when the server has ended the stream without an error.

        Raises:
            Unavailable: The stream was cut, or was silent for too long.
            RequestError: The server ended it with another error.
        """
        cancelled = _cancellation()
        # Not asyncio.timeout() around the read, which leaks in grpc (43360); and only while reading: a slow reader is
        # no silence of the server.
        alarm = asyncio.get_running_loop().call_later(self._silence_s, self._give_up)
        try:
            answer = await self._call.read()
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from None
        except asyncio.CancelledError:
            # Either the call was cancelled, by the alarm or because the client was closed, or this task was. That may
            # have been before it came here: a signal handler (Ctrl-C) cancels it in the middle of whatever it does.
            if cancelled() or not (self._silent or self._disconnected()):
                raise
            why = f"was silent for {self._silence_s:g} s" if self._silent else "was disconnected"
            raise Unavailable(f"{self._address} {why}") from None
        finally:
            alarm.cancel()
        return None if answer is grpc.aio.EOF else cast(Answer, answer)

    def close(self) -> None:
        """End the stream."""
        self._call.cancel()

    def _give_up(self) -> None:
        self._silent = True
        self._call.cancel()


def _cancellation() -> Callable[[], bool]:
    """Return what tells whether the running task was cancelled from now on, and not merely what it awaits."""
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    return lambda: task is None or task.cancelling() > before


class Patience:
    """How long to go on, and how fast, while nobody answers.

    Args:
        limit_s: Seconds from the first failure, after which the next one counts.
        gateways: How many there are to turn to.
    """

    def __init__(self, limit_s: float, gateways: int) -> None:
        self._limit_s = limit_s
        self._gateways = gateways
        self._failures = 0
        self._end = 0.0

    def reset(self) -> None:
        """There was progress: the next failure is the first."""
        self._failures = 0

    async def wait(self, error: RequestError, *, at_least_s: float = 0.0) -> None:
        """Wait until the next try is due: at once while there are Gateways that were not asked yet.

        Args:
            error: Why another try is needed.
            at_least_s: Seconds that the server wants to pass in any case.

        Raises:
            RequestError: `error`, when the next try would be too late.
        """
        now = asyncio.get_running_loop().time()
        if not self._failures:
            self._end = now + self._limit_s
        self._failures += 1
        rounds, untried = divmod(self._failures, self._gateways)
        delay_s = at_least_s
        if not untried:
            first_s, last_s = BACKOFF_S
            # Jitter on top of what was asked for: whom one Gateway sends away must not come back together.
            delay_s = max(at_least_s, error.retry_after_s) + random.uniform(
                0, min(last_s, first_s * 2 ** min(rounds, 16))
            )
        if now + delay_s > self._end:
            raise error
        await asyncio.sleep(delay_s)
