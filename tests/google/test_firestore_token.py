"""POST /v1/firestore-token: what the token says, who gets one, and that nothing else ever shows it."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from common.errors import CODES, Rejected
from common.google.custom_token import AUDIENCE, token_claims, uid
from common.google.engine import open_engine
from common.names import encode_owner, owner_bytes_max
from common.ports import Engine, FirestoreToken
from common.settings import Settings
from ingest.api import create_app
from local.engine.engine import open_engine as open_embedded
from tests.bench import Clock
from tests.google.fakes import Fakes

SECRET = "s" * 40
PATH = "/v1/firestore-token"


def settings(fakes: Fakes) -> Settings:
    return Settings(
        google_cloud_project="darkroom-test",
        firestore_database="jobs-db",
        iam_credentials_url=fakes.settings["iam_credentials_url"],
        jwt_secret=SecretStr(SECRET),
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def api(engine: Engine, configured: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=create_app(engine, configured))
    async with httpx2.AsyncClient(transport=transport, base_url="https://api.example.com") as client:
        yield client


@pytest.fixture
async def cloud(fakes: Fakes, clock: Clock) -> AsyncIterator[httpx2.AsyncClient]:
    """The API on the cloud engine; a token needs nothing of it but the way to IAM."""
    engine = open_engine(settings(fakes), now=clock)
    async with api(engine, settings(fakes)) as client:
        yield client
    await engine.aclose()


def bearer(clock: Clock, subject: str = "ann") -> dict[str, str]:
    token = jwt.encode({"sub": subject, "exp": clock().timestamp() + 600}, SECRET, algorithm="HS256")
    return {"authorization": f"Bearer {token}"}


def problem(answer: httpx2.Response) -> tuple[int, str, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    return answer.status_code, body["code"], body["advice"]


def expected(status: int, code: str) -> tuple[int, str, str]:
    return status, code, CODES[code].advice


async def test_a_caller_gets_a_token_and_hears_where_to_listen(cloud: httpx2.AsyncClient, clock: Clock) -> None:
    answer = await cloud.post(PATH, headers=bearer(clock))
    body = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert set(body) == {"token", "expires_at", "project_id", "database", "collection", "owner"}
    assert (body["project_id"], body["database"]) == ("darkroom-test", "jobs-db")
    assert (body["collection"], body["owner"]) == ("jobs", "jwt:ann")


async def test_the_token_is_a_custom_token_as_firebase_describes_it(
    cloud: httpx2.AsyncClient, clock: Clock, fakes: Fakes
) -> None:
    asked_at = int(clock().timestamp())
    body = (await cloud.post(PATH, headers=bearer(clock))).json()
    said: dict[str, Any] = jwt.decode(body["token"], fakes.signer.public, algorithms=["RS256"], audience=AUDIENCE)
    assert set(said) == {"iss", "sub", "aud", "iat", "exp", "uid", "claims"}
    assert said["iss"] == said["sub"] == fakes.email
    assert asked_at <= said["iat"] <= asked_at + 1
    assert said["exp"] == said["iat"] + 3600 == datetime.fromisoformat(body["expires_at"]).timestamp()
    assert said["uid"] == uid("jwt:ann")
    assert said["claims"] == {"owner": "jwt:ann", "owner_until": said["exp"]}


async def test_an_owner_of_any_script_arrives_unchanged(cloud: httpx2.AsyncClient, clock: Clock) -> None:
    subject = "Zoe\u0308 写真館 🦊 \"'\\\n"
    body = (await cloud.post(PATH, headers=bearer(clock, subject))).json()
    said = jwt.decode(body["token"], options={"verify_signature": False})
    assert said["claims"]["owner"] == body["owner"] == f"jwt:{subject}"


async def test_the_token_is_in_no_log_and_no_repr(
    cloud: httpx2.AsyncClient, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = (await cloud.post(PATH, headers=bearer(clock))).json()["token"]
    secret = token.rpartition(".")[2]
    assert secret not in "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert secret not in repr(FirestoreToken(token, clock(), "project", "(default)"))


async def test_who_is_not_signed_in_gets_none(cloud: httpx2.AsyncClient, clock: Clock) -> None:
    unauthenticated = expected(401, "unauthenticated")
    assert problem(await cloud.post(PATH)) == unauthenticated
    assert problem(await cloud.post(PATH, headers={"authorization": "Bearer x"})) == unauthenticated


async def test_a_token_is_made_not_looked_up(cloud: httpx2.AsyncClient, clock: Clock) -> None:
    assert problem(await cloud.get(PATH, headers=bearer(clock))) == expected(405, "method_not_allowed")


async def test_the_embedded_engine_has_no_firestore_and_says_what_to_do(
    tmp_path: Path, fakes: Fakes, clock: Clock
) -> None:
    configured = settings(fakes)
    embedded = await open_embedded(tmp_path, configured, now=clock)
    async with api(embedded.engine, configured) as client:
        assert problem(await client.post(PATH)) == expected(401, "unauthenticated")
        assert problem(await client.post(PATH, headers=bearer(clock))) == expected(404, "no_firestore")
    await embedded.engine.aclose()


@pytest.mark.parametrize("character", ["x", "é", "🦊"])
async def test_the_longest_owners_get_a_token(cloud: httpx2.AsyncClient, clock: Clock, character: str) -> None:
    longest = (owner_bytes_max - len(encode_owner("jwt:"))) // len(encode_owner(character))
    subject = character * min(255, longest)
    assert (await cloud.post(PATH, headers=bearer(clock, subject))).status_code == 200


async def test_an_owner_that_fits_no_token_is_told_so(cloud: httpx2.AsyncClient, clock: Clock) -> None:
    assert problem(await cloud.post(PATH, headers=bearer(clock, "\1" * 255))) == expected(422, "invalid_request")


async def test_where_iam_does_not_sign_the_caller_is_asked_to_come_again(
    cloud: httpx2.AsyncClient, clock: Clock, fakes: Fakes
) -> None:
    fakes.faults.append(403)
    answer = await cloud.post(PATH, headers=bearer(clock))
    assert problem(answer) == expected(503, "unavailable")
    assert answer.headers["retry-after"] == "5"


@given(owner=st.text(min_size=1, max_size=1024))
def test_every_token_is_within_the_limits_of_firebase(owner: str) -> None:
    fits = len(json.dumps(owner)) <= 960
    with nullcontext() if fits else pytest.raises(Rejected, match="invalid_request"):
        said: Any = token_claims(owner, email="api@example.com", issued_at=1_800_000_000)
        assert len(json.dumps(said["claims"])) <= 1000
        assert len(said["uid"]) <= 128
        assert said["uid"].isascii()


def test_a_token_never_signs_in_as_the_firebase_user_that_owns_the_jobs() -> None:
    assert uid("fb:alice") not in {"alice", "fb:alice"}
    assert len({uid("fb:alice"), uid("key:alice"), uid("key:Alice")}) == 3
