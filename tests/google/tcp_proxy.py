"""A TCP proxy that a test puts between a client and an emulator, to cut connections and to refuse new ones."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_deadline_s = 10
_chunk_bytes = 65536


class TcpProxy:
    """Counts what goes through it. `refusing` makes it hang up on whoever connects."""

    def __init__(self, target: str) -> None:
        self.host = ""
        self.refusing = False
        self.accepted = 0
        self.refused = 0
        self._target_host, _, self._target_port = target.partition(":")
        self._open: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Condition()

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._open)

    def cut(self) -> None:
        """Break all connections without a word."""
        for writer in self._open:
            writer.transport.abort()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds, looking again whenever a connection comes or goes. Raises TimeoutError after 10 s."""
        async with asyncio.timeout(_deadline_s), self._changed:
            await self._changed.wait_for(holds)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from its beginning to its end."""
        if self.refusing:
            self.refused += 1
            writer.transport.abort()
            await self._tell()
            return
        self.accepted += 1
        there, back = await asyncio.open_connection(self._target_host, int(self._target_port))
        self._open.add(writer)
        await self._tell()
        pumps = [asyncio.create_task(_pump(reader, back)), asyncio.create_task(_pump(there, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # The other one comes to an end with this.
            back.transport.abort()
            writer.transport.abort()
            await asyncio.gather(*pumps)
            self._open.discard(writer)
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def tcp_proxy(target: str) -> AsyncIterator[TcpProxy]:
    """A proxy before `target`, a host and port, on a free port of loopback."""
    proxy = TcpProxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    name, port = server.sockets[0].getsockname()
    proxy.host = f"{name}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await proxy.until(lambda: not proxy.connections)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(_chunk_bytes):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        # Cut off at one end; the other is cut by whoever waits for this.
        pass
