"""How the Gemini stand-in misbehaves when told to: refusals, errors and damage in the API's own shapes. No drawing."""

import json
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from local.wire import STAND_IN, wire_error


class Mood(StrEnum):
    """What becomes of the next calls. RAW answers exactly what the change of mood carried."""

    OK = "ok"
    REFUSE_INPUT = "refuse_input"
    REFUSE_OUTPUT = "refuse_output"
    TEXT_ONLY = "text_only"
    EMPTY = "empty"
    BAD_BASE64 = "bad_base64"
    GARBAGE_IMAGE = "garbage_image"
    HTTP_400 = "http_400"
    HTTP_403 = "http_403"
    HTTP_404 = "http_404"
    HTTP_429 = "http_429"
    HTTP_429_DAY = "http_429_day"
    HTTP_500 = "http_500"
    HTTP_503 = "http_503"
    HANG = "hang"
    RESET = "reset"
    TRUNCATED = "truncated"
    RAW = "raw"


class Change(BaseModel):
    """The body of PUT /standin/mood. `count` calls have the mood, then OK returns; without it, it stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mood: Mood
    count: int | None = Field(None, ge=1)
    status: int = Field(200, ge=200, le=599)
    content_type: str = "application/json"
    headers: dict[str, str] = {}
    body: str = ""


class Moods:
    """The mood of one stand-in. Calls take it in the order of their arrival."""

    def __init__(self) -> None:
        self._change = Change(mood=Mood.OK)
        self._left: int | None = None

    def change(self, body: bytes) -> None:
        """Take on a new mood. Raises pydantic.ValidationError and keeps the old one if the body is not a Change."""
        self._change = Change.model_validate_json(body)
        self._left = self._change.count

    def next(self) -> Mood:
        """The mood for the call that arrives now."""
        if self._left is None:
            return self._change.mood
        self._left -= 1
        return self._change.mood if self._left >= 0 else Mood.OK

    def raw(self) -> Response:
        """The answer that the change to RAW carried."""
        change = self._change
        return Response(change.body, change.status, change.headers, media_type=change.content_type)


def failure(mood: Mood) -> Response | None:
    """The HTTP error of a mood that is one, else None."""
    row = _ERRORS.get(mood)
    return None if row is None else wire_error(*row)


def spoiled(mood: Mood, input_tokens: int) -> bytes | None:
    """The JSON of an answer with status 200 and no sound picture in it, for a mood that means one, else None."""
    body = _SPOILED.get(mood)
    if body is None:
        return None
    usage = {"promptTokenCount": input_tokens, "totalTokenCount": input_tokens}
    return json.dumps({**body, "usageMetadata": usage, "modelVersion": STAND_IN}).encode()


def _quota(quota_id: str, retry_delay: str) -> list[dict[str, object]]:
    return [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota_id}]},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": retry_delay},
    ]


def _candidate(reason: str, *parts: dict[str, object]) -> dict[str, object]:
    return {"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": reason, "index": 0}]}


def _inline(data: str) -> dict[str, object]:
    return {"inlineData": {"mimeType": "image/png", "data": data}}


_ERRORS: Mapping[Mood, tuple[int, str, str, list[dict[str, object]] | None]] = MappingProxyType(
    {
        Mood.HTTP_400: (400, "INVALID_ARGUMENT", "Request contains an invalid argument.", None),
        Mood.HTTP_403: (403, "PERMISSION_DENIED", "Method doesn't allow unregistered callers.", None),
        Mood.HTTP_404: (404, "NOT_FOUND", "The model is not found for API version v1beta.", None),
        Mood.HTTP_429: (429, "RESOURCE_EXHAUSTED", "Quota exceeded.", _quota("RequestsPerMinutePerProject", "2.5s")),
        # Google sends a delay of seconds along with a day's quota too; whoever believes it asks all day.
        Mood.HTTP_429_DAY: (429, "RESOURCE_EXHAUSTED", "Quota exceeded.", _quota("RequestsPerDayPerProject", "34s")),
        Mood.HTTP_500: (500, "INTERNAL", "An internal error has occurred.", None),
        Mood.HTTP_503: (503, "UNAVAILABLE", "The model is overloaded.", None),
    }
)
_SPOILED: Mapping[Mood, dict[str, object]] = MappingProxyType(
    {
        Mood.REFUSE_INPUT: {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}},
        Mood.REFUSE_OUTPUT: _candidate("IMAGE_SAFETY"),
        Mood.TEXT_ONLY: _candidate("STOP", {"text": "I can only describe that picture."}),
        Mood.EMPTY: {},
        Mood.BAD_BASE64: _candidate("STOP", _inline("!!! not base64 !!!")),
        Mood.GARBAGE_IMAGE: _candidate("STOP", _inline("bm90IGEgcGljdHVyZQ==")),
    }
)
