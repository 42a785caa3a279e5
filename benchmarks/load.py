"""The client side: one job from photo to picture against Darkroom or a handler, and the ways to ask for many.

It runs in the benchmark's own process on aiohttp, which costs it about a third of a millisecond a request; still it
shares the machine's cores with what it measures.
"""

import asyncio
import json
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
from yarl import URL

job_s_max = 60.0
_chunk_bytes = 64 * 1024
# aiohttp warns that one write of 4 MB may hold up the loop; here that is one copy into the socket's buffer.
warnings.filterwarnings("ignore", category=ResourceWarning, module="aiohttp")


@dataclass(frozen=True, slots=True)
class Done:
    """One job that came to its picture; milliseconds as the client saw them.

    `told_ms` is from the end of the upload to the news that the job is completed, `total_ms` from the first byte sent
    to the last byte of the picture. `parts` are the job's own timings.
    """

    total_ms: float
    ended_at: float
    create_ms: float = 0.0
    upload_ms: float = 0.0
    told_ms: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


class Subject(Protocol):
    """Something that makes a picture from a photo. Raises RuntimeError or TimeoutError if it does not."""

    async def job(self, photo: bytes) -> Done: ...


class Lost(RuntimeError):
    """A job did not come to its picture."""


class Darkroom:
    """Create, listen, upload, be told, fetch the picture: five requests, as an app makes them."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = URL(url)
        self._number = 0

    async def create(self) -> dict[str, Any]:
        """A new portrait's job. Each has a prompt of its own, so that none is answered from a cache."""
        self._number += 1
        body = {"kind": "portrait", "prompt": f"benchmark {self._number}"}
        async with self._session.post(self._url / "v1/jobs", json=body) as answer:
            if answer.status != 201:
                raise Lost(f"POST /v1/jobs answered {answer.status}: {(await answer.text())[:300]}")
            created: dict[str, Any] = json.loads(await answer.read())
            return created

    async def upload(self, job: Mapping[str, Any], photo: bytes, *, bytes_per_s: float | None = None) -> None:
        """Put the photo where the job wants it, as fast as it goes or no faster than that."""
        wanted = job["upload"]
        url = URL(wanted["url"], encoded=True)
        headers = {**wanted["headers"], "content-length": str(len(photo))}
        data = photo if bytes_per_s is None else _slowly(photo, bytes_per_s)
        async with self._session.put(url, data=data, headers=headers) as answer:
            if answer.status != 200:
                raise Lost(f"the upload answered {answer.status}: {(await answer.text())[:300]}")

    async def status(self, job_id: str) -> str:
        """The status the job ends with; waits for it."""
        url, headers = self._url / "v1/jobs" / job_id, {"prefer": "wait=60"}
        async with self._session.get(url, headers=headers) as answer:
            return str(json.loads(await answer.read())["status"])

    async def job(self, photo: bytes) -> Done:
        """See Subject.job."""
        started = time.perf_counter()
        job = await self.create()
        created = time.perf_counter()
        async with self._session.get(URL(job["links"]["events"])) as stream:
            uploading = time.perf_counter()
            await self.upload(job, photo)
            uploaded = time.perf_counter()
            ended = await _end(stream)
            told = time.perf_counter()
        if ended["status"] != "completed":
            raise Lost(f"job {job['id']} is {ended['status']}: {ended['error']}")
        async with self._session.get(URL(ended["images"][0]["url"], encoded=True)) as answer:
            picture = await answer.read()
        if answer.status != 200 or len(picture) != ended["images"][0]["bytes"]:
            raise Lost(f"the picture of job {job['id']} answered {answer.status} with {len(picture)} bytes")
        now = time.perf_counter()
        told_ms = (told - uploaded) * 1000
        return Done(
            total_ms=(now - started) * 1000,
            ended_at=now,
            create_ms=(created - started) * 1000,
            upload_ms=(uploaded - uploading) * 1000,
            told_ms=told_ms,
            parts=_parts(ended["timings"], told_ms),
        )


class Handler:
    """One POST with the photo, answered with the picture."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = URL(url)

    async def job(self, photo: bytes) -> Done:
        """See Subject.job."""
        started = time.perf_counter()
        async with self._session.post(self._url / "generate", data=photo) as answer:
            picture = await answer.read()
        if answer.status != 200 or not picture.startswith(b"\xff\xd8"):
            raise Lost(f"the handler answered {answer.status}")
        now = time.perf_counter()
        return Done(total_ms=(now - started) * 1000, ended_at=now)


@dataclass(slots=True)
class Run:
    """What came of a load: the jobs done, why others were lost, and how long it all took."""

    started_at: float
    done: list[Done] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0

    async def one(self, subject: Subject, photo: bytes) -> None:
        """One job, written down however it ends."""
        try:
            async with asyncio.timeout(job_s_max):
                self.done.append(await subject.job(photo))
        except (Lost, TimeoutError, aiohttp.ClientError) as exc:
            self.lost.append(f"{type(exc).__name__}: {exc}")


@asynccontextmanager
async def opened() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without limits of its own."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=2**20) as session:
        yield session


async def at_rate(subject: Subject, photo: bytes, *, per_s: float, seconds: float) -> Run:
    """Start a job every 1/per_s seconds whatever became of those before, then wait for all of them."""
    run = Run(time.perf_counter())
    number = round(per_s * seconds)
    async with asyncio.TaskGroup() as group:
        for index in range(number):
            await asyncio.sleep(run.started_at + index / per_s - time.perf_counter())
            group.create_task(run.one(subject, photo))
    run.seconds = time.perf_counter() - run.started_at
    return run


async def in_flight(
    subject: Subject, photo: bytes, *, clients: int, seconds: float, jobs_max: int | None = None
) -> Run:
    """Keep `clients` jobs under way for so long or so many, then wait for the last of them."""
    run = Run(time.perf_counter())
    begun = 0

    async def client() -> None:
        nonlocal begun
        while time.perf_counter() < run.started_at + seconds and (jobs_max is None or begun < jobs_max):
            begun += 1
            await run.one(subject, photo)

    await _together(client, clients)
    run.seconds = time.perf_counter() - run.started_at
    return run


async def creates(darkroom: Darkroom, *, clients: int, seconds: float) -> list[float]:
    """Milliseconds of each `POST /v1/jobs` that so many clients make one after the other for so long."""
    found: list[float] = []
    until = time.perf_counter() + seconds

    async def client() -> None:
        while (started := time.perf_counter()) < until:
            await darkroom.create()
            found.append((time.perf_counter() - started) * 1000)

    await _together(client, clients)
    return found


async def _slowly(photo: bytes, bytes_per_s: float) -> AsyncIterator[bytes]:
    started = time.perf_counter()
    for start in range(0, len(photo), _chunk_bytes):
        await asyncio.sleep(started + start / bytes_per_s - time.perf_counter())
        yield photo[start : start + _chunk_bytes]


async def _together(client: Callable[[], Coroutine[None, None, None]], number: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(number):
            group.create_task(client())


async def _end(stream: aiohttp.ClientResponse) -> dict[str, Any]:
    if stream.status != 200:
        raise Lost(f"the event stream answered {stream.status}")
    async for line in stream.content:
        if line.startswith(b"data:") and b'"done":true' in line:
            state: dict[str, Any] = json.loads(line.removeprefix(b"data:"))
            return state
    raise Lost("the event stream ended before the job did")


def _parts(timings: Mapping[str, int | None], told_ms: float) -> dict[str, float]:
    """Where the time after the upload went, by the job's own record; the rest is storing the picture and telling."""
    parts = {name: float(timings[f"{name}_ms"] or 0) for name in ("ingest", "queued", "model")}
    return parts | {"store and tell": max(0.0, told_ms - sum(parts.values()))}
