"""A wire between a client and the store that breaks as a test wants it to."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from urllib.parse import unquote, urlparse

import hiredis


class Proxy:
    """Passes commands and replies on. Made by `proxy_to`.

    Attributes:
        url: Where clients connect.
        lost: How many replies were lost on purpose.
        holds: Set when a command is held.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = urlparse(upstream)
        self._links: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._answering = asyncio.Event()
        self._answering.set()
        self._pattern = b""
        self._countdown = 0
        self._hold = b""
        self.url = ""
        self.lost = 0
        self.holds = asyncio.Event()

    def lose_reply(self, pattern: bytes, nth: int = 1) -> None:
        """Let the `nth` command from now that has `pattern` in one of its words be applied, lose its reply and cut."""
        self._pattern, self._countdown = pattern, nth

    def hold(self, pattern: bytes) -> None:
        """Never pass on the next command that has `pattern` in one of its words, nor what follows it."""
        self._hold = pattern
        self.holds.clear()

    def cut(self) -> None:
        """Cut every connection."""
        for link in self._links:
            link.cancel()

    def stall(self) -> None:
        """Pass nothing on in either direction until `flow`."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()
        self._answering.set()

    def hold_replies(self) -> None:
        """Let commands be done, and keep what is answered until `flow`."""
        self._answering.clear()

    def forget_links(self) -> None:
        """Pass nothing on any more over the connections that there are, and say nothing; new ones are sound."""
        self._flowing.clear()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        link = asyncio.create_task(self._link(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        link.add_done_callback(lambda _: writer.close())

    async def close(self) -> None:
        links = list(self._links)
        self.cut()
        await asyncio.gather(*links, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = self._upstream
        try:
            if there.scheme == "unix":
                server_reader, server_writer = await asyncio.open_unix_connection(unquote(there.path))
            else:
                server_reader, server_writer = await asyncio.open_connection(there.hostname, there.port)
        except OSError:
            return
        self._writers.append(server_writer)
        doomed: set[int] = set()
        ways = [
            asyncio.create_task(self._commands(reader, server_writer, doomed, self._flowing)),
            asyncio.create_task(self._replies(server_reader, writer, doomed, self._flowing)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            server_writer.close()

    async def _commands(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: set[int], flowing: asyncio.Event
    ) -> None:
        parser = hiredis.Reader()
        count = 0
        while data := await reader.read(65536):
            await flowing.wait()
            parser.feed(data)
            while (command := parser.gets()) is not False:
                count += 1
                if self._countdown and _has(command, self._pattern):
                    self._countdown -= 1
                    if not self._countdown:
                        doomed.add(count)
                if self._hold and _has(command, self._hold):
                    self.holds.set()
                    await asyncio.Event().wait()
            writer.write(data)
            await writer.drain()

    async def _replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: set[int], flowing: asyncio.Event
    ) -> None:
        parser = hiredis.Reader()
        count = 0
        while data := await reader.read(65536):
            await flowing.wait()
            await self._answering.wait()
            parser.feed(data)
            while parser.gets() is not False:
                count += 1
                if count in doomed:
                    self.lost += 1
                    return
            writer.write(data)
            await writer.drain()


def _has(command: object, pattern: bytes) -> bool:
    return isinstance(command, list) and any(pattern in word for word in command if isinstance(word, bytes))


@contextlib.asynccontextmanager
async def proxy_to(url: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    """Listen on a free port of the loopback for clients of the store at `url`, over TLS where that is given."""
    proxy = Proxy(url)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
    scheme = "redis" if tls is None else "rediss"
    proxy.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        try:
            yield proxy
        finally:
            await proxy.close()
