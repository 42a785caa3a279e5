"""Records as Firestore documents: what stands in them, and that every record comes back from what stands there."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from google.cloud.firestore_v1.types import document
from hypothesis import given
from hypothesis import strategies as st
from proto.datetime_helpers import DatetimeWithNanoseconds  # type: ignore[import-untyped]

from common.errors import Rejected
from common.google.documents import from_fields, plain, put, to_fields, to_python
from common.job import Job, Status
from common.records import Delivery, DeliveryAttempt, DeliveryStatus, Desk, Lease, Work
from tests.contract.samples import NOON, Note, job

WORK = Work(
    job_id="a" * 32,
    owner="test:ann",
    desk=Desk.PROCESSOR,
    wake_at=NOON,
    deadline_at=NOON,
    lease=Lease(token="t", fence=1, expires_at=NOON),
    untold=("pending",),
)
DELIVERY = Delivery(
    event_id="a.1",
    job_id="a" * 32,
    owner="test:ann",
    url="https://app.example.com/hook",
    event="completed",
    status=DeliveryStatus.PENDING,
    wake_at=None,
    created_at=NOON,
    attempts=(DeliveryAttempt(at=NOON, http_status=None, duration_ms=3),),
)


@pytest.mark.parametrize("record", [job(), WORK, DELIVERY, Note(id="a", extra={"a.b": [{"`": None}, 1.5]})])
def test_a_record_comes_back_from_its_document(record: Job | Work | Delivery | Note) -> None:
    assert from_fields(type(record), to_fields(record, "s")) == record


def test_a_document_shows_the_save_and_the_shard_while_a_wake_up_is_due() -> None:
    due, asleep = to_fields(WORK, "s"), to_fields(WORK.model_copy(update={"wake_at": None}), "s")
    assert (due["save_id"], due["shard"]) == ("s", WORK.shard)
    assert (asleep["save_id"], asleep["shard"]) == ("s", None)
    assert to_fields(job(), "s")["shard"] is None


def test_a_document_shows_what_listeners_need_and_the_record_lacks() -> None:
    assert to_fields(job(), "s")["done"] is False
    assert to_fields(job().cancel(NOON), "s")["done"] is True


def test_only_the_store_says_when_a_record_changed() -> None:
    assert "changed_at" not in to_fields(Note(id="a", changed_at=NOON), "s")
    changed = from_fields(Note, {**to_fields(Note(id="a"), "s"), "changed_at": NOON})
    assert changed.changed_at == NOON


def test_times_at_the_top_are_moments_and_deeper_ones_are_texts() -> None:
    fields = to_fields(WORK, "s")
    assert fields["wake_at"] == NOON
    assert fields["lease"]["expires_at"] == "2026-05-04T12:00:00Z"


def test_a_moment_of_another_time_zone_is_the_same_moment() -> None:
    nepal = NOON.astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert to_fields(Note(id="a", created_at=nepal), "s")["created_at"].isoformat() == "2026-05-04T12:00:00+00:00"


def test_fields_of_a_newer_version_are_left_out() -> None:
    assert from_fields(Note, {**to_fields(Note(id="a"), "s"), "invented": {"later": 1}}) == Note(id="a")


def test_a_record_that_no_store_takes_makes_no_document() -> None:
    with pytest.raises(Rejected) as refused:
        to_fields(job().model_copy(update={"deadline_at": NOON.replace(tzinfo=None)}), "s")
    assert refused.value.code == "unsafe_record"


def test_the_clients_own_times_become_plain_ones() -> None:
    theirs = DatetimeWithNanoseconds(2026, 5, 4, 12, nanosecond=123456789, tzinfo=UTC)
    assert plain(theirs) == datetime(2026, 5, 4, 12, 0, 0, 123456, UTC)
    assert type(plain(theirs)) is datetime
    assert type(from_fields(Note, {"id": "a", "created_at": theirs}).created_at) is datetime


def value(content: Any) -> document.Value:
    written = document.Value()
    put(content, document.Value.pb(written))
    return written


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.datetimes(timezones=st.just(UTC))
)


@given(st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_protobuf_values_say_what_was_put_in(content: Any) -> None:
    assert to_python(value(content)) == content


@pytest.mark.parametrize("content", [[], {}, {"a": []}, [{}], False, 0, "", None])
def test_what_is_empty_is_not_nothing(content: Any) -> None:
    assert value(content) != document.Value()
    assert to_python(value(content)) == content
    assert type(to_python(value(content))) is type(content)


def test_what_no_document_holds_is_a_bug() -> None:
    with pytest.raises(TypeError):
        value(b"bytes")


def test_a_job_is_read_from_protobuf_values_as_from_anything() -> None:
    fields = {name: value(content) for name, content in to_fields(job(), "s").items()}
    read = from_fields(Job, {name: to_python(content) for name, content in fields.items()})
    assert read == job()
    assert read.status is Status.PENDING
