"""Object names: no two owners share one, nothing climbs out of its folder, and what was encoded can be read."""

import posixpath
import re
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import Rejected
from common.names import (
    decode_owner,
    encode_owner,
    input_name,
    is_job_id,
    owner_bytes_max,
    parse_upload_name,
    result_name,
    thumbnail_name,
    upload_name,
)

owners = st.text(min_size=1, max_size=60)
job_ids = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")
JOB = "0123456789abcdef" * 2


@given(owner=owners)
@example(owner="..")
@example(owner="fb:a/../../b")
@example(owner="~3A")
@example(owner="\u00e9")
@example(owner="e\u0301")
@example(owner="\0\n%2F")
def test_owner_comes_back_from_a_safe_segment(owner: str) -> None:
    segment = encode_owner(owner)
    assert decode_owner(segment) == owner
    assert re.fullmatch(r"[A-Za-z0-9_~-]+", segment)


@given(owner=st.text("abcXYZ019_-", min_size=1))
def test_plain_owner_stays_as_it_is(owner: str) -> None:
    assert encode_owner(owner) == owner


@given(one=owners, two=owners)
@example(one="a:b", two="a~3Ab")
@example(one="A", two="a")
def test_two_owners_share_no_folder(one: str, two: str) -> None:
    assert (encode_owner(one) == encode_owner(two)) is (one == two)


@given(segment=st.text(st.sampled_from("ab~3AaFf8/.%"), max_size=12) | st.text(max_size=12))
def test_segment_is_read_only_if_it_was_written_by_us(segment: str) -> None:
    with suppress(Rejected):
        assert encode_owner(decode_owner(segment)) == segment


@pytest.mark.parametrize(
    "segment",
    [
        "",
        ".",
        "..",
        "a:b",
        "a/b",
        "~",
        "~3",
        "~3a",
        "~zz",
        "~41",
        "~5F",
        "~FF",
        "~C3",
        "~ED~A0~80",
        "~C0~AF",
        "a\n",
        "é",
    ],
)
def test_segment_that_encoding_cannot_have_made_is_refused(segment: str) -> None:
    with pytest.raises(Rejected):
        decode_owner(segment)


@given(owner=owners, job_id=job_ids, index=st.integers(0, 3))
def test_every_name_stays_in_the_owners_folder(owner: str, job_id: str, index: int) -> None:
    folder = encode_owner(owner)
    names = {
        upload_name(owner, job_id): f"uploads/{folder}/",
        input_name(owner, job_id): f"{folder}/",
        result_name(owner, job_id, index): f"{folder}/{job_id}/",
        thumbnail_name(owner, job_id, index): f"{folder}/{job_id}/",
    }
    for name, start in names.items():
        assert name.startswith(start)
        assert posixpath.normpath(name) == name
        assert not name.startswith("/")


@given(owner=owners, job_id=job_ids)
def test_upload_name_says_owner_and_job(owner: str, job_id: str) -> None:
    assert parse_upload_name(upload_name(owner, job_id)) == (owner, job_id)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "uploads",
        f"uploads/a/{JOB}/",
        f"/uploads/a/{JOB}",
        f"uploads//{JOB}",
        f"uploads/../{JOB}",
        f"uploads/a/../{JOB}",
        f"inbox/a/{JOB}",
        f"a/{JOB}.jpg",
        f"uploads/a/{JOB[:-1]}",
        f"uploads/a/{JOB}0",
        f"uploads/a/{JOB.upper()}",
        f"uploads/a/{JOB}\n",
        f"uploads/a/{JOB[:-1]}٣",
        f"uploads/a b/{JOB}",
    ],
)
def test_other_name_is_no_upload(name: str) -> None:
    with pytest.raises(Rejected):
        parse_upload_name(name)


@given(text=st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for name in (text, f"uploads/{text}", f"uploads/{text}/{JOB}"):
        with suppress(Rejected):
            assert upload_name(*parse_upload_name(name)) == name


@pytest.mark.parametrize("character", ["x", "@", "é", "漢", "😀"])
def test_owner_has_900_bytes_of_a_name_at_most(character: str) -> None:
    count = owner_bytes_max // len(encode_owner(character))
    longest = character * count
    for name in (upload_name(longest, JOB), input_name(longest, JOB), thumbnail_name(longest, JOB, 3)):
        assert len(name.encode()) <= 1024
    assert decode_owner(encode_owner(longest)) == longest
    with pytest.raises(Rejected, match="too long for an object's name, over 900 bytes"):
        encode_owner(longest + character)
    with pytest.raises(Rejected):
        decode_owner(encode_owner(longest) + encode_owner(character))


@pytest.mark.parametrize("owner", ["\ud800", "jwt:a\udfff"])
def test_owner_that_is_no_text_is_refused(owner: str) -> None:
    with pytest.raises(Rejected):
        encode_owner(owner)


def test_job_id_has_32_lower_case_hex_digits() -> None:
    assert is_job_id(JOB)
    assert not any(is_job_id(text) for text in ("", JOB[1:], JOB + "0", JOB.upper(), JOB + "\n", "g" * 32))
