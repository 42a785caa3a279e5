"""Google's keys for pushes: when they are fetched, how long they are kept, and which pages are none."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm

from common.errors import Unavailable
from common.google.push_keys import PushKeys, answer_bytes_max
from tests.bench import Clock
from tests.google.fakes import Fakes, Key


@pytest.fixture(scope="module")
def key() -> Key:
    return Key()


@pytest.fixture(scope="module")
def next_key() -> Key:
    return Key()


class Page:
    """A key page that answers with `answer` whatever is asked, byte for byte; nothing, if that is None."""

    def __init__(self, *keys: Key) -> None:
        self.asked: list[bytes] = []
        self.url = ""
        self.answer: bytes | None = None
        self.show(*keys)

    def show(self, *keys: Key, **headers: str) -> None:
        self.answer = page(key_set(*keys), **headers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            if self.answer is None:
                await reader.read()
            else:
                writer.write(self.answer)
                await writer.drain()
        finally:
            writer.close()


def key_set(*keys: Key) -> bytes:
    return json.dumps({"keys": [key.jwk() for key in keys]}).encode()


def page(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close"]
    head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*head, "", ""]).encode() + body


@asynccontextmanager
async def a_page(*keys: Key) -> AsyncIterator[Page]:
    shown = Page(*keys)
    server = await asyncio.start_server(shown.serve, "127.0.0.1", 0)
    shown.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/certs"
    async with server:
        yield shown


def is_key(found: object, key: Key) -> bool:
    return isinstance(found, rsa.RSAPublicKey) and found.public_numbers() == key.public.public_numbers()


async def test_key_of_the_page_is_found_by_its_name(fakes: Fakes) -> None:
    keys = PushKeys(fakes.settings["push_certs_url"], Clock())
    before = fakes.calls["certs"]
    assert is_key(await keys.public_key(fakes.push_keys[0].id), fakes.push_keys[0])
    assert await keys.public_key("unknown") is None
    assert fakes.calls["certs"] == before + 1
    await keys.aclose()


async def test_nothing_is_fetched_before_a_key_is_asked_for(key: Key) -> None:
    async with a_page(key) as shown:
        PushKeys(shown.url, Clock())
        assert shown.asked == []


async def test_however_many_ask_at_once_the_page_is_fetched_once(key: Key) -> None:
    async with a_page(key) as shown:
        keys = PushKeys(shown.url, Clock())
        found = await asyncio.gather(*(keys.public_key(key.id) for _ in range(50)))
        assert all(is_key(one, key) for one in found)
        assert len(shown.asked) == 1


@pytest.mark.parametrize(
    ("headers", "kept_s"),
    [
        ({"cache_control": "public, max-age=19652, must-revalidate, no-transform"}, 19652),
        ({"cache_control": "MAX-AGE=600"}, 600),
        ({"cache_control": "max-age=600", "age": "400"}, 200),
        ({"cache_control": "max-age=600", "age": "yesterday"}, 600),
        ({"cache_control": "max-age=999999999"}, 24 * 3600),
        ({"cache_control": "s-maxage=600"}, 60),
        ({"cache_control": "max-age=0"}, 60),
        ({"cache_control": "max-age=600", "age": "9999"}, 60),
        ({"cache_control": "max-age=-5"}, 60),
        ({"cache_control": "no-store"}, 60),
        ({}, 60),
    ],
)
async def test_keys_are_kept_as_long_as_the_page_says_within_bounds(
    headers: Mapping[str, str], kept_s: int, key: Key
) -> None:
    clock = Clock()
    async with a_page() as shown:
        shown.show(key, **headers)
        keys = PushKeys(shown.url, clock)
        await keys.public_key(key.id)
        clock.advance(kept_s - 1)
        await keys.public_key(key.id)
        assert len(shown.asked) == 1
        clock.advance(2)
        await keys.public_key(key.id)
        assert len(shown.asked) == 2


async def test_stranger_who_invents_names_makes_us_ask_once_a_minute(key: Key) -> None:
    clock = Clock()
    async with a_page() as shown:
        shown.show(key, cache_control="max-age=20000")
        keys = PushKeys(shown.url, clock)
        for minute in range(1, 4):
            for number in range(100):
                assert await keys.public_key(f"{minute}-{number}") is None
            assert len(shown.asked) == minute
            clock.advance(60)


async def test_key_that_has_been_added_is_found_and_one_taken_off_is_not(key: Key, next_key: Key) -> None:
    clock = Clock()
    async with a_page() as shown:
        shown.show(key, cache_control="max-age=20000")
        keys = PushKeys(shown.url, clock)
        assert is_key(await keys.public_key(key.id), key)
        shown.show(next_key)
        clock.advance(61)
        assert is_key(await keys.public_key(next_key.id), next_key)
        assert await keys.public_key(key.id) is None


async def test_while_the_page_fails_known_keys_are_kept_and_others_are_not_denied(key: Key, next_key: Key) -> None:
    clock = Clock()
    async with a_page(key) as shown:
        keys = PushKeys(shown.url, clock)
        await keys.public_key(key.id)
        shown.answer = page(b"", "500 Internal Server Error")
        clock.advance(48 * 3600)
        assert is_key(await keys.public_key(key.id), key)
        with pytest.raises(Unavailable):
            await keys.public_key(next_key.id)
        shown.show(next_key)
        clock.advance(11)
        assert is_key(await keys.public_key(next_key.id), next_key)


async def test_page_that_failed_is_left_alone_for_ten_seconds(key: Key) -> None:
    clock = Clock()
    async with a_page() as shown:
        shown.answer = page(b"", "503 Service Unavailable")
        keys = PushKeys(shown.url, clock)
        for _ in range(20):
            with pytest.raises(Unavailable):
                await keys.public_key(key.id)
        assert len(shown.asked) == 1
        shown.show(key)
        clock.advance(10)
        assert is_key(await keys.public_key(key.id), key)


async def test_clock_that_was_set_back_holds_nothing_up(key: Key, next_key: Key) -> None:
    clock = Clock()
    async with a_page(key) as shown:
        keys = PushKeys(shown.url, clock)
        await keys.public_key(key.id)
        clock.advance(-3600)
        shown.show(next_key)
        assert is_key(await keys.public_key(next_key.id), next_key)


async def test_packed_page_is_not_asked_for(key: Key) -> None:
    async with a_page(key) as shown:
        await PushKeys(shown.url, Clock()).public_key(key.id)
        assert b"accept-encoding: identity\r\n" in shown.asked[0].lower()


async def test_keys_that_sign_nothing_of_ours_are_left_out(key: Key) -> None:
    curve = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
    others = [
        {**curve, "kid": "curve"},
        {**key.jwk(), "kid": "encrypts", "use": "enc"},
        {**key.jwk(), "kid": "longer", "alg": "RS512"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
    ]
    async with a_page() as shown:
        shown.answer = page(json.dumps({"keys": [*others, key.jwk()]}).encode())
        keys = PushKeys(shown.url, Clock())
        assert is_key(await keys.public_key(key.id), key)
        for other in others:
            assert await keys.public_key(str(other["kid"])) is None


def bad_pages(key: Key) -> Mapping[str, bytes]:
    good = key_set(key)
    damaged = {**key.jwk(), "n": "!"}
    return {
        "moved": page(good, "302 Found", location="http://127.0.0.1/certs"),
        "moved for good": page(good, "308 Permanent Redirect", location="http://127.0.0.1/certs"),
        "no content": page(b"", "204 No Content"),
        "not found": page(good, "404 Not Found"),
        "too many requests": page(good, "429 Too Many Requests"),
        "empty": page(b""),
        "no JSON": page(b"<html>"),
        "a list": page(b"[]"),
        "no keys": page(b'{"keys": []}'),
        "keys that are a text": page(b'{"keys": "all"}'),
        "key without a name": page(json.dumps({"keys": [{**key.jwk(), "kid": None}]}).encode()),
        "damaged key": page(json.dumps({"keys": [damaged]}).encode()),
        "deep": page(b"[" * 60_000),
        "too large": page(good + b" " * answer_bytes_max),
        "packed": page(gzip.compress(good), content_encoding="gzip"),
        "cut short": page(good)[:-10],
        "no HTTP": b"hello\r\n\r\n",
        "nothing": b"",
    }


@pytest.mark.parametrize("case", bad_pages(Key()))
async def test_page_that_shows_no_keys_is_as_good_as_none(case: str, key: Key) -> None:
    async with a_page() as shown:
        shown.answer = bad_pages(key)[case]
        with pytest.raises(Unavailable):
            await PushKeys(shown.url, Clock()).public_key(key.id)
        assert len(shown.asked) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/certs", "ftp://127.0.0.1/certs", "certs", "http://[/"])
async def test_address_where_nobody_answers_is_as_good_as_none(url: str) -> None:
    with pytest.raises(Unavailable):
        await PushKeys(url, Clock()).public_key("1")


async def test_page_that_takes_too_long_is_given_up(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.google.push_keys.fetch_s_max", 0.05)
    async with a_page() as shown:
        shown.answer = None
        async with asyncio.timeout(2):
            with pytest.raises(Unavailable):
                await PushKeys(shown.url, Clock()).public_key(key.id)
