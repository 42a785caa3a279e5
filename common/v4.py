"""V4 signed URLs, made and checked with any signature; no key but the local HMAC one, and no object, is touched here.

https://cloud.google.com/storage/docs/authentication/canonical-requests describes what is signed.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlsplit

from common.ports import SignedRequest

HMAC_ALGORITHM = "GOOG4-HMAC-SHA256"
RSA_ALGORITHM = "GOOG4-RSA-SHA256"
expires_s_max = 7 * 24 * 3600
skew_s_max = 15 * 60

CheckSignature = Callable[[str, str, bytes, str], bool]
"""(algorithm, credential, string to sign, hex signature) -> whether it is genuine."""


class BadSignature(Exception):
    """The URL cannot be used; `status` and `code` are what Cloud Storage answers."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A request that waits for its signature: hex over `text`, by whatever signs for the key id it was made for."""

    method: str
    url: str
    headers: Mapping[str, str]
    expires_at: datetime
    text: bytes

    def signed(self, signature: str) -> SignedRequest:
        """The request that anyone may send."""
        return SignedRequest(self.method, f"{self.url}&X-Goog-Signature={signature}", self.headers, self.expires_at)


def unsigned(
    algorithm: str, key_id: str, method: str, url: str, headers: Mapping[str, str], *, expires_s: int, now: datetime
) -> Unsigned:
    """A request to `url` (path encoded, no query) that is fixed by method, path and exactly these headers."""
    parts = urlsplit(url)
    date = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{date[:8]}/auto/storage/goog4_request"
    fixed = {"host": parts.netloc, **{name.lower(): value for name, value in headers.items()}}
    query = [
        ("X-Goog-Algorithm", algorithm),
        ("X-Goog-Credential", f"{key_id}/{scope}"),
        ("X-Goog-Date", date),
        ("X-Goog-Expires", str(expires_s)),
        ("X-Goog-SignedHeaders", ";".join(sorted(fixed))),
    ]
    text = _string_to_sign(algorithm, date, scope, _canonical(method, parts.path, query, fixed))
    expires_at = now.replace(microsecond=0) + timedelta(seconds=expires_s)
    return Unsigned(method, f"{url}?{_encode_query(query)}", headers, expires_at, text)


def object_url(storage_url: str, bucket: str, name: str) -> str:
    """Where the XML API has the object. `storage_url` ends without a slash."""
    return f"{storage_url}/{bucket}/{quote(name, safe='/~')}"


def upload_headers(content_type: str, bytes_max: int) -> dict[str, str]:
    """What a signed PUT fixes: the type, a length of 1 to `bytes_max`, and that the name is free."""
    return {
        "Content-Type": content_type,
        "x-goog-content-length-range": f"1,{bytes_max}",
        "x-goog-if-generation-match": "0",
    }


@dataclass(frozen=True, slots=True)
class HmacKey:
    """A signing key: its public id and its secret."""

    id: str
    secret: bytes = field(repr=False)

    def check(self, algorithm: str, credential: str, text: bytes, signature: str) -> bool:
        """A CheckSignature for URLs that this key signed."""
        key_id, date, location = credential.split("/")[:3]
        if algorithm != HMAC_ALGORITHM or key_id != self.id:
            return False
        # As bytes: `compare_digest` takes no text beyond ASCII, and anybody may send that.
        return hmac.compare_digest(self._sign(date, location, text).encode(), signature.encode())

    def sign(
        self, method: str, url: str, headers: Mapping[str, str], *, expires_s: int, now: datetime
    ) -> SignedRequest:
        """The request `unsigned` describes, signed with this key."""
        draft = unsigned(HMAC_ALGORITHM, self.id, method, url, headers, expires_s=expires_s, now=now)
        date = now.astimezone(UTC).strftime("%Y%m%d")
        return draft.signed(self._sign(date, "auto", draft.text))

    def _sign(self, date: str, location: str, text: bytes) -> str:
        key = b"GOOG4" + self.secret
        for part in (date, location, "storage", "goog4_request"):
            key = hmac.digest(key, part.encode(), hashlib.sha256)
        return hmac.digest(key, text, hashlib.sha256).hex()


def verify(
    method: str,
    path: str,
    query: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    *,
    check: CheckSignature,
    now: datetime,
) -> None:
    """Raise BadSignature unless the request is what its signer allowed, now.

    `path` is as sent, percent-encoded; `headers` have lower-case names. Every `x-goog-*` header must be
    signed, as Cloud Storage demands (MalformedSecurityHeader). Length, content type and preconditions are
    then as signed: the caller only has to enforce them.
    """
    fields = dict(query)
    if len(fields) != len(query) or not {"X-Goog-Signature", "X-Goog-Credential", "X-Goog-Date"} <= fields.keys():
        raise BadSignature(403, "AccessDenied", "The URL is not signed.")
    algorithm, credential, date = fields.get("X-Goog-Algorithm", ""), fields["X-Goog-Credential"], fields["X-Goog-Date"]
    _check_time(date, fields.get("X-Goog-Expires", ""), now)
    scope = credential.split("/")
    if len(scope) != 5 or scope[1] != date[:8] or scope[3:] != ["storage", "goog4_request"]:
        raise BadSignature(400, "InvalidArgument", "The credential's scope is malformed.")
    names = fields.get("X-Goog-SignedHeaders", "").split(";")
    loose = [name for name in headers if name.startswith("x-goog-") and name not in names]
    if loose:
        raise BadSignature(400, "MalformedSecurityHeader", f"Header {loose[0]} was sent but not signed.")
    if "host" not in names or any(name not in headers for name in names):
        raise BadSignature(403, "SignatureDoesNotMatch", "A signed header is missing from the request.")
    signed = {name: headers[name] for name in names}
    unsigned_query = [(name, value) for name, value in query if name != "X-Goog-Signature"]
    canonical = _canonical(method, path, unsigned_query, signed)
    text = _string_to_sign(algorithm, date, "/".join(scope[1:]), canonical)
    if not check(algorithm, credential, text, fields["X-Goog-Signature"]):
        raise BadSignature(403, "SignatureDoesNotMatch", "The request is not the one that was signed.")


def _check_time(date: str, expires: str, now: datetime) -> None:
    try:
        signed_at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as exc:
        raise BadSignature(400, "InvalidArgument", "X-Goog-Date is malformed.") from exc
    if not (expires.isascii() and expires.isdigit() and len(expires) <= 6 and 1 <= int(expires) <= expires_s_max):
        raise BadSignature(400, "InvalidArgument", "X-Goog-Expires must be 1 to 604800.")
    if signed_at - now > timedelta(seconds=skew_s_max):
        raise BadSignature(403, "RequestNotYetValid", "The URL is not valid yet.")
    if now > signed_at + timedelta(seconds=int(expires)):
        raise BadSignature(400, "ExpiredToken", "The URL has expired; ask for a new one.")


def _canonical(method: str, path: str, query: Sequence[tuple[str, str]], headers: Mapping[str, str]) -> str:
    lines = [f"{name}:{' '.join(headers[name].split())}" for name in sorted(headers)]
    payload = headers.get("x-goog-content-sha256", "UNSIGNED-PAYLOAD")
    return "\n".join([method, path, _encode_query(sorted(query)), *lines, "", ";".join(sorted(headers)), payload])


def _string_to_sign(algorithm: str, date: str, scope: str, canonical: str) -> bytes:
    return f"{algorithm}\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}".encode()


def _encode_query(query: Sequence[tuple[str, str]]) -> str:
    return "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in query)
