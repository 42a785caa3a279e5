"""What one call to Gemini came to: an Answer, or a ModelFailure that says what to do next. Pure; nothing is sent here.

The rows are those of the outcome table in docs/gemini.md. The SDK is imported where it is used: half a second.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from common.errors import CODES
from common.ledger import Billed

if TYPE_CHECKING:
    from google.genai.errors import APIError
    from google.genai.types import GenerateContentResponse


class Action(StrEnum):
    """What the pipeline does after a call without a picture."""

    END = "end"  # never again: the same call gives the same answer
    AGAIN = "again"  # once more, then end
    WAIT = "wait"  # nothing was billed: later, through the queue
    UNKNOWN = "unknown"  # nobody saw the outcome: counts against the cap of paid calls


@dataclass(frozen=True, slots=True)
class Answer:
    """A picture. `content_type` is read from its bytes, whatever the model claimed; tokens as the model counted them.

    `model_ms` is the whole call as seen from here; `model_version` is "stand-in" when no real model was asked.
    """

    image: bytes
    content_type: str
    input_tokens: int
    output_tokens: int
    model_ms: int
    model_version: str
    response_id: str


class ModelFailure(Exception):
    """A call without a picture. `detail` is safe to log: statuses and reasons, never a prompt or the model's words.

    `retry_after_s` is the model's own hint for a WAIT, if it gave one. A day's quota carries none: the hint
    that comes with it is meant for the minute's.
    """

    def __init__(
        self, action: Action, code: str, *, billed: Billed, detail: str, retry_after_s: float | None = None
    ) -> None:
        CODES[code]  # an undocumented code fails here, not at the user
        super().__init__(f"{code}: {detail}")
        self.action = action
        self.code = code
        self.billed = billed
        self.detail = detail
        self.retry_after_s = retry_after_s


# FinishReason and BlockedReason of google-genai 3.4.0. What is not named here is "the model could not draw it".
_WITHHELD = {
    "SAFETY", "IMAGE_SAFETY", "PROHIBITED_CONTENT", "IMAGE_PROHIBITED_CONTENT", "SPII", "BLOCKLIST", "MODEL_ARMOR",
    "ESCALATION",
}  # fmt: skip
_RECITED = {"RECITATION", "IMAGE_RECITATION"}
_TRANSIENT = {408, 409, 425, 429}


def read_answer(response: "GenerateContentResponse", *, model_ms: int) -> Answer:
    """The first finished picture of the response. Raises ModelFailure for a refusal, text, or a damaged picture."""
    usage = response.usage_metadata
    input_tokens = (usage.prompt_token_count if usage else 0) or 0
    output_tokens = sum(filter(None, (usage.candidates_token_count, usage.thoughts_token_count))) if usage else 0
    # Never "no": what is known to be free does not count against the cap, and would be asked for again without end.
    billed: Billed = "yes" if input_tokens or output_tokens else "maybe"

    feedback = response.prompt_feedback
    if feedback and feedback.block_reason and feedback.block_reason.value != "BLOCKED_REASON_UNSPECIFIED":
        raise ModelFailure(Action.END, "content_blocked_input", billed="yes", detail=_name(feedback.block_reason.value))
    if not response.candidates:
        raise ModelFailure(Action.AGAIN, "generation_failed", billed=billed, detail="no candidates")
    candidate = response.candidates[0]
    if candidate.finish_reason is None:
        raise ModelFailure(Action.UNKNOWN, "timeout", billed="maybe", detail="the answer has no finish reason")
    reason = _name(candidate.finish_reason.value)
    if reason != "STOP":
        raise _unfinished(reason, billed)

    # A thinking model shows drafts as thoughts, pictures among them; the finished one is not a thought.
    parts = (candidate.content.parts if candidate.content else None) or []
    found = [part.inline_data for part in parts if part.inline_data and not part.thought]
    if not found:
        raise ModelFailure(Action.AGAIN, "no_image", billed=billed, detail=f"{len(parts)} parts without a picture")
    image = found[0].data or b""
    content_type = sniff(image)
    if content_type is None:
        raise ModelFailure(Action.AGAIN, "bad_output", billed="yes", detail=f"{len(image)} bytes are not a picture")
    return Answer(
        image=image,
        content_type=content_type,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        model_ms=model_ms,
        model_version=response.model_version or "",
        response_id=response.response_id or "",
    )


def sniff(image: bytes) -> str | None:
    """The content type by the first bytes, or None unless it is a JPEG, PNG or WebP whose end is there too.

    The model's own label is sometimes wrong. The end is looked for because it costs nothing here, and a full
    decode 10 ms or more: that happens where the thumbnail is made, in a process that can be killed.
    """
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg" if b"\xff\xd9" in image[-64:] else None
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png" if b"IEND" in image[-64:] else None
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp" if len(image) >= int.from_bytes(image[4:8], "little") + 8 else None
    return None


def from_exception(error: Exception) -> ModelFailure:
    """What an exception of the SDK or its transport means. What is not known to be unbilled may have been billed."""
    import aiohttp
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.genai.errors import APIError
    from pydantic import ValidationError

    name = type(error).__name__
    match error:
        case ModelFailure():
            return error
        case APIError():
            return _refused(error)
        case ValidationError():
            return ModelFailure(Action.AGAIN, "bad_output", billed="yes", detail="the answer has not the agreed form")
        case TransportError() | aiohttp.ClientConnectorError() | aiohttp.ClientHttpProxyError():
            return ModelFailure(Action.WAIT, "upstream_unavailable", billed="no", detail=f"no connection: {name}")
        case GoogleAuthError() if error.retryable:
            return ModelFailure(Action.WAIT, "upstream_unavailable", billed="no", detail=f"no credentials yet: {name}")
        case GoogleAuthError() | aiohttp.InvalidURL():
            return ModelFailure(Action.WAIT, "service_config", billed="no", detail=name)
        case TimeoutError():
            return ModelFailure(Action.UNKNOWN, "timeout", billed="maybe", detail=f"no answer in time: {name}")
        case _:
            # Reset, truncated, a 200 that is not JSON, or a bug of the SDK's: the request may have been at work.
            return ModelFailure(Action.UNKNOWN, "timeout", billed="maybe", detail=f"the answer was lost: {name}")


def _unfinished(reason: str, billed: Billed) -> ModelFailure:
    detail = f"finish reason {reason}"
    if reason in _WITHHELD:
        return ModelFailure(Action.END, "content_blocked_output", billed="yes", detail=detail)
    if reason in _RECITED:
        return ModelFailure(Action.END, "content_recitation", billed="yes", detail=detail)
    code = "no_image" if reason == "NO_IMAGE" else "generation_failed"
    return ModelFailure(Action.AGAIN, code, billed=billed, detail=detail)


def _refused(error: "APIError") -> ModelFailure:
    """The row for an HTTP status. Bodies may be JSON, a list of it, or a proxy's HTML; none of their prose is kept."""
    details = list(_details(error.details))
    reasons = {str(detail["reason"]) for detail in details if "reason" in detail}
    quotas = " ".join(
        str(violation.get("quotaId", "")) for detail in details for violation in _mappings(detail.get("violations"))
    )
    wait_s = _retry_after_s(error, details)
    status = f"HTTP {error.code} {_name(error.status)}".strip()

    def waiting(code: str, retry_after_s: float | None = None) -> ModelFailure:
        return ModelFailure(Action.WAIT, code, billed="no", detail=status, retry_after_s=retry_after_s)

    # A wrong key and an account without billing come as 400, yet the user's request is sound
    # (https://ai.google.dev/gemini-api/docs/troubleshooting).
    if error.code in {401, 403} or reasons & {"API_KEY_INVALID"} or error.status == "FAILED_PRECONDITION":
        return waiting("service_config")
    if error.code == 429 and "PerDay" in quotas:
        return waiting("quota_exhausted")
    if error.code == 429 and (wait_s is not None or quotas):
        return waiting("busy", wait_s)
    if error.code in _TRANSIENT or 500 <= error.code < 600:
        return waiting("upstream_unavailable", wait_s)
    if error.code == 404:
        return ModelFailure(Action.END, "model_retired", billed="no", detail=status)
    if 400 <= error.code < 500 and error.code != 499:
        return ModelFailure(Action.END, "invalid_input", billed="no", detail=status)
    # 499 (cancelled under way), or a 2xx or 3xx that the API never sends: who knows what stands behind it.
    return ModelFailure(Action.UNKNOWN, "timeout", billed="maybe", detail=status)


def _details(body: object) -> Iterator[Mapping[str, object]]:
    """The `google.rpc` details of an error body (https://cloud.google.com/apis/design/errors), whatever wraps it."""
    for outer in _mappings(body if isinstance(body, list) else [body]):
        for error in _mappings([outer.get("error", outer)]):
            yield from _mappings(error.get("details"))


def _mappings(value: object) -> Iterator[Mapping[str, object]]:
    yield from (item for item in (value if isinstance(value, list) else ()) if isinstance(item, Mapping))


def _retry_after_s(error: "APIError", details: list[Mapping[str, object]]) -> float | None:
    """Seconds from RetryInfo ("2.5s"), else from the header Retry-After, which the SDK ignores as well."""
    headers = getattr(error.response, "headers", None) or {}
    hints = [str(detail["retryDelay"]) for detail in details if "retryDelay" in detail]
    for hint in [*hints, str(headers.get("Retry-After", ""))]:
        if re.fullmatch(r"\d{1,6}(\.\d{1,9})?s?", hint):
            return float(hint.removesuffix("s"))
    return None


def _name(value: object) -> str:
    """A reason or status if it is one; a proxy may put prose in its place, which must not reach a log."""
    text = str(value or "")
    return text if re.fullmatch(r"[A-Z][A-Z0-9_]{0,60}", text) else ""
