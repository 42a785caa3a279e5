"""Who calls: users of the public apps, and pushes to the private ones. No route decides this for itself.

PyJWT is imported where a token is read: it brings all of `cryptography`, a fifth of a cold start.
"""

import hashlib
import math
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from common.documents import is_text
from common.errors import Rejected
from common.names import encode_owner, owner_bytes_max
from common.settings import Settings, SettingsError
from common.telemetry import logger

if TYPE_CHECKING:
    from jwt.types import Options

log = logger(__name__)

PushKey = Callable[[str], Awaitable[object | None]]
Clock = Callable[[], datetime]
_clock_skew_s = 30
_subject_chars_max = 255
# Each takes up to 12 of the bytes that an owner may have in an object's name, of which `jwt:` takes 6.
_other_chars_max = (owner_bytes_max - 6) // 12
_removed = "SIGNATURE_REMOVED_BY_GOOGLE"
# Google signs with either, https://developers.google.com/identity/openid-connect/openid-connect#obtainuserinfo
_GOOGLE = frozenset({"https://accounts.google.com", "accounts.google.com"})
# A private app hears from a few subscriptions and the scheduler, each with a token of its own.
_checked_max = 8
# PyJWT asks the wall clock; ours is an argument, so `_check_times` does these three.
_NO_TIMES: "Options" = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}


class Users:
    """Finds the owner behind a request: the one local owner, or the subject of an HS256 bearer token.

    Raises SettingsError where neither is configured: an API that lets everybody in must be impossible to start.
    """

    def __init__(self, settings: Settings, now: Clock) -> None:
        self._now = now
        self._local_owner = settings.local_owner
        self._secret = settings.jwt_secret
        if self._local_owner is None and self._secret is None:
            raise SettingsError("nobody could sign in: set JWT_SECRET to 32 random bytes or more")

    def owner(self, request: Request) -> str:
        """The caller as `{label}:{subject}`. Raises Rejected("unauthenticated").

        No audience of ours is configured, so a token's `aud` is not looked at.
        """
        if self._secret is None:
            assert self._local_owner is not None
            return self._local_owner
        import jwt

        try:
            claims = jwt.decode(
                _bearer(request),
                self._secret.get_secret_value(),
                algorithms=["HS256"],
                options={**_NO_TIMES, "require": ["exp"], "verify_aud": False, "verify_sub": False},
            )
            _check_times(claims, self._now())
        except jwt.InvalidTokenError as exc:
            raise Rejected("unauthenticated", "the bearer token is not valid or has expired") from exc
        return _named(f"jwt:{_subject(claims)}")


class Pushes:
    """Lets in only our own subscription. `iam`: Cloud Run checked and removed the signature; `oidc`: we check it.

    Raises SettingsError if PUSH_AUTH, PUSH_AUDIENCE or PUSH_EMAIL is missing, or `iam` is asked for outside Cloud Run.
    """

    def __init__(self, settings: Settings, push_key: PushKey, now: Clock) -> None:
        missing = [n for n in ("push_auth", "push_audience", "push_issuer", "push_email") if not getattr(settings, n)]
        if missing:
            raise SettingsError(f"a private app would be open to everybody: set {', '.join(missing).upper()}")
        if settings.push_auth == "iam" and not os.environ.get("K_SERVICE"):
            raise SettingsError("PUSH_AUTH=iam trusts Cloud Run to check signatures; elsewhere use PUSH_AUTH=oidc")
        self._behind_iam = settings.push_auth == "iam"
        self._audience = settings.push_audience
        self._email = settings.push_email
        self._issuers = _GOOGLE if settings.push_issuer in _GOOGLE else frozenset({settings.push_issuer})
        self._push_key = push_key
        self._now = now
        self._checked: dict[bytes, dict[str, Any]] = {}

    async def check(self, request: Request) -> None:
        """Raise Rejected("unauthenticated") unless the push carries our subscription's token.

        Raises Unavailable if the key that would have signed it cannot be fetched.
        """
        if self._behind_iam and "x-serverless-authorization" in request.headers:
            # Cloud Run looks at this header alone then, and hands the other on as the caller wrote it.
            log.warning("push.refused", extra={"reason": "second token"})
            raise Rejected("unauthenticated", "a push carries one token")
        import jwt

        token = _bearer(request)
        try:
            claims = await self._claims(token)
        except (jwt.PyJWTError, ValueError) as exc:
            log.warning("push.refused", extra={"reason": type(exc).__name__})
            raise Rejected("unauthenticated", "the push token is not valid") from exc
        if claims.get("email") != self._email or claims.get("email_verified") is not True:
            log.warning("push.refused", extra={"reason": "email"})
            raise Rejected("unauthenticated", "the push token belongs to somebody else")

    async def _claims(self, token: str) -> dict[str, Any]:
        # A subscription sends the same token for an hour: its signature is checked once, its times always.
        digest = hashlib.sha256(token.encode()).digest()
        claims = self._checked.get(digest)
        if claims is None:
            claims = await self._verified(token)
            while len(self._checked) >= _checked_max:
                del self._checked[next(iter(self._checked))]
            self._checked[digest] = claims
        _check_times(claims, self._now())
        return claims

    async def _verified(self, token: str) -> dict[str, Any]:
        import jwt

        if self._behind_iam:
            token, _, signature = token.rpartition(".")
            # Behind IAM every genuine token has lost its signature; anything else did not pass Cloud Run's check.
            if signature != _removed:
                raise jwt.InvalidSignatureError("the platform did not vouch for this token")
            token += "."
        header = jwt.get_unverified_header(token)
        if header.get("alg") != "RS256":
            raise jwt.InvalidAlgorithmError("Google signs with RS256")
        key: object | None = ""
        if not self._behind_iam:
            key = await self._push_key(header["kid"]) if "kid" in header else None
        if key is None:
            raise jwt.InvalidKeyError("unknown kid")
        claims: dict[str, Any] = jwt.decode(
            token,
            key,  # type: ignore[arg-type]
            algorithms=["RS256"],
            audience=self._audience,
            issuer=self._issuers,
            options={
                **_NO_TIMES,
                "verify_signature": not self._behind_iam,
                "require": ["exp", "aud", "iss"],
                "verify_aud": True,
                "strict_aud": True,
                "verify_iss": True,
                "verify_sub": True,
            },
        )
        return claims


def _check_times(claims: dict[str, Any], now: datetime) -> None:
    """Raise InvalidTokenError unless `exp` lies ahead and `nbf` and `iat` do not, by RFC 7519 and 30 s of skew."""
    import jwt

    moment = now.timestamp()
    times = {name: claims[name] for name in ("exp", "nbf", "iat") if name in claims}
    if not all(_is_time(time) for time in times.values()):
        raise jwt.DecodeError("a time in the token is no number")
    if moment > times["exp"] + _clock_skew_s:
        raise jwt.ExpiredSignatureError("the token has expired")
    if any(times[name] > moment + _clock_skew_s for name in ("nbf", "iat") if name in times):
        raise jwt.ImmatureSignatureError("the token is not valid yet")


def _is_time(value: object) -> bool:
    # An integer of hundreds of digits is finite, but no float, which `isfinite` would make of it.
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def _subject(claims: dict[str, Any]) -> str:
    subject = claims.get("sub")
    if isinstance(subject, str) and 1 <= len(subject) <= _subject_chars_max and is_text(subject):
        return subject
    raise Rejected("unauthenticated", f"the token's `sub` must be a text of 1 to {_subject_chars_max} characters")


def _named(owner: str) -> str:
    """The owner, who must fit the names of objects. Raises Rejected("unauthenticated")."""
    try:
        encode_owner(owner)
    except Rejected as exc:
        raise Rejected(
            "unauthenticated",
            f"the token's `sub` is too long for the names of objects: use {_subject_chars_max} characters of ASCII, or"
            f" {_other_chars_max} of any other script",
        ) from exc
    return owner


def _bearer(request: Request) -> str:
    # Two of them joined are none: servers differ in which one counts.
    scheme, _, token = ",".join(request.headers.getlist("authorization")).partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Rejected("unauthenticated", "there is no bearer token in the Authorization header")
    return token.strip()
