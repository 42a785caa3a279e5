"""Records as JSON documents, the limits of Firestore that both engines keep, and page tokens; no storage."""

import base64
import binascii
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pydantic_core import PydanticSerializationError

from common.errors import Rejected
from common.records import Record

R = TypeVar("R", bound=Record)

# https://firebase.google.com/docs/firestore/quotas: names to 1,500 bytes, 20 levels of maps, 1 MiB a document.
# We stop at 900 KB, because Firestore also counts field names and index entries.
name_bytes_max = 1500
document_bytes_max = 900_000
depth_max = 20
# Objects are named by their owner, and a name has at most 1,024 bytes. Firestore filters by less than 1,500.
owner_bytes_max = 1024
_RESERVED = re.compile(r"__.*__", re.DOTALL)
_digest_bytes = 9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def encode(record: Record) -> bytes:
    """The record as UTF-8 JSON. Raises Rejected("unsafe_record") for what Firestore would refuse.

    Also for a datetime without time zone, which no store could put in order, and for an owner of over 1,024 bytes.
    """
    check_key(record.key)
    if not _may_own(getattr(record, "owner", "")):
        raise Rejected("unsafe_record", f"{record.collection}.owner is not Unicode text of up to 1,024 bytes")
    for name in type(record).model_fields:
        moment = getattr(record, name)
        if isinstance(moment, datetime) and moment.tzinfo is None:
            raise Rejected("unsafe_record", f"{record.collection}.{name} has no time zone")
    try:
        text = record.__pydantic_serializer__.to_json(record)
    except PydanticSerializationError as exc:
        raise Rejected("unsafe_record", f"{record.collection}/{record.key} cannot be written as JSON") from exc
    if len(text) > document_bytes_max:
        raise Rejected("unsafe_record", f"{record.collection}/{record.key} has {len(text):,} bytes, over 900,000")
    if record.free_form is None:
        _check_shape(json.loads(text), 0)
    else:
        for name in record.free_form:
            _check_shape(getattr(record, name), 1)
    return text


def decode(collection: type[R], data: bytes | str) -> R:
    """The record that `encode` wrote, perhaps by another version of us."""
    return collection.model_validate_json(data)


def check_key(key: str) -> None:
    """Raise Rejected("unsafe_record") for a key that Firestore would not take as a document's name."""
    if (
        not key
        or len(key.encode("utf-8", "surrogatepass")) > name_bytes_max
        or "/" in key
        or key in {".", ".."}
        or _RESERVED.fullmatch(key)
        or not is_text(key)
    ):
        raise Rejected("unsafe_record", f"{key[:40]!r} cannot be a key: 1-1500 bytes, no slash, not `__x__`")


def is_text(text: str) -> bool:
    """Whether it is Unicode text: lone surrogates, which JSON can smuggle in, have no UTF-8."""
    return text.isascii() or not any(0xD800 <= ord(c) <= 0xDFFF for c in text)


def check_owner(owner: str) -> None:
    """Raise Rejected("invalid_request") for an owner that no record can have."""
    if not _may_own(owner):
        raise Rejected("invalid_request", f"the owner is not Unicode text of up to {owner_bytes_max:,} bytes")


def write_token(kind: type[Record], owner: str, created_at: datetime, key: str) -> str:
    """Where a page of the owner's records ended: microseconds since 1970 and key, for a URL."""
    place = f"{(created_at - _EPOCH) // _MICROSECOND}/{key}".encode()
    return base64.urlsafe_b64encode(_digest(kind, owner, place) + place).decode().rstrip("=")


def read_token(kind: type[Record], owner: str, token: str) -> tuple[datetime, str]:
    """`(created_at, key)` of a token. Raises Rejected("invalid_request") for any other text or listing.

    The digest is no secret: it catches accidents, and what a forger could reach is his own listing. So that no store
    stumbles over what he made up, the time is one that a record can have, and so is the key.
    """
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        micros, _, key = data[_digest_bytes:].decode().partition("/")
        created_at = _EPOCH + int(micros) * _MICROSECOND
        check_key(key)
    except (binascii.Error, OverflowError, Rejected, ValueError) as exc:
        raise _unknown_token() from exc
    if write_token(kind, owner, created_at, key) != token:
        raise _unknown_token()
    return created_at, key


def _unknown_token() -> Rejected:
    return Rejected("invalid_request", "the page_token was not given by this API for this list; start without one")


def _may_own(owner: str) -> bool:
    return is_text(owner) and len(owner.encode()) <= owner_bytes_max


def _digest(kind: type[Record], owner: str, place: bytes) -> bytes:
    named = b"\0".join([kind.collection.encode(), str(len(owner)).encode(), owner.encode(), place])
    return hashlib.sha256(named).digest()[:_digest_bytes]


def _check_shape(value: Any, depth: int, *, in_list: bool = False) -> None:
    if depth > depth_max:
        raise Rejected("unsafe_record", f"a record is nested deeper than {depth_max} levels")
    if isinstance(value, dict):
        for name, item in value.items():
            if not name or _RESERVED.fullmatch(name) or len(name.encode()) > name_bytes_max:
                raise Rejected("unsafe_record", f"{name[:40]!r} cannot be a field name")
            _check_shape(item, depth + 1)
    elif isinstance(value, list):
        if in_list:
            raise Rejected("unsafe_record", "a list directly inside a list cannot be stored")
        for item in value:
            _check_shape(item, depth + 1, in_list=True)
    elif isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise Rejected("unsafe_record", "a whole number needs more than 64 bits")
