"""V4 signatures: Google's own example, the key's derivation done again by hand, and everything a forger may try."""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.v4 import BadSignature, HmacKey, verify

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
KEY = HmacKey("local", b"k" * 32)
HEADERS = {"Content-Type": "image/jpeg", "x-goog-content-length-range": "1,1000", "x-goog-if-generation-match": "0"}
URL = KEY.sign("PUT", "https://photos.example.com/uploads/a~3Ab/1%20%2B2", HEADERS, expires_s=900, now=NOON).url


def check(
    url: str = URL,
    *,
    method: str = "PUT",
    headers: Mapping[str, str] = HEADERS,
    key: HmacKey = KEY,
    now: datetime = NOON,
) -> None:
    """Verify the request as a server receives it."""
    parts = urlsplit(url)
    sent = {"host": parts.netloc, **{name.lower(): value for name, value in headers.items()}}
    query = parse_qsl(parts.query, keep_blank_values=True)
    verify(method, parts.path, query, sent, check=key.check, now=now)


def refused(url: str = URL, **changes: object) -> BadSignature:
    with pytest.raises(BadSignature) as error:
        check(url, **changes)  # type: ignore[arg-type]
    assert error.value.status in {400, 403}
    return error.value


def test_string_to_sign_is_googles() -> None:
    """Case "Simple GET" of https://github.com/googleapis/conformance-tests, storage/v1/v4_signatures.json."""
    credential = "test-iam-credentials@dummy-project-id.iam.gserviceaccount.com/20190201/auto/storage/goog4_request"
    query = [
        ("X-Goog-Algorithm", "GOOG4-RSA-SHA256"),
        ("X-Goog-Credential", credential),
        ("X-Goog-Date", "20190201T090000Z"),
        ("X-Goog-Expires", "10"),
        ("X-Goog-SignedHeaders", "host"),
        ("X-Goog-Signature", "abc"),
    ]
    asked: list[tuple[str, str, bytes, str]] = []

    def take(algorithm: str, credential: str, text: bytes, signature: str) -> bool:
        asked.append((algorithm, credential, text, signature))
        return True

    moment = datetime(2019, 2, 1, 9, tzinfo=UTC)
    verify("GET", "/test-bucket/test-object", query, {"host": "storage.googleapis.com"}, check=take, now=moment)
    expected = (
        b"GOOG4-RSA-SHA256\n20190201T090000Z\n20190201/auto/storage/goog4_request\n"
        b"00e2fb794ea93d7adb703edaebdd509821fcc7d4f1a79ac5c8d2b394df109320"
    )
    assert asked == [("GOOG4-RSA-SHA256", credential, expected, "abc")]


def test_signature_is_what_the_documentation_says() -> None:
    """https://cloud.google.com/storage/docs/authentication/signatures, done again without our code."""
    url = KEY.sign("PUT", "https://photos.example.com/uploads/a/b", HEADERS, expires_s=900, now=NOON).url
    pairs = [
        ("X-Goog-Algorithm", "GOOG4-HMAC-SHA256"),
        ("X-Goog-Credential", "local/20260504/auto/storage/goog4_request"),
        ("X-Goog-Date", "20260504T120000Z"),
        ("X-Goog-Expires", "900"),
        ("X-Goog-SignedHeaders", "content-type;host;x-goog-content-length-range;x-goog-if-generation-match"),
    ]
    canonical = "\n".join(
        [
            "PUT",
            "/uploads/a/b",
            "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs),
            "content-type:image/jpeg",
            "host:photos.example.com",
            "x-goog-content-length-range:1,1000",
            "x-goog-if-generation-match:0",
            "",
            pairs[-1][1],
            "UNSIGNED-PAYLOAD",
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"GOOG4-HMAC-SHA256\n20260504T120000Z\n20260504/auto/storage/goog4_request\n{digest}"
    signing = b"GOOG4" + KEY.secret
    for part in (b"20260504", b"auto", b"storage", b"goog4_request"):
        signing = hmac.new(signing, part, hashlib.sha256).digest()
    signature = hmac.new(signing, text.encode(), hashlib.sha256).hexdigest()
    assert parse_qsl(urlsplit(url).query) == [*pairs, ("X-Goog-Signature", signature)]


def test_request_as_signed_is_let_in() -> None:
    check()


def test_header_names_may_come_in_any_case_and_values_with_any_blanks() -> None:
    check(headers={name.upper(): f"  {value} " for name, value in HEADERS.items()})


def test_another_key_signs_in_vain() -> None:
    assert refused(key=HmacKey("local", b"j" * 32)).code == "SignatureDoesNotMatch"
    assert refused(key=HmacKey("other", KEY.secret)).code == "SignatureDoesNotMatch"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "put", "PUT ", ""])
def test_other_method_is_refused(method: str) -> None:
    refused(method=method)


@pytest.mark.parametrize(
    ("age_s", "code"),
    [(-901, "RequestNotYetValid"), (-900, None), (0, None), (900, None), (901, "ExpiredToken"), (1e9, "ExpiredToken")],
)
def test_url_lives_from_a_quarter_before_until_it_expires(age_s: float, code: str | None) -> None:
    now = NOON + timedelta(seconds=age_s)
    if code is None:
        check(now=now)
    else:
        assert refused(now=now).code == code


def test_expiry_is_counted_in_the_signers_time_zone_too() -> None:
    check(now=NOON.astimezone(datetime.fromisoformat("2026-01-01T00:00:00+05:45").tzinfo))


def test_life_is_a_week_at_most() -> None:
    week = 7 * 24 * 3600
    check(KEY.sign("PUT", "https://x/a/b", HEADERS, expires_s=week, now=NOON).url)
    refused(KEY.sign("PUT", "https://x/a/b", HEADERS, expires_s=week + 1, now=NOON).url)


@given(position=st.integers(0, len(URL) - 1), letter=st.characters(min_codepoint=33, max_codepoint=126))
def test_no_letter_of_the_url_can_be_changed(position: int, letter: str) -> None:
    changed = URL[:position] + letter + URL[position + 1 :]
    meaning = _meaning(changed)
    if meaning == _meaning(URL):
        check(changed)
    elif meaning is not None:
        refused(changed)


@given(data=st.data())
def test_no_part_of_the_url_can_be_left_out_or_doubled(data: st.DataObject) -> None:
    start = data.draw(st.integers(len("https://"), len(URL) - 1))
    end = data.draw(st.integers(start + 1, len(URL)))
    for changed in (URL[:start] + URL[end:], URL[:end] + URL[start:]):
        if _meaning(changed) not in {None, _meaning(URL)}:
            refused(changed)


@given(name=st.sampled_from(sorted(HEADERS)), value=st.text(st.characters(min_codepoint=32, max_codepoint=255)))
def test_no_signed_header_can_be_changed(name: str, value: str) -> None:
    if " ".join(value.split()) != HEADERS[name]:
        refused(headers={**HEADERS, name: value})


@given(
    fields=st.dictionaries(
        st.sampled_from([f"X-Goog-{n}" for n in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders")]),
        st.text(max_size=30) | st.integers().map(str) | st.sampled_from(["20260504T120000Z", "host", "a/b/c/d/e"]),
    ),
    signature=st.text(max_size=80),
)
def test_any_rubbish_is_refused_and_breaks_nothing(fields: dict[str, str], signature: str) -> None:
    known = dict(parse_qsl(urlsplit(URL).query))
    query = list((known | fields | {"X-Goog-Signature": signature}).items())
    if dict(query) == known:
        return
    with pytest.raises(BadSignature):
        verify("PUT", "/uploads/\xff", query, {"host": "photos.example.com"}, check=KEY.check, now=NOON)


@given(query=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=8))
def test_any_unsigned_query_is_refused(query: list[tuple[str, str]]) -> None:
    with pytest.raises(BadSignature):
        verify("GET", "/a/b", query, {"host": "x"}, check=KEY.check, now=NOON)


def _meaning(url: str) -> tuple[object, ...] | None:
    """What a server makes of the URL; None if no client could send it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return parts.netloc, parts.path, tuple(sorted(parse_qsl(parts.query, keep_blank_values=True)))
