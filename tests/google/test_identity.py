"""Who the service is: tokens from the metadata server, signatures from IAM, links equal to those of Google's SDK."""

import asyncio
import json
import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import google.auth.crypt
import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage  # type: ignore[attr-defined]
from google.oauth2.service_account import Credentials

from common.errors import Unavailable
from common.google.blobs import CloudBlobs
from common.google.identity import Identity
from common.settings import Settings, SettingsError
from tests.bench import Clock
from tests.google.fakes import EMAIL, Fakes

ROOT = Path(__file__).parents[2]
NOON = datetime(2026, 5, 4, 12, 0, 0, 250_000, tzinfo=UTC)
PERSON = {"type": "authorized_user", "client_id": "a", "client_secret": "b", "refresh_token": "c"}


def genuine(fakes: Fakes, data: bytes, signature: bytes) -> bool:
    fakes.signer.public.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    return True


# Tokens.


async def test_token_is_the_metadata_servers(identity: Identity, fakes: Fakes) -> None:
    assert await identity.access_token() in fakes.tokens


async def test_token_is_asked_for_once_until_shortly_before_it_expires(
    identity: Identity, fakes: Fakes, clock: Clock
) -> None:
    before = fakes.calls["token"]
    tokens = await asyncio.gather(*(identity.access_token() for _ in range(10)))
    assert len(set(tokens)) == 1
    clock.advance(3600 - 240)
    assert await identity.access_token() == tokens[0]
    assert fakes.calls["token"] == before + 1
    clock.advance(30)
    assert await identity.access_token() != tokens[0]
    assert fakes.calls["token"] == before + 2


async def test_token_that_still_lives_is_used_while_no_new_one_is_to_be_had(
    identity: Identity, fakes: Fakes, clock: Clock
) -> None:
    token = await identity.access_token()
    clock.advance(3600 - 60)
    fakes.metadata_faults.append(404)
    assert await identity.access_token() == token
    clock.advance(120)
    fakes.metadata_faults.append(404)
    with pytest.raises(Unavailable):
        await identity.access_token()
    assert await identity.access_token() != token


async def test_service_without_credentials_is_unavailable_and_says_why_to_its_operator(
    identity: Identity, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(Unavailable, match="no Google credentials"):
        await identity.access_token()
    assert "absent.json" in next(vars(r)["reason"] for r in caplog.records if r.message == "identity.absent")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    assert await identity.access_token()


# Who signs.


async def test_signer_is_the_services_own_account(identity: Identity) -> None:
    assert await identity.email() == EMAIL


async def test_signer_may_be_set_and_nobody_is_asked(fakes: Fakes, clock: Clock) -> None:
    before = fakes.calls.total()
    identity = Identity(Settings(signer_email="api@p.iam.gserviceaccount.com"), clock)
    assert await identity.email() == "api@p.iam.gserviceaccount.com"
    assert fakes.calls.total() == before


async def test_person_cannot_sign_and_is_told_what_to_set(
    identity: Identity, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with pytest.raises(SettingsError, match="set SIGNER_EMAIL"):
        await identity.sign_blob(b"text")


# Signatures.


async def test_bytes_are_signed_by_the_accounts_key(identity: Identity, fakes: Fakes) -> None:
    assert genuine(fakes, b"\x00\xff text", await identity.sign_blob(b"\x00\xff text"))


async def test_claims_are_signed_as_a_token(identity: Identity, fakes: Fakes) -> None:
    claims = {"iss": EMAIL, "uid": "jwt:ann", "claims": {"owner": "jwt:ann", "names": ["é", ""]}, "exp": 2**31}
    token = await identity.sign_jwt(claims)
    assert jwt.decode(token, fakes.signer.public, algorithms=["RS256"]) == claims


@pytest.mark.parametrize("statuses", [[503], [500, 429], [502, 504, 408]])
async def test_signing_survives_what_passes(identity: Identity, fakes: Fakes, statuses: list[int]) -> None:
    fakes.faults.extend(statuses)
    assert genuine(fakes, b"text", await identity.sign_blob(b"text"))
    assert not fakes.faults


async def test_revoked_token_is_replaced_once(identity: Identity, fakes: Fakes) -> None:
    fakes.tokens.discard(await identity.access_token())
    assert genuine(fakes, b"text", await identity.sign_blob(b"text"))
    fakes.faults.extend([401, 401])
    with pytest.raises(Unavailable, match="401"):
        await identity.sign_blob(b"text")


@pytest.mark.parametrize("status", [400, 403, 404])
async def test_account_that_may_not_sign_is_told_to_the_operator_at_once(
    identity: Identity, fakes: Fakes, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    before = fakes.calls["signBlob"]
    fakes.faults.append(status)
    with pytest.raises(Unavailable, match=f"signing was refused: {status}"):
        await identity.sign_blob(b"text")
    assert fakes.calls["signBlob"] == before + 1
    (refusal,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "roles/iam.serviceAccountTokenCreator" in vars(refusal)["advice"]


async def test_signing_is_given_up_in_time(identity: Identity, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.google.identity.call_s_max", 0.2)
    fakes.faults.extend([503] * 20)
    with pytest.raises(Unavailable, match="not answered"):
        await identity.sign_blob(b"text")
    fakes.faults.clear()


async def test_iam_that_cannot_be_reached_is_unavailable(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.google.identity.call_s_max", 0.2)
    identity = Identity(Settings(iam_credentials_url="http://127.0.0.1:1", signer_email=EMAIL), clock)
    with pytest.raises(Unavailable):
        await identity.sign_jwt({})
    await identity.aclose()


@pytest.mark.usefixtures("fakes")
async def test_identity_that_was_never_used_closes(identity: Identity) -> None:
    await identity.aclose()


# Signed URLs, by us and by Google's SDK.

NAMES = [
    "a",
    "uploads/jwt~3Aann/" + "0" * 32,
    "a b+c&d=e%2F?#",
    "ünï/çødé",
    "~tilde-._/",
    "漢字/😀",
    "a//b/./..",
    "'()*!@:,;$[]{}|\\\"<>^`",
    "line\nbreak\ttab",
    "x" * 1000,
]
HEADERS = {"Content-Type": "image/jpeg", "x-goog-content-length-range": "1,1000", "x-goog-if-generation-match": "0"}


@pytest.fixture
def sdk(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> storage.Client:
    """Google's client, which signs at NOON with the account's key in hand."""
    monkeypatch.setattr("google.cloud.storage._signing._NOW", lambda zone: NOON.astimezone(zone))
    return storage.Client(project="p", credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]


def key_in_hand(fakes: Fakes) -> Credentials:
    pem = fakes.signer.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    signer = google.auth.crypt.RSASigner.from_string(pem, fakes.signer.id)  # type: ignore[no-untyped-call]
    return Credentials(signer, EMAIL, "https://oauth2.example.com/token")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", NAMES)
async def test_link_is_byte_for_byte_that_of_googles_sdk(
    identity: Identity, fakes: Fakes, sdk: storage.Client, name: str
) -> None:
    blobs = CloudBlobs(Settings(), identity, lambda: NOON)
    put = await blobs.sign_put("uploads", name, content_type="image/jpeg", bytes_max=1000, expires_s=900)
    get = await blobs.sign_get("uploads", name, expires_s=604800)
    blob = sdk.bucket("uploads").blob(name)
    common = {"version": "v4", "credentials": key_in_hand(fakes)}
    assert put.headers == HEADERS
    assert put.url == blob.generate_signed_url(
        expiration=timedelta(seconds=900), method="PUT", headers=dict(HEADERS), **common
    )
    assert get.url == blob.generate_signed_url(expiration=timedelta(days=7), method="GET", **common)
    assert put.expires_at == datetime(2026, 5, 4, 12, 15, tzinfo=UTC)


async def test_other_endpoint_is_signed_as_by_googles_sdk(
    fakes: Fakes, clock: Clock, identity: Identity, sdk: storage.Client
) -> None:
    endpoint = "https://storage.europe-west3.rep.googleapis.com"
    blobs = CloudBlobs(Settings(storage_url=endpoint + "/"), identity, lambda: NOON)
    signed = await blobs.sign_get("results", "a/b", expires_s=60)
    assert signed.url == sdk.bucket("results").blob("a/b").generate_signed_url(
        version="v4", credentials=key_in_hand(fakes), expiration=timedelta(seconds=60), api_access_endpoint=endpoint
    )


SIGNING = """
import asyncio, sys
from common.clock import utc_now
from common.google.blobs import CloudBlobs
from common.google.identity import Identity
from common.settings import load
early = set(sys.modules)
async def main():
    settings = load()
    identity = Identity(settings, utc_now)
    blobs = CloudBlobs(settings, identity, utc_now)
    await blobs.sign_put("uploads", "a", content_type="image/jpeg", bytes_max=9, expires_s=60)
    await blobs.aclose()
    await identity.aclose()
asyncio.run(main())
print(*{"google.cloud.storage", "grpc"} & set(sys.modules), *{"google.auth", "httpx2", "requests"} & early)
"""


def test_signing_loads_no_storage_sdk_and_importing_loads_nothing_of_googles(fakes: Fakes) -> None:
    environment = {"PATH": "/usr/bin", **fakes.environment}
    ran = subprocess.run(
        [sys.executable, "-c", SIGNING], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ran.stdout.strip(), ran.returncode) == ("", 0), ran.stderr
