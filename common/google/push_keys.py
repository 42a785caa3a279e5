"""The public keys that check the signatures of Pub/Sub's pushes, as Google publishes them (PUSH_AUTH=oidc)."""

import asyncio
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel, JsonValue

from common.errors import Unavailable
from common.telemetry import logger

if TYPE_CHECKING:
    import httpx2

log = logger(__name__)

fetch_s_max = 3.0
answer_bytes_max = 64 * 1024
# Google says some hours, and shows a new key long before it signs with it.
keep_s_min, keep_s_max = 60, 24 * 3600
unknown_pause_s = 60
"""Any stranger can invent a `kid`; that must not make us ask Google more often than this."""
failure_pause_s = 10
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=([0-9]{1,9})(?:$|[\s,])", re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]{1,9}")


class PushKeys:
    """A JSON Web Key Set (RFC 7517) at `certs_url`, fetched when it is first needed, too old, or lacks a `kid`.

    What was fetched is used until something newer comes, also while Google does not answer.
    """

    def __init__(self, certs_url: str, now: Callable[[], datetime]) -> None:
        self._certs_url = certs_url
        self._now = now
        self._keys: Mapping[str, object] = MappingProxyType({})
        self._keep_s = 0
        self._fetched_at: datetime | None = None
        self._failed_at: datetime | None = None
        self._fetching = asyncio.Lock()

    async def aclose(self) -> None:
        """Nothing stays open between two fetches."""

    async def public_key(self, kid: str) -> object | None:
        """The RSA key of this name, or None if Google has none such. Raises Unavailable if that cannot be known."""
        async with self._fetching:
            fresh_s = self._keep_s if kid in self._keys else min(self._keep_s, unknown_pause_s)
            if not self._is_within(self._fetched_at, fresh_s) and not self._is_within(self._failed_at, failure_pause_s):
                await self._refresh()
            if kid not in self._keys and self._failed_at is not None:
                raise Unavailable("Google's keys for pushes cannot be fetched")
            return self._keys.get(kid)

    async def _refresh(self) -> None:
        import httpx2
        import jwt

        try:
            async with asyncio.timeout(fetch_s_max):
                keys, keep_s = await self._fetch()
        except (OSError, httpx2.HTTPError, httpx2.InvalidURL, ValueError, jwt.PyJWTError) as exc:
            self._failed_at = self._now()
            log.error("push_keys.not_fetched", extra={"error": type(exc).__name__, "keys": len(self._keys)})
            return
        self._keys, self._keep_s = keys, keep_s
        self._fetched_at, self._failed_at = self._now(), None
        log.info("push_keys.fetched", extra={"keys": len(keys), "keep_s": keep_s})

    async def _fetch(self) -> tuple[Mapping[str, object], int]:
        """The keys, and how long to keep them. Raises ValueError for an answer that is no key set."""
        import httpx2

        # Packed, 64 KB could become any size: packing is not asked for, nor undone if it comes all the same.
        headers = {"accept-encoding": "identity"}
        async with (
            httpx2.AsyncClient(follow_redirects=False, trust_env=False, timeout=fetch_s_max) as client,
            client.stream("GET", self._certs_url, headers=headers) as answer,
        ):
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}")
            body = b""
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > answer_bytes_max:
                    raise ValueError(f"more than {answer_bytes_max} bytes")
        return _signing_keys(body), _keep_s(answer.headers)

    def _is_within(self, since: datetime | None, seconds: float) -> bool:
        # A clock that was set back must not hold anything up until it has caught up.
        return since is not None and since <= self._now() < since + timedelta(seconds=seconds)


class _KeySet(BaseModel):
    keys: list[dict[str, JsonValue]]


class _Key(BaseModel):
    kid: str
    n: str
    e: str


def _signing_keys(body: bytes) -> Mapping[str, object]:
    import jwt

    keys = [_Key.model_validate(item) for item in _KeySet.model_validate_json(body).keys if _signs(item)]
    if not keys:
        raise ValueError("no key that signs")
    return MappingProxyType({key.kid: jwt.PyJWK({"kty": "RSA", **key.model_dump()}, "RS256").key for key in keys})


def _signs(item: dict[str, JsonValue]) -> bool:
    """Whether the key is one for RS256; a set may hold others (RFC 7517, 4)."""
    return (item.get("kty"), item.get("use", "sig"), item.get("alg", "RS256")) == ("RSA", "sig", "RS256")


def _keep_s(headers: "httpx2.Headers") -> int:
    """https://www.rfc-editor.org/rfc/rfc9111#section-5.2.2.1, within our bounds; `age` may have used up a part."""
    stated = _MAX_AGE.search(headers.get("cache-control", ""))
    age = _SECONDS.fullmatch(headers.get("age", ""))
    left_s = (int(stated[1]) if stated else 0) - (int(age[0]) if age else 0)
    return min(max(left_s, keep_s_min), keep_s_max)
