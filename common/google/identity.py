"""Who this service is on Google Cloud: access tokens, and signatures without a key file. No bucket is known here."""

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from common.errors import Unavailable
from common.google.calls import call_s_max, translated, try_s_max
from common.google.credentials import Loader, refresh
from common.google.opening import Life, Shared
from common.settings import Settings, SettingsError
from common.telemetry import logger

if TYPE_CHECKING:
    import httpx2

log = logger(__name__)

# The metadata server hands out the same token until it has less than five minutes to live; google-auth renews then too.
_renewal = timedelta(minutes=3, seconds=45)
# Who has a token that lives waits no longer for a new one, and does not wait at all soon after that was in vain.
_patience_s = 1.0
_failure_pause = timedelta(seconds=10)
_first_pause_s = 0.05
_pause_s_max = 1.0
_keepalive_s = 60.0
_passing = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    expires_at: datetime | None

    def lives(self, moment: datetime) -> bool:
        return self.expires_at is None or moment < self.expires_at


class Identity:
    """Application Default Credentials: the service account on Google Cloud, whatever gcloud knows elsewhere.

    Nothing is read or asked before the first use. Signing goes through the IAM Credentials API, which keeps the keys;
    the account needs `roles/iam.serviceAccountTokenCreator` on itself
    (https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/signBlob).
    """

    def __init__(self, settings: Settings, now: Callable[[], datetime], loader: Loader | None = None) -> None:
        self._now = now
        self._loader = loader or Loader()
        self._life = Life("the service's identity")
        self._signer_email = settings.signer_email
        self._url = f"{settings.iam_credentials_url.rstrip('/')}/v1/projects/-/serviceAccounts"
        self._renewing = Shared(self._renew)
        self._token: _Token | None = None
        self._failed_at: datetime | None = None
        self._client: httpx2.AsyncClient | None = None

    async def access_token(self) -> str:
        """A bearer token for any Google API. Raises Unavailable, after 5 s at the latest.

        It is good for some minutes, or as long as the last one is where no other can be had.
        """
        with self._life.held():
            token, now = self._token, self._now()
            if token is None or not token.lives(now):
                return (await self._renewed(call_s_max)).value
            if token.lives(now + _renewal) or self._has_just_failed(now):
                return token.value
            try:
                return (await self._renewed(_patience_s)).value
            except Unavailable:
                return token.value

    def forget_token(self) -> None:
        """Google refused the token: ask for another the next time."""
        self._token = None

    async def email(self) -> str:
        """The service account that signs. Raises Unavailable, and SettingsError where a person would have to sign."""
        if self._signer_email is not None:
            return self._signer_email
        with self._life.held():
            credentials = await self._loader.credentials()
        if getattr(credentials, "service_account_email", None) == "default":
            # The metadata server tells its name only together with a token.
            await self.access_token()
        email = getattr(credentials, "service_account_email", None)
        if not email:
            raise SettingsError(
                "links are signed by a service account, and these credentials are a person's: set SIGNER_EMAIL, e.g."
                " api@my-project.iam.gserviceaccount.com, and give the person roles/iam.serviceAccountTokenCreator on"
                " that account"
            )
        return str(email)

    async def sign_blob(self, data: bytes) -> bytes:
        """RSA-SHA256 over `data` by a key of the account that Google keeps and rotates: it is good for 12 hours.

        Raises Unavailable, and SettingsError as `email` does.
        """
        answer = await self._ask("signBlob", base64.b64encode(data).decode(), "signedBlob")
        return base64.b64decode(answer)

    async def sign_jwt(self, claims: Mapping[str, object]) -> str:
        """The claims as a JWT (RS256) of the account; `exp` may lie 12 hours ahead. Raises as `sign_blob` does."""
        return await self._ask("signJwt", json.dumps(dict(claims)), "signedJwt")

    async def aclose(self) -> None:
        """Close the connections to IAM; what is called after that, or under way, raises Unavailable."""
        self._life.closed = True
        self._renewing.cancel()
        if self._client is not None:
            await self._client.aclose()

    async def _renewed(self, within_s: float) -> _Token:
        try:
            with translated("access token"):
                return await self._renewing.result(within_s)
        except Unavailable:
            self._failed_at = self._now()
            raise

    async def _renew(self) -> _Token:
        credentials = await self._loader.credentials()
        try:
            await self._loader.in_thread(partial(refresh, credentials))
        except Exception as exc:
            log.warning("identity.not_renewed", extra={"reason": type(exc).__name__})
            raise
        expiry = credentials.expiry
        token = _Token(str(credentials.token), None if expiry is None else expiry.replace(tzinfo=UTC))
        self._token, self._failed_at = token, None
        return token

    def _has_just_failed(self, now: datetime) -> bool:
        # A clock that was set back must not hold anything up until it has caught up.
        return self._failed_at is not None and self._failed_at <= now < self._failed_at + _failure_pause

    async def _ask(self, method: str, payload: str, asked: str) -> str:
        try:
            with self._life.held():
                async with asyncio.timeout(call_s_max):
                    url = f"{self._url}/{quote(await self.email(), safe='@')}:{method}"
                    return await self._answer(url, payload, asked)
        except TimeoutError as exc:
            raise Unavailable(f"{method} was not answered in {call_s_max:.0f} s") from exc
        except (KeyError, ValueError) as exc:
            raise Unavailable(f"{method} was answered without a signature") from exc

    async def _answer(self, url: str, payload: str, asked: str) -> str:
        """The field of IAM's answer. A signature may be made any number of times, so any try may be repeated."""
        import httpx2

        pause_s = _first_pause_s
        refused = False
        while True:
            token = await self.access_token()
            try:
                sent = {"authorization": f"Bearer {token}"}
                answer = await self._http().post(url, json={"payload": payload}, headers=sent)
            except httpx2.TransportError as exc:
                log.info("identity.repeated", extra={"reason": type(exc).__name__})
            else:
                if answer.status_code == 200:
                    return str(answer.json()[asked])
                if answer.status_code == 401 and not refused:
                    # Revoked, or cut short; a new one is asked for once.
                    refused = True
                    self.forget_token()
                elif answer.status_code not in _passing:
                    raise _refusal(url, answer.status_code)
                log.info("identity.repeated", extra={"reason": str(answer.status_code)})
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _pause_s_max)

    def _http(self) -> "httpx2.AsyncClient":
        if self._client is None:
            import httpx2

            # One connection for each signature under way, kept: a new one costs more than the signature.
            limits = httpx2.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=_keepalive_s)
            # Loading the certificates of the world's authorities takes 20 ms, and http has no use for them.
            secured = self._url.startswith("https:")
            self._client = httpx2.AsyncClient(timeout=try_s_max, limits=limits, verify=secured)
        return self._client


def _refusal(url: str, status: int) -> Unavailable:
    log.error(
        "identity.refused",
        extra={
            "url": url,
            "status": status,
            "advice": "the signing account needs roles/iam.serviceAccountTokenCreator on itself, and the project the"
            " API iamcredentials.googleapis.com",
        },
    )
    return Unavailable(f"signing was refused: {status}")
