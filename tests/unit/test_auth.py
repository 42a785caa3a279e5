"""Which users are let in; everybody else gets the same 401. For pushes see tests/google/test_push_auth.py."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from starlette.requests import Request

from common.auth import Users
from common.errors import Rejected
from common.names import upload_name
from common.settings import Settings, SettingsError

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
EPOCH_S = int(NOW.timestamp())
SECRET = "s" * 32
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
    "not for ages": lambda: f"Bearer {user_token({**USER, 'nbf': 10**400})}",
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


def test_of_two_tokens_none_counts() -> None:
    headers = [(b"authorization", f"Bearer {user_token()}".encode())] * 2
    with pytest.raises(Rejected) as refused:
        users().owner(Request({"type": "http", "headers": headers}))
    assert refused.value.code == "unauthenticated"


@pytest.mark.parametrize("audience", ["app", ["app", "other"], "", 7])
def test_audience_means_nothing_where_none_is_set(audience: object) -> None:
    token = signed_by_hand("HS256", hashlib.sha256, {**USER, "aud": audience})
    assert users().owner(request(f"Bearer {token}")) == "jwt:ann"


@pytest.mark.parametrize("subject", ["x" * 255, "@" * 255, "é" * 149, "😀" * 74])
def test_subject_may_be_as_long_as_objects_can_be_named_after_it(subject: str) -> None:
    owner = users().owner(request(f"Bearer {user_token({**USER, 'sub': subject})}"))
    assert owner == f"jwt:{subject}"
    assert len(upload_name(owner, "0" * 32)) <= 1024


@pytest.mark.parametrize("subject", ["é" * 150, "é" * 255, "漢" * 255, "😀" * 75])
def test_subject_that_objects_cannot_be_named_after_is_refused_with_advice(subject: str) -> None:
    with pytest.raises(Rejected, match="use 255 characters of ASCII, or 74 of any other script") as refused:
        users().owner(request(f"Bearer {user_token({**USER, 'sub': subject})}"))
    assert refused.value.code == "unauthenticated"


def test_subject_may_have_255_characters_and_no_more() -> None:
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
