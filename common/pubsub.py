"""What travels beside a fact, and a push from the bus: envelope in, acknowledgement out.

What a message means is its handler's business.
"""

import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.auth import Pushes
from common.errors import Deferred, Rejected, Retryable
from common.messages import Message
from common.problems import problem, read_body
from common.telemetry import follow_trace, logger, traceparent

log = logger(__name__)

M = TypeVar("M", bound=Message)
# Ours are below 4 KB; Cloud Storage's carry up to 8 KB of custom metadata.
push_bytes_max = 256 * 1024


class PushedMessage(BaseModel):
    """https://cloud.google.com/pubsub/docs/push#receive_push"""

    data: str = ""
    attributes: dict[str, str] = Field(default_factory=dict)
    messageId: str = ""  # noqa: N815 - Pub/Sub's spelling


class Push(BaseModel):
    """The body that Pub/Sub posts. `deliveryAttempt` comes only with a dead-letter policy."""

    message: PushedMessage
    subscription: str = ""
    deliveryAttempt: int | None = None  # noqa: N815 - Pub/Sub's spelling


def message_attributes(event_id: str | None) -> dict[str, str]:
    """What a bus puts beside the fact it publishes: its trace, and the id of the event it tells, if it tells one."""
    return {"traceparent": traceparent()} | ({} if event_id is None else {"event_id": event_id})


def push_route(path: str, kind: type[M], handle: Callable[[M], Awaitable[None]], pushes: Pushes) -> Route:
    """A POST route that authenticates, opens the envelope, handles the fact, and answers by the design's table.

    204: done, Rejected or Deferred. 503: Retryable. 400: malformed. 401: not our bus. 500: a bug.
    """

    async def receive(request: Request) -> Response:
        _follow(request)
        await pushes.check(request)
        try:
            push = Push.model_validate_json(await read_body(request, bytes_max=push_bytes_max))
            fact = kind.model_validate_json(base64.b64decode(push.message.data, validate=True))
        except (ValidationError, binascii.Error) as exc:
            log.error("push.malformed", extra={"path": path, "reason": type(exc).__name__})
            return problem("malformed_request", "the push is not the envelope or the fact of this route")
        follow_trace(push.message.attributes.get("traceparent", ""), traceparent())
        if push.message.attributes.get("eventType", "OBJECT_FINALIZE") != "OBJECT_FINALIZE":
            log.info("push.ignored", extra={"path": path, "event_type": push.message.attributes["eventType"]})
            return Response(status_code=204)
        fields = {"path": path, "message_id": push.message.messageId, "attempt": push.deliveryAttempt}
        try:
            await handle(fact)
        except Rejected as exc:
            log.warning("push.rejected", extra={**fields, "code": exc.code, "detail": exc.detail})
        except Deferred as exc:
            log.info("push.deferred", extra={**fields, "code": exc.code, "wake_at": exc.wake_at.isoformat()})
        except Retryable as exc:
            log.warning("push.retried", extra={**fields, "code": exc.code, "detail": exc.detail})
            return problem("unavailable", exc.detail)
        return Response(status_code=204)

    return Route(path, receive, methods=["POST"])


def sweep_route(sweep: Callable[[], Awaitable[int]], pushes: Pushes) -> Route:
    """`POST /tasks/sweep`: one round of finding what never came; answers 204."""

    async def receive(request: Request) -> Response:
        _follow(request)
        await pushes.check(request)
        await sweep()
        return Response(status_code=204)

    return Route("/tasks/sweep", receive, methods=["POST"])


def _follow(request: Request) -> None:
    follow_trace(",".join(request.headers.getlist("traceparent")))
