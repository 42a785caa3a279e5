"""A clock for health checks in a process of its own, so that a busy load generator does not delay what it measures.

`python -m benchmarks.probe URL --every-ms 20` asks until its stdin ends, then prints the latencies as JSON, in ms.
The next check does not wait for the one before, so that a server that hangs is not asked less while it does.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from benchmarks.programs import ROOT, stdin_ended

_check_s_max = 30
_start_s_max = 30


@asynccontextmanager
async def probing(url: str, *, every_ms: int) -> AsyncIterator[list[float]]:
    """Latencies in ms of `GET url`, asked at a fixed rate during the block; filled in when it ends."""
    found: list[float] = []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.probe", url, "--every-ms", str(every_ms),
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=2**24,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_start_s_max):
            await process.stdout.readline()
        yield found
    finally:
        process.stdin.close()
        async with asyncio.timeout(_check_s_max + 5):
            found += json.loads(await process.stdout.readline() or "[]")
            await process.wait()


async def latencies(url: str, every_s: float, stop: asyncio.Event) -> list[float]:
    """Milliseconds from when each check was due to its whole answer; connections are kept and used again."""
    found: list[float] = []
    idle: list[_Connection] = []
    parts = urlsplit(url)
    request = f"GET {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\n\r\n".encode()

    async def check(due: float) -> None:
        connection = idle.pop() if idle else await _Connection.opened(parts.hostname or "", parts.port or 80)
        await connection.ask(request)
        found.append((time.perf_counter() - due) * 1000)
        idle.append(connection)

    due = time.perf_counter()
    async with asyncio.timeout(None) as deadline, asyncio.TaskGroup() as group:
        while not stop.is_set():
            group.create_task(check(due))
            due += every_s
            await asyncio.sleep(due - time.perf_counter())
        deadline.reschedule(asyncio.get_running_loop().time() + _check_s_max)
    return found


class _Connection:
    """HTTP/1.1 as far as a health check needs it: the cheaper the clock, the less it disturbs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def opened(cls, host: str, port: int) -> "_Connection":
        return cls(*await asyncio.open_connection(host, port))

    async def ask(self, request: bytes) -> None:
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the health check answered {head[:40]!r}")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        await self._reader.readexactly(int(length))


def main() -> None:
    """Ask until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe")
    parser.add_argument("url")
    parser.add_argument("--every-ms", type=int, default=20)
    options = parser.parse_args()

    async def ask() -> list[float]:
        stop = stdin_ended()
        print("ready", flush=True)
        return await latencies(options.url, options.every_ms / 1000, stop)

    print(json.dumps([round(each, 3) for each in asyncio.run(ask())]), flush=True)


if __name__ == "__main__":
    main()
