"""Documents as Firestore gave them, and the records that they are; nothing is asked or written here."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from common.google.documents import from_fields, plain
from common.ports import Stored
from common.records import Record
from common.telemetry import logger

if TYPE_CHECKING:
    from google.cloud.firestore_v1 import DocumentSnapshot

log = logger(__name__)

R = TypeVar("R", bound=Record)


def readable(kind: type[R], snapshots: "Sequence[DocumentSnapshot[Any]]") -> tuple[Stored[R], ...]:
    """The records in these documents; one that cannot be read is logged and left out."""
    found = []
    for snapshot in snapshots:
        try:
            found.append(stored(kind, snapshot))
        except ValidationError:
            # Written by a version that knew more. It must not hide the others from their owner or the sweep.
            log.error("record.unreadable", extra={"collection": kind.collection, "key": snapshot.id})
    return tuple(found)


def stored(kind: type[R], snapshot: "DocumentSnapshot[Any]") -> Stored[R]:
    """The record in a document that is there. Raises pydantic's ValidationError."""
    record = from_fields(kind, snapshot.to_dict() or {})
    return Stored(record, snapshot.update_time.rfc3339(), in_millis(snapshot.read_time))


def in_millis(moment: datetime) -> datetime:
    """A time of Firestore's as coarse as `changed_at`, so that what is read after a change is never read before it."""
    return plain(moment).replace(microsecond=moment.microsecond // 1000 * 1000)
