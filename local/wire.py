"""The Gemini API's JSON as the stand-in reads and writes it, in either spelling. No server and no state here."""

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response

from common import styles
from local import drawing

STAND_IN = "stand-in"
# What a 1K picture counts as at $30 a million tokens; other sizes are not told apart here.
IMAGE_TOKENS = 1120
# Google's clients send the URL-safe alphabet, its documentation shows the standard one.
_STANDARD = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for, as far as a picture needs it."""

    prompt: str
    photo: bytes | None
    aspect_ratio: str
    size: str
    seed: int | None

    def draw(self, nonce: int) -> bytes:
        """The picture as JPEG; CPU-bound. Raises ValueError if the photo cannot be read."""
        if self.photo is None:
            caption = styles.said(self.prompt) or self.prompt
            return drawing.scene(self.prompt, caption, nonce, self.aspect_ratio, self.size)
        try:
            return drawing.portrait(self.photo, self.prompt, nonce, self.aspect_ratio, self.size)
        except OSError as exc:
            raise ValueError("Unable to process input image") from exc


def parse(body: bytes) -> Wanted:
    """Read a generateContent body in either spelling and either base64 alphabet. Raises ValueError, as a 400 would."""
    try:
        request = json.loads(body)
        parts = [part for content in request["contents"] for part in content["parts"]]
        config = _either(request, "generationConfig", "generation_config") or {}
        image = _either(config, "imageConfig", "image_config") or {}
        photos = [blob for part in parts if (blob := _either(part, "inlineData", "inline_data"))]
        wanted = Wanted(
            prompt="\n".join(part["text"] for part in parts if part.get("text")),
            photo=base64.b64decode(photos[0]["data"].encode().translate(_STANDARD), validate=True) if photos else None,
            aspect_ratio=_either(image, "aspectRatio", "aspect_ratio") or "1:1",
            size=_either(image, "imageSize", "image_size") or "1K",
            seed=config.get("seed"),
        )
        drawing.dimensions(wanted.aspect_ratio, wanted.size)
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"Invalid value: {type(exc).__name__}") from exc
    if not parts or any(not str(_either(blob, "mimeType", "mime_type")).startswith("image/") for blob in photos):
        raise ValueError("contents must hold text, and pictures of an image type")
    return wanted


def answer(image: bytes, *, input_tokens: int) -> bytes:
    """The JSON of a finished answer with that JPEG."""
    part = {"inlineData": {"mimeType": "image/jpeg", "data": base64.b64encode(image).decode()}}
    body = {
        "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {
            "promptTokenCount": input_tokens,
            "candidatesTokenCount": IMAGE_TOKENS,
            "totalTokenCount": input_tokens + IMAGE_TOKENS,
            "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": IMAGE_TOKENS}],
        },
        "modelVersion": STAND_IN,
        "responseId": f"{STAND_IN}-{secrets.token_hex(8)}",
    }
    return json.dumps(body).encode()


def as_events(payload: bytes) -> bytes:
    """The same answer as a stream brings it: a thought first, then the picture whole in one event."""
    thought = {"candidates": [{"content": {"role": "model", "parts": [{"text": "Sketching.", "thought": True}]}}]}
    return b"data: " + json.dumps(thought).encode() + b"\r\n\r\ndata: " + payload + b"\r\n\r\n"


def wire_error(code: int, status: str, message: str, details: list[dict[str, object]] | None = None) -> Response:
    """An error as Google's APIs send it (https://cloud.google.com/apis/design/errors)."""
    error: dict[str, object] = {"code": code, "message": message, "status": status}
    if details:
        error["details"] = details
    return JSONResponse({"error": error}, code)


def _either(mapping: Mapping[str, Any], camel: str, snake: str) -> Any:
    return mapping.get(camel, mapping.get(snake))
