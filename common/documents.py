"""Records as JSON documents, and the limits of Firestore that both engines keep; no storage."""

import json
import re
from typing import Any, TypeVar

from common.errors import Rejected
from common.records import Record

R = TypeVar("R", bound=Record)

# https://firebase.google.com/docs/firestore/quotas: names to 1,500 bytes, 20 levels of maps, 1 MiB a document.
# We stop at 900 KB, because Firestore also counts field names and index entries.
key_bytes_max = 1500
document_bytes_max = 900_000
depth_max = 20
_RESERVED = re.compile(r"__.*__")


def encode(record: Record) -> bytes:
    """The record as UTF-8 JSON. Raises Rejected("unsafe_record") for what Firestore would refuse."""
    check_key(record.key)
    text = record.__pydantic_serializer__.to_json(record)
    if len(text) > document_bytes_max:
        raise Rejected("unsafe_record", f"{record.collection}/{record.key} has {len(text):,} bytes, over 900,000")
    # Depth and nested lists can only come from free-form fields, so the cheap test runs first.
    if text.count(b"{") + text.count(b"[") > depth_max or b"[[" in text:
        _check_shape(json.loads(text), 0)
    return text


def decode(collection: type[R], data: bytes | str) -> R:
    """The record that `encode` wrote, perhaps by another version of us."""
    return collection.model_validate_json(data)


def check_key(key: str) -> None:
    """Raise Rejected("unsafe_record") for a key that Firestore would not take as a document's name."""
    if (
        not key
        or len(key.encode("utf-8", "surrogatepass")) > key_bytes_max
        or "/" in key
        or key in {".", ".."}
        or _RESERVED.fullmatch(key)
        or any(0xD800 <= ord(c) <= 0xDFFF for c in key)
    ):
        raise Rejected("unsafe_record", f"{key[:40]!r} cannot be a key: 1-1500 bytes, no slash, not `__x__`")


def _check_shape(value: Any, depth: int, *, in_list: bool = False) -> None:
    if depth > depth_max:
        raise Rejected("unsafe_record", f"a record is nested deeper than {depth_max} levels")
    if isinstance(value, dict):
        for name, item in value.items():
            if not name or _RESERVED.fullmatch(name):
                raise Rejected("unsafe_record", f"{name!r} cannot be a field name")
            _check_shape(item, depth + 1)
    elif isinstance(value, list):
        if in_list:
            raise Rejected("unsafe_record", "a list directly inside a list cannot be stored")
        for item in value:
            _check_shape(item, depth + 1, in_list=True)
    elif isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise Rejected("unsafe_record", "a whole number needs more than 64 bits")
