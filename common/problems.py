"""Errors as application/problem+json (RFC 9457), the same for every app; no routes live here."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from common.errors import CODES, DarkroomError, Rejected
from common.request_id import HEADER, request_id
from common.telemetry import logger

log = logger(__name__)

M = TypeVar("M", bound=BaseModel)

fields_max = 20
_name_chars_max = 80
_BY_STATUS = {
    400: "malformed_request",
    401: "unauthenticated",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}


class Misfit(Rejected):
    """What the caller sent does not fit its model; `error` names the fields.

    A ValidationError by itself says nothing about who is wrong: a record of ours may not fit either.
    """

    def __init__(self, error: ValidationError) -> None:
        super().__init__("invalid_request")
        self.error = error


def parse(kind: type[M], sent: object) -> M:
    """What a caller sent, as its model. Raises Misfit. For callers' words only, never for what we stored."""
    try:
        return kind.model_validate(sent)
    except ValidationError as exc:
        raise Misfit(exc) from exc


def problem(code: str, detail: str = "", *, headers: dict[str, str] | None = None, **extra: Any) -> Response:
    """The answer for a code: title, status and advice from the table, `detail` for this case.

    Raises KeyError for a code that only ends jobs: to answer a request with it is a bug.
    """
    entry = CODES[code]
    if entry.status is None:
        raise KeyError(f"{code} ends a job and has no HTTP status")
    body = {
        "type": f"urn:darkroom:error:{code}",
        "title": entry.title,
        "status": entry.status,
        "detail": detail or entry.title,
        "code": code,
        "advice": entry.advice,
        "retryable": entry.retryable,
        **extra,
    }
    return JSONResponse(body, entry.status, headers=headers, media_type="application/problem+json")


def invalid(error: ValidationError) -> Response:
    """The answer for a body that does not fit its model; wrong fields are named, their values are not repeated.

    Names are the caller's too: the first 20 are told, cut short, and how many there are besides.
    """
    listed = error.errors(include_input=False, include_url=False, include_context=False)
    fields = [{"field": _name(e["loc"]), "message": e["msg"]} for e in listed[:fields_max]]
    told = [f"{f['field']}: {f['message']}" for f in fields[:3]]
    if len(listed) > len(told):
        told.append(f"and {len(listed) - len(told):,} more")
    extra: dict[str, Any] = {"errors": fields}
    if len(listed) > fields_max:
        extra["errors_omitted"] = len(listed) - fields_max
    return problem("invalid_request", "; ".join(told), **extra)


async def on_error(request: Request, error: Exception) -> Response:
    """Answers every error of the tree by its code; a bug is logged whole and answered without a word about it."""
    if isinstance(error, Misfit):
        return invalid(error.error)
    if isinstance(error, DarkroomError):
        status = error.entry.status
        headers = {"retry-after": "5"} if status == 503 else None
        if error.code == "unauthenticated":
            headers = {"www-authenticate": "Bearer"}
        return problem(error.code, error.detail, headers=headers, **(_traced(request) if status == 500 else {}))
    if isinstance(error, ClientDisconnect):
        log.info("request.abandoned", extra={"method": request.method, "path": request.url.path, **_traced(request)})
        return problem("malformed_request", "the caller left before the body was complete")
    if isinstance(error, HTTPException):
        code = _BY_STATUS.get(error.status_code, "internal")
        return problem(code, headers=dict(error.headers or {}))
    traced = _traced(request)
    log.error("request.crashed", exc_info=error, extra={"method": request.method, "path": request.url.path, **traced})
    # Starlette answers bugs outside of all middleware, so the header is set here.
    headers = {HEADER: traced["request_id"]} if traced else None
    return problem("internal", headers=headers, **traced)


HANDLERS: dict[Any, Any] = dict.fromkeys((DarkroomError, HTTPException, ClientDisconnect, Exception), on_error)


async def read_body(request: Request, *, bytes_max: int) -> bytes:
    """The request's body, or Rejected("body_too_large") as soon as more than `bytes_max` is announced or read.

    Raises ClientDisconnect if the caller leaves before the end.
    """
    declared = request.headers.get("content-length", "")
    # The length comes first: int() refuses thousands of digits.
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > bytes_max):
        raise Rejected("body_too_large", f"the body may have {bytes_max:,} bytes")
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > bytes_max:
            raise Rejected("body_too_large", f"the body may have {bytes_max:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _traced(request: Request) -> dict[str, str]:
    found = request_id(request)
    return {} if found is None else {"request_id": found}


def _name(place: tuple[int | str, ...]) -> str:
    name = ".".join(map(str, place)) or "body"
    return name if len(name) <= _name_chars_max else f"{name[: _name_chars_max - 1]}…"
