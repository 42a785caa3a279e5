"""A subscriber for tests: an app that keeps what the bus pushes and answers as it is told."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.messages import Message, Topic
from tests.bench import Bench


@dataclass(frozen=True, slots=True)
class Push:
    """One push as it came in."""

    envelope: dict[str, Any]
    headers: dict[str, str]
    path: str

    @property
    def data(self) -> bytes:
        return base64.b64decode(self.envelope["message"]["data"], validate=True)

    @property
    def attributes(self) -> dict[str, str]:
        attributes: dict[str, str] = self.envelope["message"]["attributes"]
        return attributes

    @property
    def message_id(self) -> str:
        message_id: str = self.envelope["message"]["messageId"]
        return message_id


class Subscriber:
    """Answers with `statuses` one after the other, the last one for good."""

    def __init__(self, bench: Bench, topic: Topic, statuses: Sequence[int] = (204,)) -> None:
        self.pushes: list[Push] = []
        self.statuses = list(statuses)
        self._bench = bench
        bench.routes[topic] = self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        self.pushes.append(Push(await request.json(), dict(request.headers), request.url.path))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        await Response(f"answer {status}" if status != 204 else None, status)(scope, receive, send)

    async def hear(self) -> list[Push]:
        """What came in since the last time, after the bus has pushed what is due now."""
        await self._bench.deliver()
        heard, self.pushes = self.pushes, []
        return heard

    async def read(self, kind: type[Message]) -> list[Message]:
        """The same as facts."""
        return [kind.model_validate_json(push.data) for push in await self.hear()]
