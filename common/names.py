"""Object names and what they say: owner, job, image. No bucket is touched here."""

import re
import string

from common.errors import Rejected

# An object's name has 1,024 bytes at most (https://cloud.google.com/storage/quotas#objects). Ours need 41 around the
# owner; the rest is left to what an app writes behind `inbox/{owner}/`.
owner_bytes_max = 900
"""Of an owner as `encode_owner` writes it: ASCII takes 1 or 3 bytes a character, any other 6 to 12."""

_PLAIN = frozenset(string.ascii_letters + string.digits + "_-")
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_ESCAPED = re.compile(r"(?:[A-Za-z0-9_-]|~[0-9A-F]{2})+")


def encode_owner(owner: str) -> str:
    """An owner as one path segment: `[A-Za-z0-9_-]` stays, every other UTF-8 byte becomes `~XX`.

    Injective, so that no two owners share a folder; nothing in it can climb out of one. Raises Rejected for
    what is no Unicode text, as a token's subject may be, and for what would have more than `owner_bytes_max` bytes.
    """
    try:
        raw = owner.encode()
    except UnicodeEncodeError as exc:
        raise Rejected("invalid_request", "the owner is not Unicode text") from exc
    segment = "".join(chr(b) if chr(b) in _PLAIN else f"~{b:02X}" for b in raw)
    if len(segment) > owner_bytes_max:
        raise Rejected("invalid_request", f"the owner is too long for an object's name, over {owner_bytes_max} bytes")
    return segment


def decode_owner(segment: str) -> str:
    """The owner that `encode_owner` made `segment` from. Raises Rejected for anything it cannot have made."""
    if not _ESCAPED.fullmatch(segment):
        raise Rejected("invalid_request", "the object name holds no owner of ours")
    raw = re.sub(rb"~([0-9A-F]{2})", lambda match: bytes([int(match[1], 16)]), segment.encode())
    try:
        owner = raw.decode()
    except UnicodeDecodeError as exc:
        raise Rejected("invalid_request", "the object name holds no owner of ours") from exc
    if encode_owner(owner) != segment:
        raise Rejected("invalid_request", "the object name holds no owner of ours")
    return owner


def upload_name(owner: str, job_id: str) -> str:
    """Where the app uploads its photo, in bucket `uploads`."""
    return f"uploads/{encode_owner(owner)}/{job_id}"


def input_name(owner: str, job_id: str) -> str:
    """Where the checked photo lies, in bucket `inputs`."""
    return f"{encode_owner(owner)}/{job_id}.jpg"


def result_name(owner: str, job_id: str, index: int) -> str:
    """Where image `index` lies, in bucket `results`; its type is in the object's metadata."""
    return f"{encode_owner(owner)}/{job_id}/{index}"


def thumbnail_name(owner: str, job_id: str, index: int) -> str:
    """Where the thumbnail of image `index` lies, in bucket `results`."""
    return f"{result_name(owner, job_id, index)}.thumb"


def parse_upload_name(name: str) -> tuple[str, str]:
    """`(owner, job id)` of an object under `uploads/`. Raises Rejected for any other name."""
    parts = name.split("/")
    if len(parts) != 3 or parts[0] != "uploads" or not is_job_id(parts[2]):
        raise Rejected("invalid_request", "the object is not an upload of a job")
    return decode_owner(parts[1]), parts[2]


def is_job_id(text: str) -> bool:
    """Whether `text` has the form of a job's id: 32 lower-case hex digits."""
    return bool(_JOB_ID.fullmatch(text))
