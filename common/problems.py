"""Errors as application/problem+json (RFC 9457), the same for every app; no routes live here."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from common.errors import CODES, DarkroomError, Rejected
from common.telemetry import logger

log = logger(__name__)

_BY_STATUS = {
    400: "malformed_request",
    401: "unauthenticated",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}


def problem(code: str, detail: str = "", *, headers: dict[str, str] | None = None, **extra: Any) -> Response:
    """The answer for a code: title, status and advice from the table, `detail` for this case."""
    entry = CODES[code]
    status = entry.status or HTTPStatus.UNPROCESSABLE_ENTITY
    body = {
        "type": f"urn:darkroom:error:{code}",
        "title": entry.title,
        "status": status,
        "detail": detail or entry.title,
        "code": code,
        "advice": entry.advice,
        "retryable": entry.retryable,
        **extra,
    }
    return JSONResponse(body, status, headers=headers, media_type="application/problem+json")


def invalid(error: ValidationError) -> Response:
    """The answer for a body that does not fit its model; each wrong field is named, its value is not repeated."""
    listed = error.errors(include_input=False, include_url=False, include_context=False)
    fields = [{"field": ".".join(map(str, e["loc"])) or "body", "message": e["msg"]} for e in listed]
    detail = "; ".join(f"{f['field']}: {f['message']}" for f in fields[:3])
    return problem("invalid_request", detail, errors=fields)


async def on_error(request: Request, error: Exception) -> Response:
    """Answers every error of the tree by its code; a bug is logged whole and answered without a word about it."""
    if isinstance(error, ValidationError):
        return invalid(error)
    if isinstance(error, DarkroomError):
        headers = {"retry-after": "5"} if CODES[error.code].status == 503 else None
        if error.code == "unauthenticated":
            headers = {"www-authenticate": "Bearer"}
        return problem(error.code, error.detail, headers=headers)
    if isinstance(error, HTTPException):
        code = _BY_STATUS.get(error.status_code, "internal")
        return problem(code, headers=dict(error.headers or {}))
    log.error("request.crashed", exc_info=error, extra={"method": request.method, "path": request.url.path})
    return problem("internal")


HANDLERS: dict[Any, Any] = dict.fromkeys((DarkroomError, HTTPException, ValidationError, Exception), on_error)


async def read_body(request: Request, *, bytes_max: int) -> bytes:
    """The request's body, or Rejected("body_too_large") as soon as more than `bytes_max` is announced or read."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > bytes_max:
        raise Rejected("body_too_large", f"the body may have {bytes_max:,} bytes")
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > bytes_max:
            raise Rejected("body_too_large", f"the body may have {bytes_max:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def one_of(choices: Sequence[str]) -> str:
    """A list for a person: `a, b or c`."""
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
