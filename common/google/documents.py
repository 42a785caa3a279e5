"""Records as Firestore documents: what their fields are called and how they look there; no call is made here.

A document has the record's own fields, so that clients who listen to it find what the API shows. Times at the top
are Firestore timestamps, by which queries can order; deeper ones are RFC 3339 texts. Beside them stand `save_id`,
`shard` while a wake-up is due, and the record's `derived` properties.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from common.documents import encode
from common.records import Record

if TYPE_CHECKING:
    from google.cloud.firestore_v1.types import document

R = TypeVar("R", bound=Record)


def to_fields(record: Record, save_id: str) -> dict[str, Any]:
    """The document's fields without `changed_at`, which only the store knows. Raises Rejected("unsafe_record")."""
    fields: dict[str, Any] = json.loads(encode(record))
    for name in type(record).model_fields:
        moment = getattr(record, name)
        if isinstance(moment, datetime):
            fields[name] = moment.astimezone(UTC)
    fields.pop("changed_at", None)
    fields |= {name: getattr(record, name) for name in record.derived}
    asleep = getattr(record, "wake_at", None) is None
    return {**fields, "save_id": save_id, "shard": None if asleep else record.shard}


def from_fields(kind: type[R], fields: Mapping[str, Any]) -> R:
    """The record that `to_fields` wrote, perhaps by another version of us. Raises pydantic's ValidationError."""
    return kind.model_validate(
        {name: plain(value) if isinstance(value, datetime) else value for name, value in fields.items()}
    )


def plain(moment: datetime) -> datetime:
    """A datetime of Python's own: the client's kind carries nanoseconds along, which no record has."""
    return datetime.combine(moment.date(), moment.timetz())


def put(content: Any, message: Any) -> None:
    """Let a raw protobuf Value stand for what `to_fields` made."""
    match content:
        case None:
            message.null_value = 0
        case bool():
            message.boolean_value = content
        case int():
            message.integer_value = content
        case float():
            message.double_value = content
        case str():
            message.string_value = content
        case datetime():
            message.timestamp_value.FromDatetime(content)
        case list():
            # An empty list or map is one too.
            message.array_value.SetInParent()
            for item in content:
                put(item, message.array_value.values.add())
        case dict():
            message.map_value.SetInParent()
            for name, item in content.items():
                put(item, message.map_value.fields[name])
        case _:
            raise TypeError(f"a document holds no {type(content).__name__}")


def to_python(value: "document.Value") -> Any:
    """What a protobuf value stands for: text, number, time, list, map, truth or None.

    Records hold no bytes, references or places. The client library has this too, but keeps it private.
    """
    from google.cloud.firestore_v1.types import document

    return _meaning(document.Value.pb(value))


def _meaning(message: Any) -> Any:
    match message.WhichOneof("value_type"):
        case "map_value":
            return {name: _meaning(item) for name, item in message.map_value.fields.items()}
        case "array_value":
            return [_meaning(item) for item in message.array_value.values]
        case "timestamp_value":
            return message.timestamp_value.ToDatetime(tzinfo=UTC)
        case "null_value" | None:
            return None
        case other:
            return getattr(message, other)
