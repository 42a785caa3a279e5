"""Who is let in: users by their token, pushes by their subscription's. Everybody else gets the same 401."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.requests import Request

from common.auth import Pushes, Users
from common.errors import Rejected
from common.settings import Settings, SettingsError

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
EPOCH_S = int(NOW.timestamp())
SECRET = "s" * 32
AUDIENCE, ISSUER, EMAIL = "darkroom-processor", "https://accounts.google.com", "push@p.iam.gserviceaccount.com"
Claims = dict[str, Any]


def request(authorization: str | None) -> Request:
    headers = [] if authorization is None else [(b"authorization", authorization.encode("latin-1"))]
    return Request({"type": "http", "headers": headers})


def raw_token(header: Claims, claims: object, signature: bytes | str = b"") -> str:
    """A token of any shape, signed by nobody."""

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    parts = [encoded(json.dumps(part).encode()) for part in (header, claims)]
    return ".".join([*parts, signature if isinstance(signature, str) else encoded(signature)])


# Users.

USER: Claims = {"sub": "ann", "exp": EPOCH_S + 60}


def users(**settings: Any) -> Users:
    return Users(Settings(**({"jwt_secret": SECRET} | settings)), lambda: NOW)


def user_token(claims: Claims = USER, *, key: str = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers)


def without(claims: Claims, name: str) -> Claims:
    return {key: value for key, value in claims.items() if key != name}


def test_users_subject_is_the_owner() -> None:
    assert users().owner(request(f"Bearer {user_token()}")) == "jwt:ann"


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
def test_scheme_may_be_written_in_any_case(scheme: str) -> None:
    assert users().owner(request(f"{scheme} {user_token()}")) == "jwt:ann"


def test_local_owner_needs_no_token() -> None:
    assert Users(Settings(local_owner="local:me"), lambda: NOW).owner(request(None)) == "local:me"


def test_where_a_secret_is_set_the_local_owner_is_not_let_in() -> None:
    with pytest.raises(Rejected):
        users(local_owner="local:me").owner(request(None))


def test_api_that_would_let_everybody_in_does_not_start() -> None:
    with pytest.raises(SettingsError, match="JWT_SECRET"):
        Users(Settings(), lambda: NOW)


BAD_USERS: dict[str, Callable[[], str | None]] = {
    "no header": lambda: None,
    "empty header": lambda: "",
    "no token": lambda: "Bearer ",
    "another scheme": lambda: f"Basic {user_token()}",
    "no scheme": lambda: user_token(),
    "rubbish": lambda: "Bearer a.b.c",
    "letters": lambda: "Bearer é.é.é",
    "other key": lambda: f"Bearer {user_token(key='t' * 32)}",
    "other algorithm": lambda: f"Bearer {user_token(algorithm='HS512', key=SECRET * 2)}",
    "same key, other algorithm": lambda: f"Bearer {signed_by_hand('HS384', hashlib.sha384)}",
    "alg none": lambda: f"Bearer {raw_token({'alg': 'none', 'typ': 'JWT'}, USER)}",
    "alg None": lambda: f"Bearer {raw_token({'alg': 'None'}, USER)}",
    "alg none, signed": lambda: f"Bearer {raw_token({'alg': 'none'}, USER, b'x' * 32)}",
    "no alg": lambda: f"Bearer {raw_token({}, USER)}",
    "no signature": lambda: f"Bearer {user_token().rpartition('.')[0]}.",
    "only two parts": lambda: f"Bearer {user_token().rpartition('.')[0]}",
    "expired": lambda: f"Bearer {user_token({**USER, 'exp': EPOCH_S - 31})}",
    "never expires": lambda: f"Bearer {user_token(without(USER, 'exp'))}",
    "expiry in words": lambda: f"Bearer {user_token({**USER, 'exp': 'tomorrow'})}",
    "expiry true": lambda: f"Bearer {user_token({**USER, 'exp': True})}",
    "expiry null": lambda: f"Bearer {user_token({**USER, 'exp': None})}",
    "expiry not a number": lambda: f"Bearer {user_token({**USER, 'exp': float('nan')})}",
    "expiry infinite": lambda: f"Bearer {user_token({**USER, 'exp': float('inf')})}",
    "not yet": lambda: f"Bearer {user_token({**USER, 'nbf': EPOCH_S + 31})}",
    "issued in the future": lambda: f"Bearer {user_token({**USER, 'iat': EPOCH_S + 31})}",
    "nobody": lambda: f"Bearer {user_token(without(USER, 'sub'))}",
    "empty subject": lambda: f"Bearer {user_token({**USER, 'sub': ''})}",
    "subject that is no text": lambda: (
        f"Bearer {signed_by_hand('HS256', hashlib.sha256, {**USER, 'sub': chr(0xD800)})}"
    ),
    "subject that is a number": lambda: f"Bearer {signed_by_hand('HS256', hashlib.sha256, {**USER, 'sub': 7})}",
    "subject that is null": lambda: f"Bearer {signed_by_hand('HS256', hashlib.sha256, {**USER, 'sub': None})}",
    "claims that are a list": lambda: f"Bearer {signed_by_hand('HS256', hashlib.sha256, ['sub', 'exp'])}",
    "key by url": lambda: f"Bearer {user_token(key='t' * 32, jku='https://evil.example.com', kid='1')}",
}


def signed_by_hand(algorithm: str, digest: Callable[..., Any], claims: object = USER) -> str:
    unsigned = raw_token({"alg": algorithm, "typ": "JWT"}, claims).rstrip(".")
    signature = hmac.new(SECRET.encode(), unsigned.encode(), digest).digest()
    return f"{unsigned}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


@pytest.mark.parametrize("case", BAD_USERS)
def test_user_without_a_valid_token_is_nobody(case: str) -> None:
    with pytest.raises(Rejected) as refused:
        users().owner(request(BAD_USERS[case]()))
    assert refused.value.code == "unauthenticated"


@pytest.mark.parametrize("audience", ["app", ["app", "other"], "", 7])
def test_audience_means_nothing_where_none_is_set(audience: object) -> None:
    token = signed_by_hand("HS256", hashlib.sha256, {**USER, "aud": audience})
    assert users().owner(request(f"Bearer {token}")) == "jwt:ann"


def test_subject_may_have_255_characters_and_no_more() -> None:
    assert users().owner(request(f"Bearer {user_token({**USER, 'sub': 'é' * 255})}")) == f"jwt:{'é' * 255}"
    with pytest.raises(Rejected) as refused:
        users().owner(request(f"Bearer {user_token({**USER, 'sub': 'x' * 256})}"))
    assert refused.value.code == "unauthenticated"


@pytest.mark.parametrize("subject", ["", "x" * 256, 7, None, chr(0xD800)])
def test_refusal_of_a_subject_says_what_it_must_be(subject: object) -> None:
    token = signed_by_hand("HS256", hashlib.sha256, {**USER, "sub": subject})
    with pytest.raises(Rejected, match="`sub` must be a text of 1 to 255 characters"):
        users().owner(request(f"Bearer {token}"))


def test_refusal_repeats_nothing_of_the_token() -> None:
    token = user_token(key="t" * 32)
    with pytest.raises(Rejected) as refused:
        users().owner(request(f"Bearer {token}"))
    assert token not in str(refused.value)


@pytest.mark.parametrize("claims", [{**USER, "exp": EPOCH_S - 29}, {**USER, "nbf": EPOCH_S + 29, "iat": EPOCH_S + 29}])
def test_half_a_minute_of_clock_skew_is_forgiven(claims: Claims) -> None:
    assert users().owner(request(f"Bearer {user_token(claims)}")) == "jwt:ann"


# Pushes.

PUSH: Claims = {"iss": ISSUER, "aud": AUDIENCE, "email": EMAIL, "email_verified": True, "exp": EPOCH_S + 60}


@cache
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def other_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_pem() -> bytes:
    return key().public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


async def push_key(kid: str) -> object | None:
    return key().public_key() if kid == "1" else None


def pushes(mode: str = "oidc", /, **settings: Any) -> Pushes:
    wanted = {"push_auth": mode, "push_audience": AUDIENCE, "push_issuer": ISSUER, "push_email": EMAIL}
    return Pushes(Settings(**(wanted | settings)), push_key, lambda: NOW)


def push_token(claims: Claims = PUSH, *, signer: rsa.RSAPrivateKey | None = None, **headers: Any) -> str:
    return jwt.encode(claims, signer or key(), algorithm="RS256", headers={"kid": "1", **headers})


def confused() -> str:
    """HS256 over the public key, which everybody has."""
    unsigned = raw_token({"alg": "HS256", "kid": "1", "typ": "JWT"}, PUSH).rstrip(".")
    signature = hmac.new(public_pem(), unsigned.encode(), hashlib.sha256).digest()
    return f"{unsigned}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


BAD_CLAIMS: dict[str, Claims] = {
    "other audience": {**PUSH, "aud": "darkroom-notifier"},
    "no audience": without(PUSH, "aud"),
    "empty audience": {**PUSH, "aud": ""},
    "other audiences": {**PUSH, "aud": ["a", "b"]},
    "other issuer": {**PUSH, "iss": "https://evil.example.com"},
    "issuer without scheme": {**PUSH, "iss": "accounts.google.com.evil.example.com"},
    "no issuer": without(PUSH, "iss"),
    "other email": {**PUSH, "email": "push@other.iam.gserviceaccount.com"},
    "email in capitals": {**PUSH, "email": EMAIL.upper()},
    "no email": without(PUSH, "email"),
    "unverified": {**PUSH, "email_verified": False},
    "verified in words": {**PUSH, "email_verified": "true"},
    "verified by one": {**PUSH, "email_verified": 1},
    "verification unknown": without(PUSH, "email_verified"),
    "expired": {**PUSH, "exp": EPOCH_S - 31},
    "never expires": without(PUSH, "exp"),
    "issued in the future": {**PUSH, "iat": EPOCH_S + 31},
    "not yet": {**PUSH, "nbf": EPOCH_S + 31},
}
BAD_PUSHES: dict[str, Callable[[], str | None]] = {
    "no header": lambda: None,
    "rubbish": lambda: "Bearer rubbish",
    "header that is no JSON": lambda: "Bearer !!!.e30.e30",
    "header that is a list": lambda: f"Bearer {base64.urlsafe_b64encode(b'[]').decode()}.e30.e30",
    "other key, same kid": lambda: f"Bearer {push_token(signer=other_key())}",
    "unknown kid": lambda: f"Bearer {push_token(kid='2')}",
    "no kid": lambda: f"Bearer {jwt.encode(PUSH, key(), algorithm='RS256')}",
    "kid that is a path": lambda: f"Bearer {push_token(kid='../../../dev/null')}",
    "kid that is a number": lambda: f"Bearer {raw_token({'alg': 'RS256', 'kid': 1}, PUSH, b'x')}",
    "alg none": lambda: f"Bearer {raw_token({'alg': 'none', 'kid': '1'}, PUSH)}",
    "alg none, signed": lambda: f"Bearer {raw_token({'alg': 'none', 'kid': '1'}, PUSH, b'x' * 256)}",
    "HS256 with the public key": lambda: f"Bearer {confused()}",
    "other algorithm, same key": lambda: f"Bearer {jwt.encode(PUSH, key(), algorithm='RS512', headers={'kid': '1'})}",
    "no signature": lambda: f"Bearer {push_token().rpartition('.')[0]}.",
    "signature removed": lambda: f"Bearer {push_token().rpartition('.')[0]}.SIGNATURE_REMOVED_BY_GOOGLE",
    "key in its own header": lambda: f"Bearer {push_token(signer=other_key(), jwk={'kty': 'RSA'}, jku='https://e')}",
}


async def test_push_of_our_subscription_is_let_in() -> None:
    await pushes().check(request(f"Bearer {push_token()}"))


@pytest.mark.parametrize("case", BAD_CLAIMS)
async def test_push_with_other_claims_is_refused(case: str) -> None:
    with pytest.raises(Rejected) as refused:
        await pushes().check(request(f"Bearer {push_token(BAD_CLAIMS[case])}"))
    assert refused.value.code == "unauthenticated"


@pytest.mark.parametrize("case", BAD_PUSHES)
async def test_push_without_our_subscriptions_token_is_refused(case: str) -> None:
    with pytest.raises(Rejected) as refused:
        await pushes().check(request(BAD_PUSHES[case]()))
    assert refused.value.code == "unauthenticated"


@pytest.mark.parametrize("name", ["push_auth", "push_audience", "push_email"])
def test_private_app_that_would_be_open_does_not_start(name: str) -> None:
    with pytest.raises(SettingsError, match=name.upper()):
        pushes(**{name: None})


# Behind Cloud Run's IAM, which has checked the signature and taken it away.


@pytest.fixture
def _on_cloud_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K_SERVICE", "processor-push")


def removed(claims: Claims = PUSH, mark: str = "SIGNATURE_REMOVED_BY_GOOGLE") -> str:
    return raw_token({"alg": "RS256", "kid": "x", "typ": "JWT"}, claims, mark)


def test_iam_mode_does_not_start_outside_cloud_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("K_SERVICE", raising=False)
    with pytest.raises(SettingsError, match="oidc"):
        pushes("iam")


@pytest.mark.usefixtures("_on_cloud_run")
async def test_iam_mode_takes_what_the_platform_vouches_for() -> None:
    await pushes("iam").check(request(f"Bearer {removed()}"))


@pytest.mark.usefixtures("_on_cloud_run")
@pytest.mark.parametrize("case", BAD_CLAIMS)
async def test_iam_mode_refuses_other_claims(case: str) -> None:
    with pytest.raises(Rejected):
        await pushes("iam").check(request(f"Bearer {removed(BAD_CLAIMS[case])}"))


@pytest.mark.usefixtures("_on_cloud_run")
@pytest.mark.parametrize(
    "mark",
    [
        "",
        "x",
        "signature_removed_by_google",
        "SIGNATURE_REMOVED_BY_GOOGLE_",
        "SIGNATURE_REMOVED_BY_GOOGLE.x",
        "x.SIGNATURE_REMOVED_BY_GOOGLE",
    ],
)
async def test_iam_mode_takes_no_other_mark(mark: str) -> None:
    with pytest.raises(Rejected):
        await pushes("iam").check(request(f"Bearer {removed(mark=mark)}"))


@pytest.mark.usefixtures("_on_cloud_run")
async def test_iam_mode_refuses_a_token_with_its_signature() -> None:
    with pytest.raises(Rejected):
        await pushes("iam").check(request(f"Bearer {push_token()}"))
    with pytest.raises(Rejected):
        await pushes("iam").check(request(f"Bearer {raw_token({'alg': 'none'}, PUSH)}"))


@pytest.mark.usefixtures("_on_cloud_run")
async def test_oidc_mode_on_cloud_run_still_checks_the_signature() -> None:
    token = raw_token({"alg": "RS256", "kid": "1", "typ": "JWT"}, PUSH, "SIGNATURE_REMOVED_BY_GOOGLE")
    with pytest.raises(Rejected):
        await pushes("oidc").check(request(f"Bearer {token}"))
