"""Who calls: users of the public apps, and pushes to the private ones. No route decides this for itself."""

import math
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jwt
from starlette.requests import Request

from common.documents import is_text
from common.errors import Rejected
from common.settings import Settings, SettingsError
from common.telemetry import logger

if TYPE_CHECKING:
    from jwt.types import Options

log = logger(__name__)

PushKey = Callable[[str], Awaitable[object | None]]
Clock = Callable[[], datetime]
_clock_skew_s = 30
_subject_chars_max = 255
_removed = "SIGNATURE_REMOVED_BY_GOOGLE"
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
        return f"jwt:{_subject(claims)}"


class Pushes:
    """Lets in only our own subscription. `iam`: Cloud Run checked and removed the signature; `oidc`: we check it.

    Raises SettingsError if PUSH_AUTH, PUSH_AUDIENCE or PUSH_EMAIL is missing, or `iam` is asked for outside Cloud Run.
    """

    def __init__(self, settings: Settings, push_key: PushKey, now: Clock) -> None:
        missing = [n for n in ("push_auth", "push_audience", "push_email") if getattr(settings, n) is None]
        if missing:
            raise SettingsError(f"a private app would be open to everybody: set {', '.join(missing).upper()}")
        if settings.push_auth == "iam" and "K_SERVICE" not in os.environ:
            raise SettingsError("PUSH_AUTH=iam trusts Cloud Run to check signatures; elsewhere use PUSH_AUTH=oidc")
        self._settings = settings
        self._push_key = push_key
        self._now = now
        self._checked: tuple[str, dict[str, Any]] = ("", {})

    async def check(self, request: Request) -> None:
        """Raise Rejected("unauthenticated") unless the push carries our subscription's token."""
        token = _bearer(request)
        try:
            claims = await self._claims(token)
        except (jwt.PyJWTError, ValueError) as exc:
            log.warning("push.refused", extra={"reason": type(exc).__name__})
            raise Rejected("unauthenticated", "the push token is not valid") from exc
        if claims.get("email") != self._settings.push_email or claims.get("email_verified") is not True:
            log.warning("push.refused", extra={"reason": "email"})
            raise Rejected("unauthenticated", "the push token belongs to somebody else")

    async def _claims(self, token: str) -> dict[str, Any]:
        # A subscription sends the same token for an hour: its signature is checked once, its times always.
        known, claims = self._checked
        if token != known:
            claims = await self._verified(token)
            self._checked = (token, claims)
        _check_times(claims, self._now())
        return claims

    async def _verified(self, token: str) -> dict[str, Any]:
        key: object = ""
        verify_signature = self._settings.push_auth == "oidc"
        if verify_signature:
            key = await self._push_key(str(jwt.get_unverified_header(token).get("kid")))
            if key is None:
                raise jwt.InvalidKeyError("unknown kid")
        elif token.rpartition(".")[2] != _removed:
            # Behind IAM every genuine token has lost its signature; anything else did not pass Cloud Run's check.
            raise jwt.InvalidSignatureError("the platform did not vouch for this token")
        else:
            token = f"{token.rpartition('.')[0]}."
        claims: dict[str, Any] = jwt.decode(
            token,
            key,  # type: ignore[arg-type]
            algorithms=["RS256"],
            audience=self._settings.push_audience,
            issuer=self._settings.push_issuer,
            options={
                **_NO_TIMES,
                "verify_signature": verify_signature,
                "require": ["exp", "aud", "iss"],
                "verify_aud": True,
                "verify_iss": True,
            },
        )
        return claims


def _check_times(claims: dict[str, Any], now: datetime) -> None:
    """Raise InvalidTokenError unless `exp` lies ahead and `nbf` and `iat` do not, by RFC 7519 and 30 s of skew."""
    moment = now.timestamp()
    times = {name: claims[name] for name in ("exp", "nbf", "iat") if name in claims}
    if not all(_is_time(time) for time in times.values()):
        raise jwt.DecodeError("a time in the token is no number")
    if moment > times["exp"] + _clock_skew_s:
        raise jwt.ExpiredSignatureError("the token has expired")
    if any(times[name] > moment + _clock_skew_s for name in ("nbf", "iat") if name in times):
        raise jwt.ImmatureSignatureError("the token is not valid yet")


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _subject(claims: dict[str, Any]) -> str:
    subject = claims.get("sub")
    if isinstance(subject, str) and 1 <= len(subject) <= _subject_chars_max and is_text(subject):
        return subject
    raise Rejected("unauthenticated", f"the token's `sub` must be a text of 1 to {_subject_chars_max} characters")


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Rejected("unauthenticated", "there is no bearer token in the Authorization header")
    return token.strip()
