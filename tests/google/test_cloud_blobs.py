"""What CloudBlobs promises beyond the port: what fails on the way is tried again, checked, and leaves nothing."""

import asyncio
import gzip
import logging
import re
from pathlib import Path

import httpx2
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage  # type: ignore[attr-defined]

from common.errors import Conflict, Unavailable
from common.google.blobs import CloudBlobs, calls_max
from common.google.identity import Identity
from common.settings import MIB, Settings
from tests.bench import Clock
from tests.google.cloud import PHOTO, Cloud, identity_of, nobody_hears
from tests.google.fakes import Fakes
from tests.google.front import Broken, storage_front


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Writing.


async def test_put_that_was_refused_is_tried_again(cloud: Cloud) -> None:
    cloud.fail("upload", Broken.REFUSED, Broken.REFUSED)
    blob = await cloud.put()
    assert await cloud.blobs.stat("results", "a/b") == blob


async def test_put_whose_answer_was_lost_finds_its_own_object(cloud: Cloud) -> None:
    cloud.fail("upload", Broken.LOST)
    with pytest.raises(Conflict):
        await cloud.put()
    assert await cloud.blobs.read("results", "a/b") == PHOTO


async def test_put_of_a_file_is_tried_again_from_its_beginning(cloud: Cloud, tmp_path: Path) -> None:
    file = tmp_path / "photo"
    file.write_bytes(PHOTO)
    cloud.fail("upload", Broken.REFUSED)
    assert (await cloud.put(file)).size == len(PHOTO)
    assert await cloud.blobs.read("results", "a/b") == PHOTO


async def test_object_beyond_8_mib_goes_in_a_session_and_comes_back(cloud: Cloud, tmp_path: Path) -> None:
    large = PHOTO * (9 * MIB // len(PHOTO) + 1)
    blob = await cloud.put(large)
    assert blob.metadata == {"fence": "1"}
    assert await cloud.blobs.download("results", "a/b", tmp_path / "copy") == blob
    assert (tmp_path / "copy").read_bytes() == large
    with pytest.raises(Conflict):
        await cloud.put(large)


async def test_put_where_nothing_may_be_replaced_is_a_conflict(cloud: Cloud) -> None:
    cloud.fail("upload", Broken.FORBIDDEN)
    with pytest.raises(Unavailable):
        await cloud.put()
    await cloud.put()
    cloud.fail("upload", Broken.FORBIDDEN)
    with pytest.raises(Conflict):
        await cloud.put()


async def test_file_that_is_not_there_cannot_be_put(cloud: Cloud, tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await cloud.put(tmp_path / "absent")


# Reading.


async def test_stat_and_delete_are_tried_again(cloud: Cloud) -> None:
    blob = await cloud.put()
    cloud.fail("storage", Broken.REFUSED)
    assert await cloud.blobs.stat("results", "a/b") == blob
    cloud.fail("storage", Broken.LOST)
    await cloud.blobs.delete("results", "a/b")
    assert await cloud.blobs.stat("results", "a/b") is None


@pytest.mark.parametrize("faults", [[Broken.REFUSED], [Broken.CUT], [Broken.CUT, Broken.CUT, Broken.REFUSED]])
async def test_broken_download_goes_on_where_it_broke(cloud: Cloud, tmp_path: Path, faults: list[Broken]) -> None:
    blob = await cloud.put()
    cloud.fail("download", *faults)
    assert await cloud.blobs.download("results", "a/b", tmp_path / "copy") == blob
    assert (tmp_path / "copy").read_bytes() == PHOTO
    cloud.fail("download", *faults)
    assert await cloud.blobs.read("results", "a/b") == PHOTO
    assert not cloud.front.faults["download"]


@pytest.mark.parametrize("faults", [[Broken.DAMAGED], [Broken.CUT, Broken.DAMAGED]])
async def test_object_that_arrives_damaged_leaves_no_file(cloud: Cloud, tmp_path: Path, faults: list[Broken]) -> None:
    await cloud.put()
    cloud.fail("download", *faults)
    with pytest.raises(Unavailable, match="damaged"):
        await cloud.blobs.download("results", "a/b", tmp_path / "copy")
    assert names_in(tmp_path) == set()
    cloud.fail("download", *faults)
    with pytest.raises(Unavailable, match="damaged"):
        await cloud.blobs.read("results", "a/b")


async def test_download_that_cannot_be_written_is_unavailable(cloud: Cloud, tmp_path: Path) -> None:
    await cloud.put()
    with pytest.raises(Unavailable):
        await cloud.blobs.download("results", "a/b", tmp_path / "absent" / "copy")
    (tmp_path / "there").write_bytes(b"not ours")
    with pytest.raises(Unavailable):
        await cloud.blobs.download("results", "a/b", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"not ours"


async def test_download_that_nobody_waits_for_leaves_no_file(cloud: Cloud, tmp_path: Path) -> None:
    await cloud.put()
    downloads = [asyncio.create_task(cloud.blobs.download("results", "a/b", tmp_path / str(n))) for n in range(20)]
    for turns, download in enumerate(downloads):
        for _ in range(turns):
            await asyncio.sleep(0)
        download.cancel()
    done = [not isinstance(end, BaseException) for end in await asyncio.gather(*downloads, return_exceptions=True)]
    await cloud.blobs.aclose()
    assert names_in(tmp_path) == {str(n) for n, well in enumerate(done) if well}


async def test_upload_that_calls_itself_gzip_is_not_unpacked(cloud: Cloud, tmp_path: Path) -> None:
    packed = gzip.compress(bytes(10 * MIB))
    credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
    async with storage_front("p", publish=nobody_hears) as front:
        client = storage.Client(project="p", credentials=credentials, client_options={"api_endpoint": front.url})
        uploaded = client.bucket("uploads").blob("bomb")
        uploaded.content_encoding = "gzip"
        await asyncio.to_thread(uploaded.upload_from_string, packed, content_type="image/jpeg")
        blobs = CloudBlobs(cloud.settings.model_copy(update={"storage_url": front.url}), identity_of(cloud), Clock())
        blob = await blobs.download("uploads", "bomb", tmp_path / "copy")
        assert await blobs.read("uploads", "bomb") == packed
        await blobs.aclose()
        client.close()
    assert (tmp_path / "copy").read_bytes() == packed
    assert blob.size == len(packed)


async def test_many_calls_at_once_share_kept_connections(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "urllib3"):
        names = [str(n) for n in range(3 * calls_max)]
        await asyncio.gather(*(cloud.put(b"x", name) for name in names))
        assert await asyncio.gather(*(cloud.blobs.read("results", name) for name in names)) == [b"x"] * len(names)
    messages = [record.message for record in caplog.records]
    port = cloud.front.url.rpartition(":")[2]
    assert len([text for text in messages if text.startswith("Starting new") and text.endswith(port)]) <= calls_max
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_nothing_but_the_object_is_asked_for(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "urllib3"):
        await cloud.put()
        await cloud.blobs.read("results", "a/b")
        await cloud.blobs.stat("results", "a/b")
        await cloud.blobs.delete("results", "a/b")
        await cloud.blobs.delete("results", "a/b")
        await cloud.blobs.aclose()
    asked = [str(vars(r)["args"][4]) for r in caplog.records if "HTTP/1.1" in r.message and "/b/results" in r.message]
    assert len(asked) == 5
    assert all(re.match(r"/(upload/|download/)?storage/v1/b/results/o[/?]", path) for path in asked), asked


# Where it leads.


async def test_emulator_in_the_environment_is_asked_without_a_name(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with storage_front("p", publish=nobody_hears) as front:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        settings = Settings(storage_url=front.url, **fakes.settings)  # type: ignore[arg-type]
        identity = Identity(settings, Clock())
        blobs = CloudBlobs(settings, identity, Clock())
        before = fakes.calls.total()
        await blobs.put("results", "a", PHOTO, content_type="image/png", metadata={})
        assert fakes.calls.total() == before
        signed = await blobs.sign_get("results", "a", expires_s=60)
        async with httpx2.AsyncClient(verify=False) as client:
            assert (await client.get(signed.url)).content == PHOTO
        await blobs.aclose()
        await identity.aclose()


async def test_revoked_token_costs_one_call(cloud: Cloud, fakes: Fakes) -> None:
    await cloud.put()
    fakes.tokens.clear()
    with pytest.raises(Unavailable):
        await cloud.blobs.read("results", "a/b")
    assert await cloud.blobs.read("results", "a/b") == PHOTO


async def test_bucket_that_does_not_answer_is_unavailable(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("common.google.blobs.call_s_max", 2.2)
    blobs = CloudBlobs(
        cloud.settings.model_copy(update={"storage_url": "http://127.0.0.1:1"}), identity_of(cloud), Clock()
    )
    ended = await asyncio.gather(
        blobs.stat("results", "a"),
        blobs.read("results", "a"),
        blobs.delete("results", "a"),
        blobs.download("results", "a", tmp_path / "copy"),
        blobs.put("results", "a", b"x", content_type="image/png", metadata={}),
        return_exceptions=True,
    )
    assert [type(end) for end in ended] == [Unavailable] * 5
    assert names_in(tmp_path) == set()
    await blobs.aclose()


async def test_what_is_closed_is_unavailable_and_may_be_closed_again(cloud: Cloud) -> None:
    await cloud.put()
    for _ in range(2):
        await cloud.blobs.aclose()
        with pytest.raises(Unavailable):
            await cloud.blobs.stat("results", "a/b")


async def test_what_was_never_used_can_be_closed(cloud: Cloud) -> None:
    unused = CloudBlobs(cloud.settings, identity_of(cloud), Clock())
    await unused.aclose()
    with pytest.raises(Unavailable):
        await unused.read("results", "a/b")
