"""The Gemini stand-in by itself: both spellings, both ways to ask, and its life as a child process."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import httpx2
import pytest

from local import drawing
from local import gemini as stand_in
from local.wire import parse

MODEL = "gemini-nano-banana-2.1"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with stand_in.running() as address:
        yield address


def test_stream_brings_a_thought_and_then_the_picture(url: str) -> None:
    request = {"contents": [{"parts": [{"text": "a fox"}]}], "generationConfig": {"seed": 4}}
    streamed = httpx2.post(f"{url}/v1/models/{MODEL}:streamGenerateContent?alt=sse", json=request)
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.text.splitlines() if line]
    assert [event["candidates"][0].get("finishReason") for event in events] == [None, "STOP"]
    assert streamed.headers["x-stand-in"] == "stand-in"


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("names", [("inline_data", "mime_type"), ("inlineData", "mimeType")])
def test_both_spellings_and_both_alphabets_are_read(encode: Callable[[bytes], bytes], names: tuple[str, str]) -> None:
    photo = bytes(range(256))
    part = {names[0]: {names[1]: "image/jpeg", "data": encode(photo).decode()}}
    assert parse(json.dumps({"contents": [{"parts": [part]}]}).encode()).photo == photo


def test_photo_that_cannot_be_read_is_refused(url: str) -> None:
    part = {"inlineData": {"mimeType": "image/jpeg", "data": "AAAA"}}
    refused = httpx2.post(f"{url}/v1beta/models/{MODEL}:generateContent", json={"contents": [{"parts": [part]}]})
    assert refused.status_code == 400
    assert refused.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_child_tells_its_url_and_ends_with_its_parent() -> None:
    command = [sys.executable, "-m", "local.gemini", "--canned", "auto", "--delay-ms", "0", "--exit-with-parent"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        address = json.loads(child.stdout.readline())["url"]
        answered = httpx2.post(f"{address}/v1beta/models/{MODEL}:generateContent", json={}).json()
        child.stdin.close()
        assert child.wait(10) == 0
    data = base64.b64decode(answered["candidates"][0]["content"]["parts"][0]["inlineData"]["data"])
    assert 200_000 <= len(data) <= drawing.JPEG_1K_BYTES_MAX


def test_unknown_mood_is_refused_and_changes_nothing(url: str) -> None:
    assert httpx2.put(f"{url}/standin/mood", json={"mood": "gloomy"}).status_code == 400
    request = {"contents": [{"parts": [{"text": "a fox"}]}]}
    assert httpx2.post(f"{url}/v1beta/models/{MODEL}:generateContent", json=request).status_code == 200


def test_body_above_the_cap_is_refused(url: str) -> None:
    refused = httpx2.post(f"{url}/v1beta/models/{MODEL}:generateContent", content=bytes(stand_in.BODY_BYTES_MAX + 1))
    assert refused.status_code == 400


@pytest.mark.parametrize("aspect_ratio", ["1:1", "3:4", "21:9", "1:8", "8:1"])
def test_every_size_is_near_its_ratio_and_a_megapixel_at_1k(aspect_ratio: str) -> None:
    across, down = map(int, aspect_ratio.split(":"))
    width, height = drawing.dimensions(aspect_ratio, "1K")
    assert width / height == pytest.approx(across / down, rel=0.03)
    assert width * height == pytest.approx(1024 * 1024, rel=0.03)
    assert drawing.dimensions(aspect_ratio, "4K") == (width * 4, height * 4)


@pytest.mark.parametrize("aspect_ratio", ["3:4", "16:9", "1:8", "8:1"])
def test_seed_and_prompt_alone_decide_a_scene(aspect_ratio: str) -> None:
    first, again, other = [drawing.scene("fox", "fox", nonce, aspect_ratio, "512") for nonce in (1, 1, 2)]
    assert first == again != other
