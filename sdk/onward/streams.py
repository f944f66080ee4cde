"""What a call of a streaming component gives: awaited it is the whole, read by `async for` it is item after item."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pydantic_core import to_json

from onward.calls import (
    Call,
    Failure,
    Items,
    Seen,
    Standing,
    answers,
    begin,
    close_flows,
    close_generator,
    deltas,
    each_of,
    fail,
    in_each,
    in_total,
    look_up,
    next_in_time,
    permitted,
    recorded_items,
    run,
    working,
)
from onward.failure import PASSING, component_error, contained
from onward.flights import VALUE_BYTES_MAX, Kept
from onward.instance import Instance, leave
from onward.limits import UNLIMITED, Limits
from onward.past import DELTAS, ITEMS, Places
from onward.text import well_formed
from onward.v1.run_pb2 import Payload

logger = logging.getLogger(__name__)

I_co = TypeVar("I_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)


class Stream(Coroutine[Any, Any, R_co], AsyncIterator[I_co], Generic[I_co, R_co]):
    """One call of a streaming component: `await` it for the whole, or read it once by `async for`.

    Leaving the loop early ends the component, as leaving a function does. It is a coroutine too, so that
    `asyncio.create_task` and `asyncio.gather` take it.
    """

    __slots__ = ("__weakref__", "_call", "_coroutine", "_flow")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._coroutine: Coroutine[Any, Any, R_co] | None = None
        self._flow: Flow | None = None

    # Awaited

    def _whole(self) -> Coroutine[Any, Any, R_co]:
        if self._coroutine is None:
            if self._flow is not None:
                raise RuntimeError(f"{self._call.name} is being read by `async for` already")
            self._coroutine = run(self._call)
        return self._coroutine

    def __await__(self) -> Generator[Any, None, R_co]:
        return self._whole().__await__()

    def send(self, value: Any, /) -> Any:
        return self._whole().send(value)

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> Any:
        error = typ if isinstance(typ, BaseException) else val if isinstance(val, BaseException) else typ()
        return self._whole().throw(error if tb is None else error.with_traceback(tb))

    def close(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()

    # Read

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> I_co:
        flow = self._flow
        if flow is None:
            if self._coroutine is not None:
                raise RuntimeError(f"{self._call.name} was awaited already")
            flow = self._flow = Flow(self._call)
        item: I_co = await flow.step()
        return item

    async def aclose(self) -> None:
        """End the component where it is. Its result counts as cancelled, unless it was read to the end."""
        if self._flow is not None:
            await self._flow.close()

    def __del__(self) -> None:
        # The loop that read it was left: what the component holds (a connection, a model's answer) is let go now.
        flow = getattr(self, "_flow", None)
        if flow is not None and not flow.ended:
            flow.close_soon()


class Flow:
    """The reading of a stream piece by piece. Outlives its `Stream`, so that it can be ended after that is gone.

    Attributes:
        ended: No item will follow.
        asked: Its reader waits for the next item: what it waits for itself is all that the reader waits for.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.ended = False
        self.asked = False
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Task[None] | None = None
        self._generator: AsyncIterator[Any] | None = None
        self._this: Instance | None = None
        """The try that runs."""
        self._release: Callable[[], None] | None = None
        """Gives back the try's permit."""
        self._standing: Standing | None = None
        """How far its tries have come; None before the component has begun."""
        self._again: deque[tuple[int, Any]] = deque()
        """Items that an earlier attempt had given, each with its offset."""
        self._skip = 0
        """How many of the generator's items were given so; of a text, how many characters."""
        self._skip_blank = 0
        """How many items without any text were given after the last that had some."""
        self._remembered = False
        """An earlier attempt had read it to its end."""
        self._left_s = 0.0
        """What is left of the present try's time."""
        self._first = True
        """The generator of the present try gave nothing yet."""
        self._reached = False
        """An item reached the caller: from here on the caller's code decides what a retry means."""
        self._items = Items(call.signature)
        self._seen = Seen()
        self._places = Places()
        """When the items were given, where the log does not show them."""
        self._looked_up = False
        """The cache was asked."""
        self._for_cache: list[bytes] = []
        """The items as JSON, where they are made for the cache."""
        self._cached_size = 0

    async def step(self) -> Any:
        """Return the next item, once it is in the log.

        Raises:
            StopAsyncIteration: There is none.
            ComponentError: The component failed, inside a run.
            CancelledError: The reader was cancelled, or the attempt is over.
        """
        if self.ended:
            raise StopAsyncIteration
        self.asked = True
        try:
            return await self._step()
        finally:
            self.asked = False

    async def _step(self) -> Any:
        try:
            if self._standing is None:
                await self._begin()
            if self._again:
                return await self._give_again()
            if self._remembered:
                await self._end_again()
                raise StopAsyncIteration
            if self._generator is None and self._reached:
                await self._go_on()
            while True:
                try:
                    if self._generator is None:
                        await self._open()
                    item = await self._next()
                    if (self._skip or self._skip_blank) and (item := self._unseen(item)) is None:
                        continue
                    await self._show(item)
                except StopAsyncIteration:
                    break
                except Failure as error:
                    await self._failed(error)
                    continue
                self._reached = True
                return item
        except asyncio.CancelledError:
            await self.close()
            raise
        await self._succeeded()
        raise StopAsyncIteration

    async def _begin(self) -> None:
        instance = self.call.instance
        if instance is not None:
            self._remembered = await begin(self.call, instance, gives_again=True)
            record = instance.record
            if record is not None and (self._remembered or record.items_are_used):
                self._again.extend(await recorded_items(self.call, instance))
            assert instance.parent is not None
            if instance.parent.flows is None:
                instance.parent.flows = set()
            instance.parent.flows.add(self)
        self._standing = Standing(self.call)

    async def _give_again(self) -> Any:
        """Return an item that an earlier attempt had given, in its turn."""
        instance = self.call.instance
        assert instance is not None
        offset, item = self._again[0]
        await self._turn(offset, after=not instance.voice)
        self._again.popleft()
        self._reached = True
        self._items.check(item)
        if not self._remembered:
            assert instance.record is not None
            instance.record.trail.match()
            if not self._items.is_text:
                self._skip += 1
            elif item:
                self._skip += len(item)
                self._skip_blank = 0
            else:
                self._skip_blank += 1
            self._keep(item)
        return item

    async def _end_again(self) -> None:
        """End as it had ended.

        Raises:
            ComponentError: It had failed.
        """
        instance = self.call.instance
        assert instance is not None
        record = instance.record
        assert record is not None
        await self._turn(record.finished_offset)
        self._end()
        if record.error is not None:
            raise component_error(self.call.name, record.error)

    async def _go_on(self) -> None:
        """Have the generator begin after what an earlier attempt had given, in its turn."""
        instance = self.call.instance
        assert instance is not None
        assert instance.record is not None
        if instance.record.outcome:
            # It had been left here. Likely it is left again, and does not run at all.
            await self._turn(instance.record.finished_offset)

    async def _turn(self, offset: int, *, after: bool = False) -> None:
        assert self.call.instance is not None
        await self.call.instance.journal.turns.turn(offset, yields=True, after=after)

    def _unseen(self, item: Any) -> Any:
        """Return what of an item was not given before; None where all of it was."""
        self._items.check(item)
        if not self._items.is_text:
            self._skip -= 1
            return None
        if not item:
            self._skip_blank -= not self._skip
            return None
        given = min(self._skip, len(item))
        self._skip -= given
        if given < len(item):
            self._skip_blank = 0
        return item[given:] or None

    async def _open(self) -> None:
        """Begin the next try, or the fallback."""
        standing = self._standing
        assert standing is not None
        kept = None
        async with in_total(self.call, standing):
            if self.call.policy.cache is not None and not self._looked_up and not standing.fell_back:
                self._looked_up = True
                kept = await self._look_up()
                if self._reached:
                    # What an earlier attempt gave of it is no part of what another run is to get.
                    self._land(kept=False)
            self._this = await standing.begin()
            if kept is None and not standing.fell_back and self.call.policy.concurrency is not None:
                self._release = await self._permitted(standing)
        if not self._reached:
            self._items = Items(self.call.signature)
        self._first = True
        if standing.fell_back:
            self._generator = answers(self.call)
            return
        if kept is not None:
            self._generator = each_of(kept)
            return
        self._left_s = self.call.policy.limits.each_s or 0.0
        if not self._reached:
            self._left_s -= time.monotonic() - standing.try_began
        self._generator = self.call.signature.fn(*self.call.args, **self.call.kwargs)

    async def _look_up(self) -> Kept | None:
        if self.call.instance is None:
            return None
        with working(self.call.instance):
            return await look_up(self.call)

    async def _permitted(self, standing: Standing) -> Callable[[], None] | None:
        if self._this is None:
            return None
        with working(self._this):
            return await permitted(self.call, self._this, standing)

    def _land(self, *, kept: bool) -> None:
        """End the flight, if it has one."""
        flight = self.call.flight
        if flight is None or not kept:
            if flight is not None:
                flight.release()
        elif self._items.is_text is False:
            flight.keep(b"[%b]" % b",".join(self._for_cache))
        else:
            text = b"".join(data[1:-1] for data in self._for_cache)
            flight.keep(b'["%b"]' % text if text else b"[]")

    async def _next(self) -> Any:
        this, limits, standing = self._this, self.call.policy.limits, self._standing
        assert standing is not None
        # Only while the generator runs is its instance the current one: between two items its reader's is.
        token = this.enter() if this is not None else None
        try:
            if limits is UNLIMITED or standing.fell_back:
                return await self._anext(UNLIMITED)
            began = time.monotonic()
            try:
                async with in_total(self.call, standing), in_each(self.call, this, self._left_s):
                    return await self._anext(limits)
            finally:
                # The time that the reader takes between two items is not the component's.
                self._left_s -= time.monotonic() - began
        finally:
            if token is not None:
                leave(token)

    async def _anext(self, limits: Limits) -> Any:
        assert self._generator is not None
        first, self._first = self._first, False
        try:
            if self._this is None or self._this.journal.replay is None:
                return await next_in_time(self._generator, limits, first=first)
            with working(self._this):
                return await next_in_time(self._generator, limits, first=first)
        except PASSING:
            raise
        except BaseException as error:
            raise contained(error, self.call.name) from error

    async def _show(self, item: Any) -> None:
        self._items.check(item)
        this = self._this
        if this is None:
            return
        this.check()
        if self._items.is_text is not True:
            self.call.signature.check_item(item, self.call.signature.dump_item(item))
        if this.voice:
            events = list(await deltas(self.call, this, self._items, item))
            offset = await this.journal.append(*events)
            if not events and this.record is not None:
                offset = this.record.trail.last or offset  # There it stands already, before what followed it.
            await this.journal.turns.turn(offset)
        else:
            self._places.add(this.journal.turns.newest)
        self._keep(item)

    def _keep(self, item: Any) -> None:
        """Keep what readers see of it, and what a later attempt needs that the log does not hold."""
        is_text = self._items.is_text is True
        data = to_json(well_formed(item)) if is_text else self.call.signature.dump_item(item)
        assert self.call.instance is not None
        self._seen.add(data, is_text=is_text, keep=not self.call.instance.voice)
        flight = self.call.flight
        if flight is not None and not flight.landed:
            self._for_cache.append(data)
            self._cached_size += len(data)
            if self._cached_size > VALUE_BYTES_MAX:
                flight.release()
                self._for_cache.clear()

    async def _memo(self) -> Payload:
        """Return what gives a later attempt the items again."""
        instance = self.call.instance
        assert instance is not None
        if instance.voice:
            return Payload(media_type=DELTAS)
        memo = await instance.journal.stored(b"[%b]" % b",".join(self._seen.items))
        memo.media_type = ITEMS
        return memo

    async def _failed(self, error: BaseException) -> None:
        """Have another try or the fallback begin where the policy allows it, else end with the error."""
        standing, fallback = self._standing, self.call.policy.fallback
        assert standing is not None
        delay_s = None
        falls_back = False
        if not self._reached and not standing.fell_back:
            delay_s = standing.delay_s(error)
            falls_back = delay_s is None and fallback is not None and fallback.covers(error)
        try:
            await self._stop_try()
        except Failure:
            logger.warning("%s failed to clean up", self.call.name, exc_info=True)  # What it had failed with counts.
        await standing.stop()
        instance = self.call.instance
        if delay_s is None and not falls_back:
            self._end()
            self._land(kept=False)
            if instance is None:
                raise error
            memo = await self._memo() if self._reached else None
            await fail(self.call, instance, error, memo, self._places.beside(instance.id))
        standing.failed(error, delay_s or 0.0, fallback=falls_back)
        if falls_back:
            self._land(kept=False)
        self._generator = None
        self._seen = Seen()
        self._places = Places()
        self._for_cache.clear()
        self._cached_size = 0

    async def _succeeded(self) -> None:
        await self._stop_try()
        self._end()
        instance = self.call.instance
        if instance is not None:
            private = self.call.policy.private
            output = None if private else self._seen.payload(is_text=self._items.is_text is not False)
            self._land(kept=True)
            places = self._places.beside(instance.id)
            await instance.journal.finished(
                instance, output, await self._memo(), beside=places, cached=self.call.cached
            )

    async def _stop_try(self) -> None:
        """Let the generator clean up, which may have been left between two items, and give its permit back."""
        try:
            await self._stop_generator()
        finally:
            release, self._release = self._release, None
            if release is not None:
                release()

    async def _stop_generator(self) -> None:
        this, generator = self._this, self._generator
        if generator is None:
            return
        if this is None:
            await close_generator(generator)
            return
        token = this.enter()
        try:
            await close_generator(generator)
        finally:
            try:
                if this.flows:
                    await close_flows(this)
            finally:
                this.ended = True
                leave(token)

    def _end(self) -> None:
        self.ended = True
        instance = self.call.instance
        if instance is not None and instance.parent is not None and instance.parent.flows:
            instance.parent.flows.discard(self)

    async def close(self) -> None:
        """End it where it is: cancelled, unless it has ended."""
        if self._closing is not None and self._closing is not asyncio.current_task():
            await self._closing
        if self.ended:
            return
        self.ended = True
        self._land(kept=False)
        try:
            await self._stop_try()
        finally:
            self._end()
            if self._standing is not None and not self._remembered:
                self._write_cancelled()

    def _write_cancelled(self) -> None:
        if self.call.instance is not None:
            self.call.instance.journal.cancelled(self.call.instance, ran=self._this is not None)

    def close_soon(self) -> None:
        """`close`, from where nothing can be awaited. Whoever called the component waits for it before it ends."""
        try:
            self._loop.call_soon_threadsafe(self._start_closing)
        except RuntimeError:
            pass  # The loop is gone, and everything with it.

    def _start_closing(self) -> None:
        if not self.ended and self._closing is None:
            self._closing = self._loop.create_task(self._close_alone())

    async def _close_alone(self) -> None:
        try:
            await self.close()
        except Failure:
            logger.warning("%s failed to clean up", self.call.name, exc_info=True)
