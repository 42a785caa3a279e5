"""A server that takes every connection and never says a word, which is worse than one that is not there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc
import grpc.aio

_deadline_s = 10


class Silence:
    """Where it is, and who came."""

    def __init__(self) -> None:
        self.host = ""
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._asked = asyncio.Event()
        self._ended = False

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    async def asked(self) -> None:
        """Wait until somebody has said something. Raises TimeoutError after 10 s."""
        async with asyncio.timeout(_deadline_s):
            await self._asked.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the other side leaves."""
        self.connections += 1
        self._writers.add(writer)
        if self._ended:
            writer.transport.abort()
        try:
            while await reader.read(65536):
                self._asked.set()
        except OSError:
            # Cut off by the other side, or by us at the end.
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def end(self) -> None:
        """Cut all connections, and see them off: one that outlives its event loop breaks a later test."""
        self._ended = True
        for writer in list(self._writers):
            writer.transport.abort()
        # One that has just been accepted is shown to `serve` some turns of the loop later.
        turns = 10
        while turns or self._writers:
            turns = max(turns - 1, 0)
            await asyncio.sleep(0)


@asynccontextmanager
async def silence() -> AsyncIterator[Silence]:
    """One on a free port of loopback."""
    silent = Silence()
    server = await asyncio.start_server(silent.serve, "127.0.0.1", 0)
    silent.host = "{}:{}".format(*server.sockets[0].getsockname())
    try:
        yield silent
    finally:
        server.close()
        await silent.end()
        await server.wait_closed()


async def grpc_settled() -> None:
    """Return when gRPC has told all that it had to tell of calls which were broken off.

    It tells the event loop that began a call, and is upset, in whichever test comes next, when that is closed. A call
    that fails by itself is told of after these.
    """
    async with grpc.aio.insecure_channel("127.0.0.1:9") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/nobody/Listens")
        with suppress(grpc.aio.AioRpcError):
            await call(b"", timeout=_deadline_s)
