"""The only guard of a server without sign-in: requests must come from this machine, by its own name."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from common.loopback import LOOPBACK
from common.problems import problem


class LoopbackOnly:
    """Refuses a foreign Host (DNS rebinding) and a foreign web page's Origin (cross-site requests) with 403."""

    def __init__(self, app: ASGIApp, *, origins: tuple[str, ...]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        host = headers.get("host", "")
        if _host(f"//{host}") not in LOOPBACK:
            await problem("host_refused", "this server answers only to 127.0.0.1 and localhost")(scope, receive, send)
        elif origin is not None and origin not in self._origins and _host(origin) not in LOOPBACK:
            await problem("origin_refused", "only pages of this machine may call this server")(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
