"""Both sides of a proxied connection: what each hears, and how it ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio


@attrs.define
class Side:
    """One side of a connection."""

    stream: trio.SocketStream
    heard: bytes = b""
    ending: str = ""
    over: trio.Event = attrs.Factory(trio.Event)

    async def listen(self) -> None:
        """Read to the end, and note what kind of end it was."""
        try:
            while data := await self.stream.receive_some(10_000):
                self.heard += data
            self.ending = "end"
        except trio.BrokenResourceError:
            self.ending = "reset"
        self.over.set()

    async def talk(self, data: bytes, *, then_end: bool = True) -> None:
        """Send, as far as anybody takes it."""
        try:
            await self.stream.send_all(data)
            if then_end:
                await self.stream.send_eof()
        except trio.BrokenResourceError:
            pass


@attrs.define
class ByteServer:
    """Sends the same bytes on every connection, and notes what it hears; or sends back what it hears."""

    answer: bytes | None
    then_end: bool = True
    address: tuple[str, int] = ("", 0)
    sides: list[Side] = attrs.Factory(list)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        side = Side(stream)
        self.sides.append(side)
        if self.answer is not None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.listen)
                await side.talk(self.answer, then_end=self.then_end)
        else:
            while data := await stream.receive_some(10_000):
                side.heard += data
                await stream.send_all(data)
        await stream.aclose()


@asynccontextmanager
async def byte_server(answer: bytes | None = None, *, then_end: bool = True) -> AsyncIterator[ByteServer]:
    """A server on a free port; without an answer it echoes."""
    server = ByteServer(answer, then_end)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, server.serve, 0)
        server.address = ("127.0.0.1", listeners[0].socket.getsockname()[1])
        yield server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_of(address: tuple[str, int]) -> AsyncIterator[Side]:
    """A client that listens from the start."""
    async with await trio.open_tcp_stream(*address) as stream, trio.open_nursery() as nursery:
        side = Side(stream)
        nursery.start_soon(side.listen)
        yield side
        nursery.cancel_scope.cancel()
