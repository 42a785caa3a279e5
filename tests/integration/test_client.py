"""The command line's client where an answer is lost, refused or incomplete: what it asks next, and what it reports."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

import local.client
from common.views import JobView
from local.client import Client, NoServer
from local.serving import server_within

SAMPLE = Path(__file__).parents[2] / "local" / "sample" / "portrait.jpg"
# https://cloud.google.com/storage/docs/xml-api/reference-status#403—forbidden
DENIED = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>Access denied.</Message></Error>"


@pytest.fixture
async def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setattr(local.client, "arrival_look_s", 0)
    async with server_within(tmp_path) as running, Client(running.url) as opened:
        yield opened


@asynccontextmanager
async def bucket(
    job: JobView, code: str, first: Callable[[bytes], Awaitable[None]] | None = None
) -> AsyncIterator[tuple[JobView, list[int]]]:
    """The job with an upload that leads to a bucket of the test, and the sizes of the photos that it got.

    It answers 403 with that code; but the first photo goes to `first`, and then the connection breaks.
    """
    assert job.upload is not None
    got: list[int] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        photo = await reader.readexactly(SAMPLE.stat().st_size)
        got.append(len(photo))
        if first is not None and len(got) == 1:
            await first(photo)
        else:
            body = DENIED.format(code=code)
            writer.write(f"HTTP/1.1 403 Forbidden\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0, limit=2**20)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/photo"
        yield job.model_copy(update={"upload": job.upload.model_copy(update={"url": url})}), got


async def test_a_repeated_upload_that_is_denied_has_arrived_if_the_job_says_so(client: Client) -> None:
    job = await client.create({})

    async def arrive(photo: bytes) -> None:
        assert job.upload is not None
        async with httpx2.AsyncClient() as http:
            (await http.put(job.upload.url, headers=job.upload.headers, content=photo)).raise_for_status()
        async for state in client.watch(job):
            if state.stage is not None:
                return

    async with bucket(job, "AccessDenied", arrive) as (led, got):
        await client.upload(led, SAMPLE, lambda _: None)
    assert len(got) == 2
    states = [state async for state in client.watch(job)]
    assert states[-1].status == "completed"


async def test_an_upload_that_is_denied_and_did_not_arrive_is_an_error(client: Client) -> None:
    async with bucket(await client.create({}), "AccessDenied") as (led, got):
        with pytest.raises(NoServer, match="AccessDenied"):
            await client.upload(led, SAMPLE, lambda _: None)
    assert len(got) == 1


async def test_a_picture_without_a_signed_link_is_fetched_by_the_apis_own(client: Client) -> None:
    states = [state async for state in client.watch(await client.create({"kind": "image", "prompt": "a pear"}))]
    (image,) = states[-1].images
    unsigned = image.model_copy(update={"url": None, "thumbnail_url": None})
    assert await client.picture(states[-1], unsigned) == await client.picture(states[-1], image)
