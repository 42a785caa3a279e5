"""The real google-genai client against the stand-in, over loopback HTTP: every row of the outcome table."""

import base64
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import httpx2
import pytest
from google.auth.exceptions import DefaultCredentialsError
from google.oauth2.credentials import Credentials
from PIL import Image, ImageDraw

from local import drawing
from local import gemini as stand_in
from processor.gemini import Ask, Gemini, GeminiNotConfigured
from processor.outcomes import Action, ModelFailure

MODEL = "gemini-nano-banana-2.1"
PROMPT = "a lighthouse at dusk"
Mood = Callable[..., None]


def picture(format_: str) -> bytes:
    encoded = BytesIO()
    Image.new("RGB", (8, 8), "teal").save(encoded, format_)
    return encoded.getvalue()


def selfie() -> bytes:
    drawn = Image.new("RGB", (384, 512), "#d8cfc0")
    ImageDraw.Draw(drawn).ellipse((122, 90, 262, 280), fill="#c98d6b")
    encoded = BytesIO()
    drawn.save(encoded, "JPEG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with stand_in.running() as address:
        yield address


@pytest.fixture
def set_mood(url: str) -> Iterator[Mood]:
    def change(mood: str, **more: Any) -> None:
        httpx2.put(f"{url}/standin/mood", json={"mood": mood, **more}).raise_for_status()

    yield change
    change("ok")


@pytest.fixture(scope="module")
async def gemini(url: str) -> AsyncIterator[Gemini]:
    client = adapter(url)
    yield client
    await client.aclose()


def adapter(url: str, *, deadline_s: float = 20.0) -> Gemini:
    return Gemini(api_key="key", base_url=url, vertex_project=None, vertex_location=None, deadline_s=deadline_s)


def ask(**changes: Any) -> Ask:
    return replace(Ask(model=MODEL, prompt=PROMPT, aspect_ratio="1:1", size="1K"), **changes)


def stats(url: str) -> dict[str, int]:
    counted: dict[str, int] = httpx2.get(f"{url}/standin/stats").json()
    return counted


async def failing(gemini: Gemini, url: str, **changes: Any) -> ModelFailure:
    """The failure of one call, which must have reached the server exactly once."""
    before = stats(url)
    with pytest.raises(ModelFailure) as failed:
        await gemini.generate(ask(**changes))
    assert stats(url) == {"calls": before["calls"] + 1, "images": before["images"]}
    assert PROMPT not in str(failed.value)
    return failed.value


def body(reason: str | None, *parts: dict[str, Any], **more: Any) -> str:
    return json.dumps({"candidates": [{"content": {"parts": parts}, "finishReason": reason}], **more})


def inline(image: bytes, mime_type: str = "image/png", **more: Any) -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime_type, "data": base64.b64encode(image).decode()}, **more}


async def test_prompt_becomes_a_labelled_picture_of_the_ratio(gemini: Gemini) -> None:
    answer = await gemini.generate(ask(aspect_ratio="16:9"))
    with Image.open(BytesIO(answer.image)) as drawn:
        drawn.load()
        assert abs(drawn.width / drawn.height - 16 / 9) < 0.03
        assert_labelled(drawn)
    assert answer.content_type == "image/jpeg"
    assert answer.model_version == "stand-in"
    assert (answer.input_tokens > 0, answer.output_tokens) == (True, 1120)


async def test_portrait_stands_before_a_deep_blue_backdrop(gemini: Gemini) -> None:
    answer = await gemini.generate(ask(photo=selfie(), aspect_ratio="3:4"))
    assert len(answer.image) <= drawing.JPEG_1K_BYTES_MAX
    with Image.open(BytesIO(answer.image)) as drawn:
        assert abs(drawn.width / drawn.height - 3 / 4) < 0.03
        assert_labelled(drawn)
        for corner in ((4, 4), (drawn.width - 5, 4)):
            red, green, blue = rgb(drawn, corner)
            assert blue > 1.5 * max(red, green)
        red, _, blue = rgb(drawn, (drawn.width // 2, drawn.height * 4 // 10))
        assert red > blue, "the face keeps its own colours"


def rgb(image: Image.Image, at: tuple[int, int]) -> tuple[int, int, int]:
    pixel = image.getpixel(at)
    assert isinstance(pixel, tuple)
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def assert_labelled(image: Image.Image) -> None:
    """White letters on a dark band along the bottom, in the middle and not beside it."""
    band = image.convert("L").crop((0, image.height - 30, image.width, image.height))
    middle = band.crop((image.width * 2 // 5, 0, image.width * 3 // 5, 30))
    edge = band.crop((0, 0, image.width // 8, 30))
    assert max(middle.tobytes()) > 200
    assert max(edge.tobytes()) < 140


async def test_same_prompt_again_gives_another_picture(gemini: Gemini) -> None:
    first, second = [await gemini.generate(ask(prompt="twice")) for _ in range(2)]
    assert first.image != second.image


async def test_size_is_honoured_with_one_request(gemini: Gemini, url: str) -> None:
    before = stats(url)
    answer = await gemini.generate(ask(size="2K"))
    assert stats(url) == {name: count + 1 for name, count in before.items()}
    with Image.open(BytesIO(answer.image)) as drawn:
        assert drawn.size == (2048, 2048)


MOODS = {
    "refuse_input": (Action.END, "content_blocked_input", "yes", None),
    "refuse_output": (Action.END, "content_blocked_output", "yes", None),
    "text_only": (Action.AGAIN, "no_image", "yes", None),
    "empty": (Action.AGAIN, "generation_failed", "yes", None),
    "bad_base64": (Action.AGAIN, "bad_output", "yes", None),
    "garbage_image": (Action.AGAIN, "bad_output", "yes", None),
    "http_400": (Action.END, "invalid_input", "no", None),
    "http_403": (Action.WAIT, "service_config", "no", None),
    "http_404": (Action.END, "model_retired", "no", None),
    "http_429": (Action.WAIT, "busy", "no", 2.5),
    "http_429_day": (Action.WAIT, "quota_exhausted", "no", None),
    "http_500": (Action.WAIT, "upstream_unavailable", "no", None),
    "http_503": (Action.WAIT, "upstream_unavailable", "no", None),
    "reset": (Action.UNKNOWN, "timeout", "maybe", None),
    "truncated": (Action.UNKNOWN, "timeout", "maybe", None),
}


@pytest.mark.parametrize("mood", MOODS)
async def test_every_mood_is_understood(gemini: Gemini, url: str, set_mood: Mood, mood: str) -> None:
    set_mood(mood, count=1)
    failure = await failing(gemini, url)
    assert (failure.action, failure.code, failure.billed, failure.retry_after_s) == MOODS[mood]


def error(code: int, status: str = "", **detail: Any) -> dict[str, Any]:
    return {"status": code, "body": json.dumps({"error": {"code": code, "status": status, "details": [detail]}})}


HTML = "<html><body>Bad gateway</body></html>"
RAW: dict[str, tuple[dict[str, Any], Action, str]] = {
    "html": ({"status": 502, "content_type": "text/html", "body": HTML}, Action.WAIT, "upstream_unavailable"),
    "html instead of an answer": ({"content_type": "text/html", "body": HTML}, Action.UNKNOWN, "timeout"),
    "error in a list": ({"status": 503, "body": '[{"error": {"code": 503}}]'}, Action.WAIT, "upstream_unavailable"),
    "error of strange form": ({"status": 500, "body": '{"error": "x"}'}, Action.WAIT, "upstream_unavailable"),
    "violations of strange form": (error(429, violations=7), Action.WAIT, "upstream_unavailable"),
    "bare 429": (error(429, "RESOURCE_EXHAUSTED"), Action.WAIT, "upstream_unavailable"),
    "504": (error(504, "DEADLINE_EXCEEDED"), Action.WAIT, "upstream_unavailable"),
    "499": (error(499, "CANCELLED"), Action.UNKNOWN, "timeout"),
    "401": (error(401, "UNAUTHENTICATED"), Action.WAIT, "service_config"),
    "wrong key": (error(400, "INVALID_ARGUMENT", reason="API_KEY_INVALID"), Action.WAIT, "service_config"),
    "no billing": (error(400, "FAILED_PRECONDITION"), Action.WAIT, "service_config"),
    "no body": ({"body": ""}, Action.AGAIN, "generation_failed"),
    "half a body": ({"body": '{"candidates": ['}, Action.UNKNOWN, "timeout"),
    "a list": ({"body": "[]"}, Action.AGAIN, "generation_failed"),
    "recitation": ({"body": body("IMAGE_RECITATION")}, Action.END, "content_recitation"),
    "prohibited": ({"body": body("PROHIBITED_CONTENT", inline(b""))}, Action.END, "content_blocked_output"),
    "no image": ({"body": body("NO_IMAGE")}, Action.AGAIN, "no_image"),
    "other": ({"body": body("IMAGE_OTHER")}, Action.AGAIN, "generation_failed"),
    "unfinished": ({"body": body(None, {"text": "and"})}, Action.UNKNOWN, "timeout"),
    "continuation": ({"body": body("CONTINUATION", {"text": "and"})}, Action.AGAIN, "generation_failed"),
    "draft only": ({"body": body("STOP", inline(picture("PNG"), thought=True))}, Action.AGAIN, "no_image"),
    "cut picture": ({"body": body("STOP", inline(selfie()[:-200]))}, Action.AGAIN, "bad_output"),
}


@pytest.mark.parametrize("case", RAW)
async def test_every_other_answer_is_understood(gemini: Gemini, url: str, set_mood: Mood, case: str) -> None:
    raw, action, code = RAW[case]
    set_mood("raw", count=1, **raw)
    failure = await failing(gemini, url)
    assert (failure.action, failure.code) == (action, code)


@pytest.mark.filterwarnings("ignore:DISLIKED is not a valid:UserWarning")
async def test_finish_reason_nobody_knows_yet_is_tried_once_more(gemini: Gemini, url: str, set_mood: Mood) -> None:
    set_mood("raw", count=1, body=body("DISLIKED", usageMetadata={}))
    failure = await failing(gemini, url)
    assert (failure.action, failure.code, failure.billed) == (Action.AGAIN, "generation_failed", "maybe")
    assert "DISLIKED" in failure.detail


async def test_first_finished_picture_wins_over_drafts_and_followers(gemini: Gemini, set_mood: Mood) -> None:
    parts = [inline(picture("PNG"), thought=True), {"text": "Here:"}, inline(selfie()), inline(picture("WEBP"))]
    set_mood("raw", count=1, body=body("STOP", *parts))
    answer = await gemini.generate(ask())
    assert answer.image == selfie()


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
async def test_bytes_decide_the_content_type(gemini: Gemini, set_mood: Mood, format_: str) -> None:
    set_mood("raw", count=1, body=body("STOP", inline(picture(format_), "image/heic")))
    assert (await gemini.generate(ask())).content_type == f"image/{format_.lower()}"


async def test_retry_after_header_is_heard_where_the_body_has_no_hint(gemini: Gemini, url: str, set_mood: Mood) -> None:
    set_mood("raw", count=1, status=429, headers={"Retry-After": "7"})
    failure = await failing(gemini, url)
    assert (failure.action, failure.code, failure.retry_after_s) == (Action.WAIT, "busy", 7.0)


async def test_answer_that_never_comes_is_given_up_at_the_deadline(url: str, set_mood: Mood) -> None:
    gemini = adapter(url, deadline_s=20.0)
    await gemini.generate(ask())
    gemini._deadline_s = 0.2
    set_mood("hang", count=1)
    failure = await failing(gemini, url)
    await gemini.aclose()
    assert (failure.action, failure.code, failure.billed) == (Action.UNKNOWN, "timeout", "maybe")


async def test_nobody_listening_is_known_to_be_unbilled() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gemini = adapter(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(ModelFailure) as failed:
            await gemini.generate(ask())
    await gemini.aclose()
    assert (failed.value.action, failed.value.billed) == (Action.WAIT, "no")
    assert failed.value.code == "upstream_unavailable"


async def test_closing_twice_and_asking_again_is_allowed(url: str) -> None:
    gemini = adapter(url)
    for _ in range(2):
        await gemini.generate(ask())
        await gemini.aclose()
        await gemini.aclose()


async def test_vertex_takes_the_same_way_with_the_service_s_own_token(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("google.auth.default", lambda **_: (Credentials(token="made up"), "project"))  # type: ignore[no-untyped-call]
    gemini = vertex(url)
    answer = await gemini.generate(ask(photo=selfie()))
    await gemini.aclose()
    assert answer.model_version == "stand-in"


async def test_missing_credentials_are_the_operator_s_business_and_unbilled(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise DefaultCredentialsError("none found")  # type: ignore[no-untyped-call]

    monkeypatch.setattr("google.auth.default", refuse)
    gemini, before = vertex(url), stats(url)
    with pytest.raises(ModelFailure) as failed:
        await gemini.generate(ask())
    await gemini.aclose()
    assert (failed.value.action, failed.value.code, failed.value.billed) == (Action.WAIT, "service_config", "no")
    assert stats(url) == before


def vertex(url: str) -> Gemini:
    return Gemini(api_key=None, base_url=url, vertex_project="project", vertex_location=None, deadline_s=20)


def test_without_any_credentials_the_adapter_refuses_to_start() -> None:
    with pytest.raises(GeminiNotConfigured, match="GEMINI_API_KEY"):
        Gemini(api_key=None, base_url=None, vertex_project=None, vertex_location=None, deadline_s=1)
