"""The storage front: what Cloud Storage enforces and the emulator behind ignores, over real HTTP and as a program."""

import asyncio
import base64
import json
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import google_crc32c
import httpx2
import pytest

from common.google.blobs import CloudBlobs
from common.google.identity import Identity
from common.messages import UploadFinalized
from common.ports import SignedRequest
from common.settings import Settings
from tests.bench import Clock
from tests.google.emulators import Emulators
from tests.google.fakes import Fakes
from tests.google.front import Front, storage_front

ROOT = Path(__file__).parents[2]
NAME = "uploads/test~3Aann/" + "0" * 32
UPLOAD = "/upload/storage/v1/b/uploads/o"
OBJECT = "/storage/v1/b/uploads/o"


@dataclass
class Scene:
    """A front, a client that speaks plain HTTP to it, the account's signer, and what was published."""

    front: Front
    client: httpx2.AsyncClient
    blobs: CloudBlobs
    clock: Clock
    token: str
    published: list[tuple[bytes, Mapping[str, str]]] = field(default_factory=list)

    async def insert(self, data: bytes, name: str = "a", **parameters: str) -> httpx2.Response:
        """An upload by the JSON API."""
        asked = {"uploadType": "media", "name": name, **parameters}
        return await self.client.post(UPLOAD, params=asked, content=data, headers=self.bearer)

    async def signed_put(self) -> SignedRequest:
        return await self.blobs.sign_put("uploads", NAME, content_type="image/jpeg", bytes_max=1000, expires_s=900)

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}", "content-type": "image/jpeg"}


@pytest.fixture
async def scene(fakes: Fakes) -> AsyncIterator[Scene]:
    clock = Clock()
    published: list[tuple[bytes, Mapping[str, str]]] = []

    async def publish(data: bytes, attributes: Mapping[str, str]) -> None:
        published.append((data, attributes))

    async with (
        storage_front("p", anonymous=False, now=clock, publish=publish) as front,
        httpx2.AsyncClient(base_url=front.url, verify=False) as client,
    ):
        settings = Settings(storage_url=front.url, **fakes.settings)  # type: ignore[arg-type]
        identity = Identity(settings, clock)
        blobs = CloudBlobs(settings, identity, clock)
        yield Scene(front, client, blobs, clock, await identity.access_token(), published)
        await blobs.aclose()
        await identity.aclose()


# Signed requests.


async def test_signed_put_is_taken_once_and_announced_once(scene: Scene) -> None:
    signed = await scene.signed_put()
    answers = [await scene.client.put(signed.url, headers=signed.headers, content=b"photo") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 412]
    ((data, attributes),) = scene.published
    fact = UploadFinalized.model_validate_json(data)
    assert (fact.bucket, fact.name, fact.size, fact.content_type) == ("uploads", NAME, 5, "image/jpeg")
    assert attributes["eventType"] == "OBJECT_FINALIZE"
    assert answers[0].headers["x-goog-generation"] == attributes["objectGeneration"] == str(fact.generation)


async def test_signature_of_another_key_is_refused(scene: Scene, fakes: Fakes) -> None:
    signed = await scene.signed_put()
    another = "0" if signed.url[-1] != "0" else "1"
    for url in (signed.url[:-1] + another, signed.url.replace(fakes.email.partition("@")[0], "another")):
        answer = await scene.client.put(url, headers=signed.headers, content=b"photo")
        assert answer.status_code == 403
        assert "SignatureDoesNotMatch" in answer.text
    assert not scene.published


async def test_front_goes_by_its_own_clock(scene: Scene) -> None:
    signed = await scene.signed_put()
    scene.clock.advance(902)
    answer = await scene.client.put(signed.url, headers=signed.headers, content=b"photo")
    assert "ExpiredToken" in answer.text
    created_at = datetime.fromisoformat((await scene.insert(b"x")).json()["timeCreated"])
    assert abs((created_at - scene.clock()).total_seconds()) < 1


async def test_signed_length_range_holds_over_the_wire(scene: Scene) -> None:
    signed = await scene.signed_put()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield b"x" * 10_000

    for body in (b"", b"x" * 1001, b"x" * 3_000_000, chunks()):
        answer = await scene.client.put(signed.url, headers=signed.headers, content=body)
        assert answer.status_code == 400
        assert "EntityToo" in answer.text
    assert not scene.published


async def test_expiry_in_the_url_is_what_was_asked_for(scene: Scene) -> None:
    query = dict(parse_qsl(urlsplit((await scene.signed_put()).url).query))
    assert (query["X-Goog-Algorithm"], query["X-Goog-Expires"]) == ("GOOG4-RSA-SHA256", "900")


# The JSON API.


@pytest.mark.parametrize("authorization", [None, "Bearer ya29.forged", "Bearer", "Basic abc"])
async def test_who_shows_no_token_of_the_fakes_gets_nothing(scene: Scene, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    assert (await scene.client.get(f"{OBJECT}/a", headers=headers)).status_code == 401
    assert (await scene.client.post(UPLOAD, params={"uploadType": "media", "name": "a"}, headers=headers)).is_error


@pytest.mark.parametrize("path", ["/storage/v1/b", "/storage/v1/b/uploads", "/storage/v1/b/uploads/iam"])
async def test_buckets_are_not_listed_or_looked_at(scene: Scene, path: str) -> None:
    await scene.insert(b"x")
    assert (await scene.client.get(path, headers=scene.bearer)).status_code == 403


async def test_objects_are_listed_if_there_is_such_a_bucket(scene: Scene) -> None:
    """https://cloud.google.com/storage/docs/json_api/v1/objects/list"""
    empty = await scene.client.get(OBJECT, headers=scene.bearer)
    assert (empty.status_code, empty.json().get("items", [])) == (200, [])
    await scene.insert(b"x")
    listed = await scene.client.get(OBJECT, params={"maxResults": "1"}, headers=scene.bearer)
    assert [item["name"] for item in listed.json()["items"]] == ["a"]
    assert (await scene.client.get("/storage/v1/b/absent/o", headers=scene.bearer)).status_code == 404


async def test_generations_rise_even_when_the_clock_does_not(scene: Scene) -> None:
    generations = []
    for step in (0, -100, 0, 5):
        scene.clock.advance(step)
        generations.append(int((await scene.insert(b"x")).json()["generation"]))
    assert generations == sorted(set(generations))


async def test_of_racing_uploads_to_a_free_name_one_is_taken(scene: Scene) -> None:
    answers = await asyncio.gather(*(scene.insert(b"%d" % n, ifGenerationMatch="0") for n in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 9
    assert len(scene.published) == 1
    (winner,) = [n for n, answer in enumerate(answers) if answer.status_code == 200]
    assert await scene.blobs.read("uploads", "a") == b"%d" % winner


async def test_precondition_on_a_generation_is_held(scene: Scene) -> None:
    first = (await scene.insert(b"first")).json()["generation"]
    second = await scene.insert(b"second", ifGenerationMatch=first)
    assert second.status_code == 200
    assert (await scene.insert(b"third", ifGenerationMatch=first)).status_code == 412
    deleted = await scene.client.delete(f"{OBJECT}/a", params={"ifGenerationMatch": first}, headers=scene.bearer)
    assert deleted.status_code == 412
    gone = await scene.client.get(f"{OBJECT}/a", params={"generation": first}, headers=scene.bearer)
    assert gone.status_code == 404
    assert len(scene.published) == 2


async def test_answer_tells_the_sums_of_the_whole_object(scene: Scene) -> None:
    await scene.insert(b"0123456789")
    expected = base64.b64encode(google_crc32c.value(b"0123456789").to_bytes(4, "big")).decode()
    for sent in ({}, {"range": "bytes=4-"}):
        answer = await scene.client.get(
            f"/download{OBJECT}/a", params={"alt": "media"}, headers={**scene.bearer, **sent}
        )
        assert answer.content == (b"456789" if sent else b"0123456789")
        assert f"crc32c={expected}," in answer.headers["x-goog-hash"]
        assert answer.headers["x-goog-stored-content-length"] == "10"


async def test_upload_in_a_session_is_checked_by_its_sum(scene: Scene) -> None:
    asked = {"uploadType": "resumable", "name": "a", "ifGenerationMatch": "0"}
    for told, status in (("crc32c=AAAAAA==", 400), (None, 200)):
        described = {**scene.bearer, "content-type": "application/json"}
        started = await scene.client.post(UPLOAD, params=asked, headers=described, json={"name": "a"})
        headers = {**scene.bearer, "content-range": "bytes 0-4/5"} | ({"x-goog-hash": told} if told else {})
        answer = await scene.client.put(started.headers["location"], content=b"photo", headers=headers)
        assert answer.status_code == status, answer.text
        found = await scene.client.get(f"{OBJECT}/a", headers=scene.bearer)
        assert found.status_code == (200 if status == 200 else 404)
    assert len(scene.published) == 1


# What it tells, and by itself.


async def test_upload_is_told_to_the_pubsub_emulator_before_it_is_answered(emulators: Emulators) -> None:
    """https://cloud.google.com/pubsub/docs/reference/rest, which the emulator speaks beside gRPC."""
    project = f"test-{secrets.token_hex(4)}"
    topic, subscription = f"projects/{project}/topics/upload-finalized", f"projects/{project}/subscriptions/uploads"
    async with (
        storage_front(project) as front,
        httpx2.AsyncClient(base_url=f"http://{emulators.pubsub_host}/v1/", verify=False, timeout=10) as pubsub,
        httpx2.AsyncClient(base_url=front.url, verify=False) as client,
    ):
        (await pubsub.put(topic, json={})).raise_for_status()
        (await pubsub.put(subscription, json={"topic": topic})).raise_for_status()
        for bucket, name in (("results", "a"), ("uploads", "b")):
            asked = {"uploadType": "media", "name": name}
            kind = {"content-type": "image/jpeg"}
            answer = await client.post(f"/upload/storage/v1/b/{bucket}/o", params=asked, content=b"photo", headers=kind)
            assert answer.status_code == 200
        pulled = (await pubsub.post(f"{subscription}:pull", json={"maxMessages": 10})).json()["receivedMessages"]
    (message,) = [received["message"] for received in pulled]
    assert message["attributes"]["objectId"] == "b"
    assert UploadFinalized.model_validate_json(base64.b64decode(message["data"])).size == 5


def test_front_runs_as_a_program_with_fakes_of_its_own(fakes: Fakes) -> None:
    command = [sys.executable, "-m", "tests.google.front", "p", "--bucket", "in", "--bucket", "out"]
    with subprocess.Popen(command, cwd=ROOT, env={"PATH": "/usr/bin"}, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            environment = ready["environment"]
            assert environment["STORAGE_EMULATOR_HOST"] == environment["STORAGE_URL"] == ready["url"]
            assert environment["GCE_METADATA_HOST"] != fakes.host
            with httpx2.Client(base_url=ready["url"], verify=False) as client:
                asked = {"uploadType": "media", "name": "a"}
                assert client.post("/upload/storage/v1/b/out/o", params=asked, content=b"x").status_code == 200
                assert client.get("/storage/v1/b/out/o/a").json()["size"] == "1"
                assert client.post("/upload/storage/v1/b/other/o", params=asked, content=b"x").status_code == 404
                assert client.get("/out/a").status_code == 403
        finally:
            process.terminate()
