"""CloudBlobs where something is wrong for good: no such bucket, bytes that are others, a bucket that says nothing."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.errors import NotFound, Unavailable
from common.google.blobs import CloudBlobs, calls_max, end_s_max
from common.settings import MIB
from tests.bench import Clock
from tests.google.cloud import Cloud, identity_of
from tests.google.fakes import Fakes
from tests.google.front import Broken
from tests.google.silence import Silence, silence


async def test_bucket_that_is_not_there_is_a_fault_of_ours(
    cloud: Cloud, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """NotFound would be Rejected: a misnamed bucket would fail each job for good."""
    blobs = cloud.blobs
    for call in (
        blobs.put("absent", "a", b"x", content_type="image/png", metadata={}),
        blobs.stat("absent", "a"),
        blobs.read("absent", "a"),
        blobs.download("absent", "a", tmp_path / "copy"),
        blobs.delete("absent", "a"),
    ):
        with pytest.raises(Unavailable, match="no bucket absent"):
            await call
    assert sum(record.message == "blobs.no_bucket" for record in caplog.records) == 5


async def test_bucket_is_looked_for_once_in_a_while(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    def looks() -> int:
        asked = [str(vars(record).get("args")) for record in caplog.records]
        return len([path for path in asked if "/o?maxResults=1&" in path])

    with caplog.at_level(logging.DEBUG, "urllib3"):
        for _ in range(3):
            assert await cloud.blobs.stat("results", "a") is None
            with pytest.raises(NotFound):
                await cloud.blobs.read("results", "a")
        assert looks() == 1
        assert await cloud.blobs.stat("inputs", "a") is None
        assert looks() == 2
        cloud.clock.advance(601)
        await cloud.blobs.delete("results", "a")
        assert looks() == 3


async def test_bucket_that_cannot_be_looked_for_is_unavailable(cloud: Cloud) -> None:
    cloud.fail("storage", Broken.NOT, Broken.FORBIDDEN)
    with pytest.raises(Unavailable):
        await cloud.blobs.stat("results", "a")
    assert await cloud.blobs.stat("results", "a") is None


@pytest.mark.parametrize(("size", "faults"), [(MIB, [Broken.SPOILT]), (9 * MIB, [Broken.NOT, Broken.SPOILT])])
async def test_put_that_is_spoilt_on_its_way_makes_no_object(cloud: Cloud, size: int, faults: list[Broken]) -> None:
    data = bytes(size)
    cloud.fail("upload", *faults)
    with pytest.raises(Unavailable):
        await cloud.put(data)
    assert await cloud.blobs.stat("results", "a/b") is None
    assert (await cloud.put(data)).size == size


async def test_sum_of_another_object_is_no_reason_to_delete_it(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    """What the client itself would do after an upload in a session, by the object's name alone."""
    with answering_another_sum() as url, caplog.at_level(logging.DEBUG, "urllib3"):
        blobs = CloudBlobs(cloud.settings.model_copy(update={"storage_url": url}), identity_of(cloud), Clock())
        for size in (10, 9 * MIB):
            with pytest.raises(Unavailable, match="damaged"):
                await blobs.put("results", "a", bytes(size), content_type="image/png", metadata={})
        await blobs.aclose()
    asked = " ".join(str(vars(record).get("args")) for record in caplog.records)
    assert "PUT" in asked
    assert "DELETE" not in asked


@contextmanager
def answering_another_sum() -> Iterator[str]:
    """A server that takes any upload, and tells of an object with a sum of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("location", f"http://{self.headers['host']}/session?upload_id=1")
            self.end_headers()
            self.wfile.write(b'{"name": "a", "bucket": "results", "generation": "1", "crc32c": "AAAAAA=="}')

        def do_PUT(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# The end, while the bucket says nothing.


@pytest.fixture
async def silent(cloud: Cloud) -> AsyncIterator[tuple[CloudBlobs, Silence]]:
    async with silence() as server:
        settings = cloud.settings.model_copy(update={"storage_url": server.url})
        blobs = CloudBlobs(settings, identity_of(cloud), Clock())
        yield blobs, server
        await blobs.aclose()


async def test_end_is_not_held_up_by_what_nobody_waits_for(silent: tuple[CloudBlobs, Silence]) -> None:
    """A process has 10 s from SIGTERM; a try of this upload alone has 12."""
    blobs, server = silent
    left = asyncio.create_task(blobs.put("results", "a", bytes(10 * MIB), content_type="image/png", metadata={}))
    await server.asked()
    left.cancel()
    await asyncio.wait([left])
    async with asyncio.timeout(end_s_max + 1):
        await blobs.aclose()


async def test_calls_under_way_at_the_end_are_unavailable_and_not_repeated(
    silent: tuple[CloudBlobs, Silence], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.google.objects.try_s_max", 0.5)
    blobs, server = silent
    calls = [asyncio.create_task(blobs.stat("results", str(n))) for n in range(calls_max + 5)]
    await server.asked()
    async with asyncio.timeout(end_s_max + 1):
        await blobs.aclose()
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(end) for end in ends} == {Unavailable}
    assert server.connections <= calls_max


async def test_call_that_still_waits_for_its_token_at_the_end_is_unavailable(cloud: Cloud, fakes: Fakes) -> None:
    identity = identity_of(cloud)
    blobs = CloudBlobs(cloud.settings, identity, Clock())
    fakes.answering.clear()
    call = asyncio.create_task(blobs.stat("results", "a"))
    try:
        await asyncio.sleep(0)
        await blobs.aclose()
    finally:
        fakes.answering.set()
    with pytest.raises(Unavailable):
        await call
    await identity.aclose()
