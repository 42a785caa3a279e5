"""A webhook receiver as an app would write one: it believes nothing that is not signed with its secret."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from local.run import on_loopback

body_bytes_max = 256 * 1024


@dataclass(frozen=True, slots=True)
class Notice:
    """A webhook whose signature was right, and when it came."""

    event_id: str
    kind: str
    at: datetime


class Receiver:
    """Keeps the first sound webhook. Set `secret` before any can come; what is not signed with it gets a 400."""

    def __init__(self) -> None:
        self.url = ""
        self.secret: str | None = None
        self.refused = 0
        self._notice: asyncio.Future[Notice] = asyncio.get_running_loop().create_future()

    async def wait(self, timeout_s: float) -> Notice | None:
        """The notice, or None if none came in that time."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._notice), timeout_s)
        except TimeoutError:
            return None

    async def take(self, request: Request) -> Response:
        """POST /webhook, by https://www.standardwebhooks.com: 204, also for repetitions, or 400."""
        from standardwebhooks import Webhook, WebhookVerificationError

        at = datetime.now(UTC)
        body = await request.body()
        try:
            event = Webhook(self.secret or "").verify(body, dict(request.headers))
        except (WebhookVerificationError, ValueError, RuntimeError):
            self.refused += 1
            return Response(status_code=400)
        if not self._notice.done():
            self._notice.set_result(Notice(request.headers["webhook-id"], str(event["type"]), at))
        return Response(status_code=204)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on a free loopback port for as long as the context is open."""
    receiver = Receiver()
    async with on_loopback(Starlette(routes=[Route("/webhook", receiver.take, methods=["POST"])])) as url:
        receiver.url = f"{url}/webhook"
        yield receiver
