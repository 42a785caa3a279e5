"""What a BlobStore promises, on every engine: objects written once, and signed URLs that allow exactly one request."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest

from common.errors import Conflict, NotFound
from common.messages import Topic, UploadFinalized
from common.ports import Blob, BlobStore, Engine, SignedRequest
from tests.bench import ALLOWED_ORIGIN, Bench
from tests.contract.subscriber import Push, Subscriber

JPEG = "image/jpeg"
NAME = "uploads/test~3Aann/" + "0" * 32
MAX = 1000


@pytest.fixture
def blobs(engine: Engine) -> BlobStore:
    return engine.blobs


async def put(blobs: BlobStore, data: bytes | Path = b"photo", *, name: str = NAME, **metadata: str) -> Blob:
    return await blobs.put("results", name, data, content_type=JPEG, metadata=metadata)


async def test_what_is_put_is_there(blobs: BlobStore) -> None:
    blob = await put(blobs, b"photo")
    assert await blobs.stat("results", NAME) == blob
    assert await blobs.read("results", NAME) == b"photo"
    assert (blob.bucket, blob.name, blob.size, blob.content_type) == ("results", NAME, 5, JPEG)
    assert blob.generation > 0
    assert blob.created_at.tzinfo is not None


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
async def test_object_may_have_any_size(blobs: BlobStore, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert (await put(blobs, data)).size == size
    assert await blobs.read("results", NAME) == data


async def test_file_is_put_as_it_was_at_that_moment(blobs: BlobStore, tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"as it was")
    blob = await put(blobs, file)
    with file.open("r+b") as again:
        again.write(b"rewritten later")
    assert blob.size == len(b"as it was")
    assert await blobs.read("results", NAME) == b"as it was"
    assert file.exists()


async def test_downloaded_file_can_be_removed_and_the_object_stays(blobs: BlobStore, tmp_path: Path) -> None:
    blob = await put(blobs, b"photo")
    target = tmp_path / "copy"
    assert await blobs.download("results", NAME, target) == blob
    assert target.read_bytes() == b"photo"
    target.unlink()
    assert await blobs.read("results", NAME) == b"photo"


async def test_absent_object_is_none_or_not_found(blobs: BlobStore, tmp_path: Path) -> None:
    assert await blobs.stat("results", NAME) is None
    with pytest.raises(NotFound):
        await blobs.read("results", NAME)
    with pytest.raises(NotFound):
        await blobs.download("results", NAME, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


async def test_name_is_written_once(blobs: BlobStore) -> None:
    first = await put(blobs, b"first", who="first")
    with pytest.raises(Conflict):
        await put(blobs, b"second", who="second")
    assert await blobs.stat("results", NAME) == first
    assert await blobs.read("results", NAME) == b"first"


async def test_of_ten_racing_puts_exactly_one_wins(blobs: BlobStore) -> None:
    racing = [put(blobs, f"{n}".encode() * 50_000, n=str(n)) for n in range(10)]
    ended = await asyncio.gather(*racing, return_exceptions=True)
    (winner,) = [blob for blob in ended if isinstance(blob, Blob)]
    assert sum(isinstance(end, Conflict) for end in ended) == 9
    assert await blobs.stat("results", NAME) == winner
    assert await blobs.read("results", NAME) == winner.metadata["n"].encode() * 50_000


async def test_same_name_in_two_buckets_is_two_objects(blobs: BlobStore) -> None:
    await blobs.put("results", NAME, b"result", content_type=JPEG, metadata={})
    await blobs.put("inputs", NAME, b"input", content_type=JPEG, metadata={})
    assert await blobs.read("results", NAME) == b"result"
    assert await blobs.read("inputs", NAME) == b"input"


async def test_download_of_a_generation_that_is_gone_is_not_found(blobs: BlobStore, tmp_path: Path) -> None:
    first = await put(blobs, b"first")
    await blobs.delete("results", NAME)
    second = await put(blobs, b"second")
    assert second.generation != first.generation
    with pytest.raises(NotFound):
        await blobs.download("results", NAME, tmp_path / "old", generation=first.generation)
    await blobs.download("results", NAME, tmp_path / "new", generation=second.generation)
    assert (tmp_path / "new").read_bytes() == b"second"
    assert not (tmp_path / "old").exists()


async def test_delete_may_be_repeated(blobs: BlobStore) -> None:
    await put(blobs)
    await blobs.delete("results", NAME)
    await blobs.delete("results", NAME)
    assert await blobs.stat("results", NAME) is None
    with pytest.raises(NotFound):
        await blobs.read("results", NAME)


async def test_metadata_comes_back(blobs: BlobStore) -> None:
    metadata = {"fence": "3", "sha256": "0" * 64, "cost_usd": "0.0336", "empty": "", "text": "a b; c=\"d\", 'e' <f> \\"}
    await blobs.put("results", NAME, b"photo", content_type=JPEG, metadata=metadata)
    blob = await blobs.stat("results", NAME)
    assert blob is not None
    assert blob.metadata == metadata


@pytest.mark.parametrize("name", ["a", "a/b/c", "test~3Aann/0/1.thumb", "a b+c&d=e%2F?#", "ünï/çødé", "x" * 1000])
async def test_name_may_be_anything_a_bucket_takes(bench: Bench, name: str) -> None:
    await put(bench.engine.blobs, b"photo", name=name)
    signed = await bench.engine.blobs.sign_get("results", name, expires_s=60)
    assert (await send(bench, signed)).content == b"photo"


async def test_object_survives_reopening(bench: Bench) -> None:
    blob = await put(bench.engine.blobs, b"photo", fence="1")
    await bench.reopen()
    assert await bench.engine.blobs.stat("results", NAME) == blob
    assert await bench.engine.blobs.read("results", NAME) == b"photo"


# Signed URLs, used over HTTP as an app would.


async def sign_put(bench: Bench, *, name: str = NAME, expires_s: int = 900) -> SignedRequest:
    bucket = bench.settings.uploads_bucket
    return await bench.engine.blobs.sign_put(bucket, name, content_type=JPEG, bytes_max=MAX, expires_s=expires_s)


async def send(
    bench: Bench,
    signed: SignedRequest,
    body: bytes | AsyncIterator[bytes] | None = None,
    *,
    method: str | None = None,
    **more_headers: str,
) -> httpx2.Response:
    """The signed request as it stands, but for what the test changes."""
    headers = {**signed.headers, **{name.replace("_", "-"): value for name, value in more_headers.items()}}
    return await bench.http.request(method or signed.method, signed.url, headers=headers, content=body)


async def uploaded(bench: Bench, name: str = NAME) -> bytes | None:
    """What lies under the name in the uploads bucket."""
    if await bench.engine.blobs.stat(bench.settings.uploads_bucket, name) is None:
        return None
    return await bench.engine.blobs.read(bench.settings.uploads_bucket, name)


async def in_chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_signed_put_writes_the_object(bench: Bench) -> None:
    signed = await sign_put(bench)
    answer = await send(bench, signed, b"photo")
    assert answer.status_code == 200
    blob = await bench.engine.blobs.stat(bench.settings.uploads_bucket, NAME)
    assert blob is not None
    assert (blob.size, blob.content_type) == (5, JPEG)
    assert await uploaded(bench) == b"photo"


async def test_signed_request_says_until_when(bench: Bench) -> None:
    signed = await sign_put(bench, expires_s=900)
    query = dict(parse_qsl(urlsplit(signed.url).query))
    signed_at = datetime.strptime(query["X-Goog-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert (signed.expires_at - signed_at).total_seconds() == int(query["X-Goog-Expires"]) == 900


async def test_signed_put_fixes_type_length_and_absence(bench: Bench) -> None:
    signed = await sign_put(bench)
    headers = {name.lower(): value for name, value in signed.headers.items()}
    assert headers == {
        "content-type": JPEG,
        "x-goog-content-length-range": f"1,{MAX}",
        "x-goog-if-generation-match": "0",
    }


@pytest.mark.parametrize("size", [1, MAX])
@pytest.mark.parametrize("chunked", [False, True])
async def test_length_within_the_range_is_taken(bench: Bench, size: int, chunked: bool) -> None:
    data = b"x" * size
    body = in_chunks(data[:1], data[1:]) if chunked else data
    assert (await send(bench, await sign_put(bench), body)).status_code == 200
    assert await uploaded(bench) == data


@pytest.mark.parametrize("size", [0, MAX + 1, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_length_outside_the_range_is_refused(bench: Bench, size: int, chunked: bool) -> None:
    body = in_chunks(b"x" * (size // 2), b"x" * (size - size // 2)) if chunked else b"x" * size
    answer = await send(bench, await sign_put(bench), body)
    assert answer.status_code == 400
    assert ("EntityTooSmall" if size == 0 else "EntityTooLarge") in answer.text
    assert await uploaded(bench) is None


@pytest.mark.parametrize("declared", ["1", "4", "6", str(MAX), str(MAX + 1), "-5", "5.0", "+5", "x", "", "9" * 5000])
async def test_length_that_is_not_the_bodys_leaves_no_object(bench: Bench, declared: str) -> None:
    answer = await send(bench, await sign_put(bench), b"photo", content_length=declared)
    assert answer.status_code == 400
    assert await uploaded(bench) is None


async def test_second_put_is_told_that_it_is_there_already(bench: Bench) -> None:
    signed = await sign_put(bench)
    await send(bench, signed, b"first")
    answer = await send(bench, signed, b"second")
    assert answer.status_code == 412
    assert "PreconditionFailed" in answer.text
    assert await uploaded(bench) == b"first"


async def test_of_ten_racing_signed_puts_exactly_one_wins(bench: Bench) -> None:
    signed = await sign_put(bench)
    bodies = [f"{n}".encode() * 900 for n in range(10)]
    answers = await asyncio.gather(*(send(bench, signed, in_chunks(body[:10], body[10:])) for body in bodies))
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [200] + [412] * 9
    assert await uploaded(bench) == bodies[statuses.index(200)]


async def test_put_after_deletion_succeeds_again(bench: Bench) -> None:
    signed = await sign_put(bench)
    await send(bench, signed, b"first")
    await bench.engine.blobs.delete(bench.settings.uploads_bucket, NAME)
    assert (await send(bench, signed, b"second")).status_code == 200
    assert await uploaded(bench) == b"second"


async def refused(bench: Bench, answer: httpx2.Response, *statuses: int) -> bool:
    """Whether the request was refused with one of the statuses and has left no object."""
    assert answer.status_code in (statuses or (403,)), answer.text
    return await uploaded(bench) is None


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_url_for_put_allows_no_reading(bench: Bench, method: str) -> None:
    await send(bench, await sign_put(bench), b"photo")
    answer = await send(bench, await sign_put(bench), method=method)
    assert answer.status_code == 403
    assert b"photo" not in answer.content


@pytest.mark.parametrize("method", ["PUT", "HEAD", "POST", "DELETE", "PATCH"])
async def test_url_for_get_allows_nothing_else(bench: Bench, method: str) -> None:
    await send(bench, await sign_put(bench), b"photo")
    signed = await bench.engine.blobs.sign_get(bench.settings.uploads_bucket, NAME, expires_s=60)
    answer = await send(bench, signed, b"other" if method in {"PUT", "POST", "PATCH"} else None, method=method)
    assert answer.status_code in {403, 405}
    assert await uploaded(bench) == b"photo"


async def test_other_content_type_is_refused(bench: Bench) -> None:
    signed = await sign_put(bench)
    for kind in ("image/png", "text/html", "image/jpeg; charset=utf-8", "IMAGE/JPEG", ""):
        changed = replace(signed, headers={**signed.headers, "Content-Type": kind})
        assert await refused(bench, await send(bench, changed, b"photo"))


async def test_each_signed_header_must_be_sent_as_signed(bench: Bench) -> None:
    signed = await sign_put(bench)
    for name in signed.headers:
        missing = {n: v for n, v in signed.headers.items() if n != name}
        assert await refused(bench, await send(bench, replace(signed, headers=missing), b"photo"))
    for name, value in {"x-goog-content-length-range": "1,1000000", "x-goog-if-generation-match": "1"}.items():
        changed = {**{n.lower(): v for n, v in signed.headers.items()}, name: value}
        assert await refused(bench, await send(bench, replace(signed, headers=changed), b"photo"))


async def test_header_given_twice_is_refused(bench: Bench) -> None:
    signed = await sign_put(bench)
    headers = [*signed.headers.items(), ("x-goog-content-length-range", "1,1000000")]
    answer = await bench.http.put(signed.url, headers=headers, content=b"photo")
    assert await refused(bench, answer)


@pytest.mark.parametrize("name", ["x-goog-meta-style", "x-goog-acl", "x-goog-encryption-algorithm", "X-GOOG-Meta-A"])
async def test_unsigned_goog_header_is_refused(bench: Bench, name: str) -> None:
    answer = await send(bench, await sign_put(bench), b"photo", **{name: "x"})
    assert "MalformedSecurityHeader" in answer.text
    assert await refused(bench, answer, 400)


async def test_unsigned_plain_header_does_no_harm(bench: Bench) -> None:
    answer = await send(bench, await sign_put(bench), b"photo", user_agent="app/1", x_request_id="1", accept="*/*")
    assert answer.status_code == 200


def tampered(signed: SignedRequest, **query: str | None) -> SignedRequest:
    """The signed request with parts of its query replaced, or removed by None."""
    parts = urlsplit(signed.url)
    pairs = {**dict(parse_qsl(parts.query)), **{f"X-Goog-{n.replace('_', '-')}": v for n, v in query.items()}}
    kept = {name: value for name, value in pairs.items() if value is not None}
    return replace(signed, url=parts._replace(query=urlencode(kept)).geturl())


FORGERIES: Mapping[str, Callable[[SignedRequest], SignedRequest]] = {
    "no query": lambda s: replace(s, url=s.url.partition("?")[0]),
    "no signature": lambda s: tampered(s, Signature=None),
    "no date": lambda s: tampered(s, Date=None),
    "no expiry": lambda s: tampered(s, Expires=None),
    "no credential": lambda s: tampered(s, Credential=None),
    "no algorithm": lambda s: tampered(s, Algorithm=None),
    "no signed headers": lambda s: tampered(s, SignedHeaders=None),
    "empty signature": lambda s: tampered(s, Signature=""),
    "signature of letters": lambda s: tampered(s, Signature="é" * 64),
    "signature of zeros": lambda s: tampered(s, Signature="0" * 64),
    "longer life": lambda s: tampered(s, Expires="901"),
    "life without end": lambda s: tampered(s, Expires="000000001" + "9" * 40),
    "life beyond int": lambda s: tampered(s, Expires="000000001" + "1" * 5000),
    "longer than a week": lambda s: tampered(s, Expires="604801"),
    "no life": lambda s: tampered(s, Expires="0"),
    "negative life": lambda s: tampered(s, Expires="-1"),
    "date in words": lambda s: tampered(s, Date="yesterday"),
    "another algorithm": lambda s: tampered(s, Algorithm="GOOG4-RSA-SHA1"),
    "another key": lambda s: tampered(s, Credential="someone/20260504/auto/storage/goog4_request"),
    "broken scope": lambda s: tampered(s, Credential="local"),
    "fewer signed headers": lambda s: tampered(s, SignedHeaders="host"),
    "more signed headers": lambda s: tampered(s, SignedHeaders="content-type;host;x-absent"),
    "another object": lambda s: replace(s, url=s.url.replace("0" * 32, "1" * 32)),
    "another owner": lambda s: replace(s, url=s.url.replace("test~3Aann", "test~3Aben")),
    "another bucket": lambda s: replace(s, url=s.url.replace("/uploads/uploads/", "/results/uploads/")),
    "path of other spelling": lambda s: replace(s, url=s.url.replace("test~3Aann", "test%7E3Aann")),
    "climbing path": lambda s: replace(s, url=s.url.replace("test~3Aann/", "test~3Aann/%2e%2e/")),
    "extra parameter": lambda s: replace(s, url=s.url + "&x=1"),
    "repeated parameter": lambda s: replace(s, url=s.url + "&X-Goog-Expires=900"),
    "another host": lambda s: replace(s, headers={**s.headers, "Host": "elsewhere.example.com"}),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_forged_request_is_refused(bench: Bench, forgery: str) -> None:
    forged = FORGERIES[forgery](await sign_put(bench))
    assert await refused(bench, await send(bench, forged, b"photo"), 400, 403)
    other = NAME.replace("0" * 32, "1" * 32)
    assert await uploaded(bench, other) is None


async def test_signature_of_one_request_does_not_fit_another(bench: Bench) -> None:
    first, second = await sign_put(bench), await sign_put(bench, name=NAME.replace("0", "2"))
    signature = dict(parse_qsl(urlsplit(second.url).query))["X-Goog-Signature"]
    assert await refused(bench, await send(bench, tampered(first, Signature=signature), b"photo"))


async def test_url_is_good_until_it_expires(bench: Bench) -> None:
    signed = await sign_put(bench, expires_s=900)
    await bench.later(890)
    assert (await send(bench, signed, b"photo")).status_code == 200
    await bench.later(12)
    answer = await send(bench, signed, b"photo")
    assert answer.status_code == 400
    assert "ExpiredToken" in answer.text


async def test_url_signed_by_a_clock_that_is_ahead_is_not_valid_yet(bench: Bench) -> None:
    signed = await sign_put(bench)
    await bench.later(-16 * 60)
    answer = await send(bench, signed, b"photo")
    assert "RequestNotYetValid" in answer.text
    assert await refused(bench, answer)
    # Signers may be ahead by a quarter of an hour.
    await bench.later(2 * 60)
    assert (await send(bench, signed, b"photo")).status_code == 200


async def test_signed_get_brings_bytes_and_type(bench: Bench) -> None:
    await put(bench.engine.blobs, b"\x00\xff" * 1000)
    answer = await send(bench, await bench.engine.blobs.sign_get("results", NAME, expires_s=60))
    assert answer.status_code == 200
    assert answer.content == b"\x00\xff" * 1000
    assert answer.headers["content-type"] == JPEG
    assert answer.headers["content-length"] == "2000"


async def test_signed_get_of_an_absent_object_is_404(bench: Bench) -> None:
    answer = await send(bench, await bench.engine.blobs.sign_get("results", NAME, expires_s=60))
    assert answer.status_code == 404
    assert "NoSuchKey" in answer.text


async def test_signed_get_expires(bench: Bench) -> None:
    await put(bench.engine.blobs)
    signed = await bench.engine.blobs.sign_get("results", NAME, expires_s=60)
    await bench.later(62)
    answer = await send(bench, signed)
    assert answer.status_code == 400
    assert b"photo" not in answer.content


# Browsers ask first.


async def preflight(bench: Bench, origin: str, headers: str, method: str = "PUT") -> httpx2.Response:
    asked = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": headers,
    }
    return await bench.http.options((await sign_put(bench)).url, headers=asked)


async def test_preflight_allows_a_listed_origin_the_signed_headers(bench: Bench) -> None:
    headers = "content-type,x-goog-content-length-range,x-goog-if-generation-match"
    answer = await preflight(bench, ALLOWED_ORIGIN, headers)
    assert answer.is_success
    assert answer.headers["access-control-allow-origin"] == ALLOWED_ORIGIN
    assert "PUT" in answer.headers["access-control-allow-methods"]
    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert set(headers.split(",")) <= allowed


@pytest.mark.parametrize("origin", ["https://evil.example.com", "null", f"{ALLOWED_ORIGIN}.evil.com", "*"])
async def test_preflight_allows_a_foreign_origin_nothing(bench: Bench, origin: str) -> None:
    answer = await preflight(bench, origin, "content-type")
    assert "access-control-allow-origin" not in answer.headers


async def test_answer_may_be_read_by_a_listed_origin_only(bench: Bench) -> None:
    for origin, readable in ((ALLOWED_ORIGIN, True), ("https://evil.example.com", False)):
        answer = await send(bench, await sign_put(bench, name=f"uploads/{readable}"), b"photo", origin=origin)
        assert (answer.headers.get("access-control-allow-origin") == origin) is readable


# What arrives in the announced bucket is told to the bus, in Cloud Storage's own words.


async def announced(bench: Bench) -> list[Push]:
    """What the bus pushes for the uploads so far."""
    return await Subscriber(bench, Topic.UPLOAD_FINALIZED).hear()


async def test_upload_is_announced_once(bench: Bench) -> None:
    await send(bench, await sign_put(bench), b"photo")
    await send(bench, await sign_put(bench), b"again")
    (push,) = await announced(bench)
    fact = UploadFinalized.model_validate_json(push.data)
    blob = await bench.engine.blobs.stat(bench.settings.uploads_bucket, NAME)
    assert blob is not None
    assert (fact.bucket, fact.name, fact.generation) == (blob.bucket, blob.name, blob.generation)
    assert (fact.size, fact.content_type, fact.time_created) == (blob.size, blob.content_type, blob.created_at)


async def test_announcement_has_the_form_of_cloud_storage(bench: Bench) -> None:
    """https://cloud.google.com/storage/docs/pubsub-notifications#format"""
    await send(bench, await sign_put(bench), b"photo")
    (push,) = await announced(bench)
    body = json.loads(push.data)
    blob = await bench.engine.blobs.stat(bench.settings.uploads_bucket, NAME)
    assert blob is not None
    assert body["kind"] == "storage#object"
    assert body["id"] == f"{blob.bucket}/{NAME}/{blob.generation}"
    assert (body["name"], body["bucket"], body["contentType"]) == (NAME, blob.bucket, JPEG)
    assert (body["size"], body["generation"], body["metageneration"]) == ("5", str(blob.generation), "1")
    assert datetime.fromisoformat(body["timeCreated"]) == blob.created_at
    attributes = push.attributes
    expected = {
        "eventType": "OBJECT_FINALIZE",
        "payloadFormat": "JSON_API_V1",
        "bucketId": blob.bucket,
        "objectId": NAME,
        "objectGeneration": str(blob.generation),
    }
    assert {name: attributes[name] for name in expected} == expected
    assert "notificationConfig" in attributes
    assert "eventTime" in attributes


async def test_object_that_the_engine_puts_into_the_announced_bucket_is_announced(bench: Bench) -> None:
    bucket = bench.settings.uploads_bucket
    await bench.engine.blobs.put(bucket, NAME, b"photo", content_type=JPEG, metadata={"style": "corporate"})
    (push,) = await announced(bench)
    fact = UploadFinalized.model_validate_json(push.data)
    assert fact.metadata == {"style": "corporate"}


async def test_other_buckets_and_refused_uploads_announce_nothing(bench: Bench) -> None:
    for bucket in (bench.settings.inputs_bucket, bench.settings.results_bucket, "elsewhere"):
        await bench.engine.blobs.put(bucket, NAME, b"photo", content_type=JPEG, metadata={})
    signed = await sign_put(bench)
    await send(bench, signed, b"x" * (MAX + 1))
    await send(bench, tampered(signed, Signature="0" * 64), b"photo")
    await send(bench, signed, method="GET")
    assert await announced(bench) == []


async def test_deletion_announces_nothing(bench: Bench) -> None:
    await send(bench, await sign_put(bench), b"photo")
    assert len(await announced(bench)) == 1
    await bench.engine.blobs.delete(bench.settings.uploads_bucket, NAME)
    assert await announced(bench) == []
