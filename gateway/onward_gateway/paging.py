"""ListRunEvents: one page of a run's log, now."""

from __future__ import annotations

from onward.v1.gateway_service_pb2 import GapPolicy, ListRunEventsRequest, ListRunEventsResponse, View
from onward_runlog.errors import EventsTrimmed
from onward_runlog.reader import BATCH_BYTES_MAX, Chunk, Reader, chunk_from, cut
from onward_runlog.settled import Settling, Voids
from onward_runlog.store import Store


class Pages:
    """Reads pages of logs."""

    def __init__(self, store: Store, reader: Reader, settling: Settling) -> None:
        self._store = store
        self._reader = reader
        self._settling = settling

    async def page(self, namespace: str, request: ListRunEventsRequest, size: int) -> ListRunEventsResponse:
        """Return up to `size` events after the position, at most 1 MiB or one event.

        Raises:
            RunLogError: The position cannot be read.
        """
        start = await self._reader.start(namespace, request.run_id, request.start)
        log = start.run.log
        base, ref = self._store.place(namespace, request.run_id)
        through = min(start.resumed + size, log.last_offset)
        page = _through(start.chunk, through)
        start.sizing.saw(start.chunk)
        while page.through < through and sum(map(len, page.events)) < BATCH_BYTES_MAX:
            count = min(start.sizing.count, through - page.through)
            more = chunk_from(await self._reader.events(base, ref, page.through, count), page.through)
            if more.after != page.through:
                if page.events:
                    break  # the next page tells what was trimmed
                if request.start.on_gap != GapPolicy.GAP_POLICY_SKIP:
                    raise EventsTrimmed(more.after + 1)
                page = _through(more, through)
            elif more.events:
                page = Chunk(page.after, [*page.events, *more.events])
            else:
                break
            start.sizing.saw(more)
        page = cut(page)
        voids = Voids(())
        if request.view == View.VIEW_SETTLED:
            voids = await self._settling.voids(base, ref, log.log_id, log.last_offset)
        # The framed events are the field as it is on the wire.
        response = ListRunEventsResponse.FromString(b"".join(voids.settle(page)))
        end_hash = page.hash if page.events else start.after_hash if page.through == start.after else 0
        response.next_cursor = start.cursors.at(page.through, end_hash).decode()
        response.log.CopyFrom(log)
        response.after_offset = page.after
        response.through_offset = page.through
        return response


def _through(chunk: Chunk, through: int) -> Chunk:
    return Chunk(chunk.after, chunk.events[: max(0, through - chunk.after)])
