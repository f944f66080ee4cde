"""A run's log, followed to its end across everything that cuts a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence

from onward.continuity import Continuity, EventsMissing
from onward.errors import InternalError, LimitReached, PositionLost, RequestError, Unavailable
from onward.gateways import Gateways, Stream
from onward.v1.event_pb2 import Event
from onward.v1.gateway_service_pb2 import Position, SubscribeRunRequest, SubscribeRunResponse, View
from onward.v1.run_pb2 import Run


class _HandedOver(Exception):
    """The Gateway ended the stream as planned, and wants this much time to pass before the next."""

    def __init__(self, retry_delay_s: float) -> None:
        super().__init__("the stream was handed over")
        self.retry_delay_s = retry_delay_s


class Subscription:
    """One reader's way through a run's log. Read it once.

    Args:
        gateways: Whom to ask.
        run_id: The run.
        start: Where to begin.
        view: Which events to read.
        heartbeat_s: Longest silence asked of the server. A stream that is silent for twice as long is given up.
        on_connection: Called with the error when the stream is cut, and with None when another one goes on. A stream
            that is handed over as planned is not cut.

    Attributes:
        run: The run as it ended; None before.
    """

    def __init__(
        self,
        gateways: Gateways,
        run_id: str,
        *,
        start: Position,
        view: View.ValueType,
        heartbeat_s: float,
        on_connection: Callable[[RequestError | None], None] | None = None,
    ) -> None:
        self.run: Run | None = None
        self._gateways = gateways
        self._patience = gateways.patience()
        self._request = SubscribeRunRequest(run_id=run_id, start=start, view=view)
        self._request.heartbeat.FromNanoseconds(int(heartbeat_s * 1e9))
        self._silence_s = 2 * heartbeat_s
        self._continuity = Continuity(start, view)
        self._log_id = start.log_id
        self._missed_after: int | None = None
        self._on_connection = on_connection
        self._cut = False

    async def batches(self) -> AsyncGenerator[Sequence[Event], None]:
        """Yield the events in order, once each, to the log's end; together what came together.

        Raises:
            RequestError: The log cannot be read, or not from there; nobody answers; or the server leaves events out.
        """
        stream: Stream[SubscribeRunRequest, SubscribeRunResponse] | None = None
        try:
            while self.run is None:
                address = self._gateways.address
                try:
                    if stream is None:
                        # No deadline: the server bounds the stream's life, and silence ends it.
                        stream = self._gateways.stream(
                            lambda stub: stub.SubscribeRun, self._request, silence_s=self._silence_s
                        )
                    response = await stream.read()
                    if response is not None:
                        self._connected(None)
                    events = self._take(response)
                except (Unavailable, LimitReached, InternalError, EventsMissing, _HandedOver) as cut:
                    if stream is not None:
                        stream.close()
                        stream = None
                    self._gateways.leave(address)
                    await self._recover(cut)
                    continue
                if events:
                    yield events
        finally:
            if stream is not None:
                stream.close()

    def _take(self, response: SubscribeRunResponse | None) -> Sequence[Event]:
        """Return the events that a message brings, and remember where to go on after it."""
        if response is None:
            raise Unavailable("the Gateway ended the stream before the end of the log")
        events: Sequence[Event] = ()
        match response.WhichOneof("message"):
            case "opened":
                self._continuity.begin(response.opened.after_offset)
                self._log_id = response.opened.run.log.log_id
            case "batch":
                batch = response.batch
                events = self._continuity.take(batch.events, batch.after_offset, batch.through_offset)
                self._patience.reset()
            case "bookmark":
                self._continuity.end(response.bookmark.offset)
                self._patience.reset()
            case "gap":
                # Never asked for.
                raise PositionLost(f"events {response.gap.first_missing} to {response.gap.last_missing} were trimmed")
            case "completed":
                self._continuity.end(response.completed.run.log.last_offset)
                self.run = response.completed.run
        if response.cursor:
            self._request.start.after_cursor = response.cursor
        if response.HasField("handoff"):
            raise _HandedOver(response.handoff.retry_delay.ToTimedelta().total_seconds())
        return events

    async def _recover(self, cut: Exception) -> None:
        """Wait until it is time to reconnect."""
        match cut:
            case _HandedOver():
                await self._patience.wait(Unavailable(str(cut)), at_least_s=cut.retry_delay_s)
            case EventsMissing():
                through = self._continuity.through
                if through is None or through == self._missed_after:
                    raise InternalError(f"the Gateway left out events: {cut}") from None
                self._missed_after = through
                # The cursor is the server's own idea of where this reader is, and that is what is in doubt.
                self._request.start.after_offset = through
                self._request.start.log_id = self._log_id
                await self._patience.wait(Unavailable(str(cut)))
            case RequestError():
                self._connected(cut)
                await self._patience.wait(cut)
            case _:
                raise cut

    def _connected(self, cut: RequestError | None) -> None:
        """Tell whether somebody answers, once for each change."""
        if self._cut == (cut is not None):
            return
        self._cut = cut is not None
        if self._on_connection is not None:
            self._on_connection(cut)
