"""Page tokens: read back as written, and harmless when forged by somebody who knows how they are made."""

import base64
import hashlib
from datetime import UTC, datetime

import pytest

from common.documents import read_token, write_token
from common.errors import Rejected
from common.job import Job

OWNER = "test:ann"
NOON = datetime(2026, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)


def forged(place: str) -> str:
    """A token with the right digest for any place, as anybody can make it."""
    named = b"\0".join([b"jobs", str(len(OWNER)).encode(), OWNER.encode(), place.encode()])
    data = hashlib.sha256(named).digest()[:9] + place.encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@pytest.mark.parametrize("created_at", [NOON, datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_a_token_says_where_the_page_ended(created_at: datetime) -> None:
    assert read_token(Job, OWNER, write_token(Job, OWNER, created_at, "a")) == (created_at, "a")


def test_the_forger_of_these_tests_knows_how() -> None:
    assert forged("1777896000123456/a") == write_token(Job, OWNER, NOON, "a")


@pytest.mark.parametrize(
    "place",
    [
        "",
        "/",
        "1777896000123456",
        "x/a",
        "+1/a",
        "01/a",
        "1_0/a",
        "1.5/a",
        "١/a",
        f"{10**18}/a",
        f"-{10**18}/a",
        f"{10**30}/a",
        f"{'9' * 5000}/a",
        "1/",
        "1/a/b",
        "1/..",
        "1/__a__",
        f"1/{'x' * 1501}",
    ],
)
def test_a_forged_token_of_a_place_where_no_record_can_be_is_rejected(place: str) -> None:
    with pytest.raises(Rejected) as refused:
        read_token(Job, OWNER, forged(place))
    assert refused.value.code == "invalid_request"
