"""One id for each request, in its answer, in the log of a bug and in the problem document; and its trace."""

import re
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.telemetry import follow_trace

HEADER = "x-request-id"
# What a caller sends is repeated in logs and headers, so only what can do no harm there is taken over.
_SANE = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RequestIds:
    """Middleware: takes the caller's `X-Request-Id` if it is sane, else makes one, and sends it back.

    The caller's `traceparent` is joined, if it sends exactly one.
    """

    def __init__(self, app: ASGIApp, *, new_id: Callable[[], str]) -> None:
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; every answer of the app within carries the id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        follow_trace(",".join(headers.getlist("traceparent")))
        given = headers.get(HEADER, "")
        chosen = given if _SANE.fullmatch(given) else self._new_id()
        scope.setdefault("state", {})["request_id"] = chosen

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = chosen
            await send(message)

        await self._app(scope, receive, send_named)


def request_id(request: Request) -> str | None:
    """The request's id, or None in an app without the middleware."""
    found: str | None = getattr(request.state, "request_id", None)
    return found
