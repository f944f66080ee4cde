"""Asynchronous things for synchronous programs: one event loop in a thread, and methods that wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import closing
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, overload

P = ParamSpec("P")
R = TypeVar("R")
Target = TypeVar("Target")
Other = TypeVar("Other")


class LoopThread:
    """An event loop that runs in a thread of its own until the last user has let go of it.

    One for the whole process: grpc.aio serves one event loop well and several badly (grpc 25364).
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _shared: ClassVar[LoopThread | None] = None
    _users: ClassVar[int] = 0

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="onward-client", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls) -> LoopThread:
        """Return the process's loop, started if need be. Let go of it with `release`."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            cls._users += 1
            return cls._shared

    def release(self) -> None:
        """Let go of the loop. With the last user it ends, and whatever still ran in it is cancelled."""
        cls = type(self)
        with cls._lock:
            cls._users -= 1
            if cls._users:
                return
            cls._shared = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def wait(self, work: Coroutine[Any, Any, R]) -> R:
        """Run `work` in the loop, in the context of the caller, and return what it gives.

        An interrupt (Ctrl-C) of the caller cancels it.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def discard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work`, which ends something; not at all when the loop has ended, and it with it."""
        if not self._thread.is_alive():
            return
        if threading.current_thread() is self._thread:
            # The garbage collector may end a generator in any thread, this one too, where nobody may wait.
            task = self._loop.create_task(work())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        else:
            self.wait(work())

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            # What the runner's own `run` would wait for does not exist: the loop serves until it is stopped.
            runner.get_loop().run_forever()


class Facade(Generic[Target]):
    """The synchronous face of an asynchronous object."""

    def __init__(self, target: Target, loop: LoopThread) -> None:
        self.target = target
        self.loop = loop


class Answer(Generic[Target, P, R]):
    """A method of a facade that waits for a coroutine method of its target.

    Args:
        method: The coroutine method.
        facade: Put before what the method returns, where that is asynchronous too.
    """

    @overload
    def __init__(self, method: Callable[Concatenate[Target, P], Awaitable[R]]) -> None: ...

    @overload
    def __init__(
        self, method: Callable[Concatenate[Target, P], Awaitable[Other]], facade: Callable[[Other, LoopThread], R]
    ) -> None: ...

    def __init__(
        self,
        method: Callable[Concatenate[Target, P], Awaitable[Any]],
        facade: Callable[[Any, LoopThread], Any] = lambda result, loop: result,
    ) -> None:
        self._method = method
        self._facade = facade
        self.__doc__ = method.__doc__

    def __get__(self, facade: Facade[Target], owner: type[Facade[Target]]) -> Callable[P, R]:
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            async def work() -> Any:
                return await self._method(facade.target, *args, **kwargs)

            result: R = self._facade(facade.loop.wait(work()), facade.loop)
            return result

        return call


class Items(Generic[Target, P, R]):
    """A method of a facade that iterates an asynchronous generator method of its target.

    Closing the iterator closes the generator. Items are fetched one by one, each when it is asked for.
    """

    def __init__(self, method: Callable[Concatenate[Target, P], AsyncGenerator[R, None]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, facade: Facade[Target], owner: type[Facade[Target]]) -> Callable[P, Generator[R, None, None]]:
        def call(*args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
            source = self._method(facade.target, *args, **kwargs)
            # An interrupted fetch may still be unwinding when the generator is closed.
            turn = asyncio.Lock()

            async def fetch() -> tuple[R, ...]:
                # A coroutine cannot raise StopIteration; an empty tuple says the same.
                async with turn:
                    async for item in source:
                        return (item,)
                return ()

            async def close() -> None:
                async with turn:
                    await source.aclose()

            try:
                while item := facade.loop.wait(fetch()):
                    yield item[0]
            finally:
                facade.loop.discard(close)

        return call


class Flattened(Generic[Target, P, R]):
    """As `Items`, for a generator of sequences: each is fetched as a whole, and its items are iterated.

    A fetch goes through two threads, which is what an item would cost otherwise.
    """

    def __init__(self, method: Callable[Concatenate[Target, P], AsyncGenerator[Sequence[R], None]]) -> None:
        self._sequences = Items(method)

    def __get__(self, facade: Facade[Target], owner: type[Facade[Target]]) -> Callable[P, Generator[R, None, None]]:
        sequences = self._sequences.__get__(facade, owner)

        def call(*args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
            with closing(sequences(*args, **kwargs)) as source:
                for sequence in source:
                    yield from sequence

        return call
