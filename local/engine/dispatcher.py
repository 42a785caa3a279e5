"""Pushes messages to the apps' routes as Pub/Sub does: envelope, signed token, backoff, dead letters."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

from starlette.types import ASGIApp

from common.errors import DarkroomError
from common.messages import Topic
from common.telemetry import follow_trace, logger
from local.engine.asgi import post
from local.engine.bus import Envelope, SqliteBus
from local.engine.push_tokens import PushTokens

log = logger(__name__)

# https://cloud.google.com/pubsub/docs/push#receive_push lists these as acknowledgements. 202 is one of
# Pub/Sub's too, but the official emulator redelivers it, so we never send it and do not take it.
ACKNOWLEDGED = frozenset({102, 200, 201, 204})
error_chars_max = 500


@dataclass(frozen=True, slots=True)
class PushPolicy:
    """How Pub/Sub would be configured: seconds, attempts, and deliberate mischief.

    `duplicate_rate` is the share of messages pushed twice at once.
    """

    attempts_max: int = 100
    backoff_min_s: float = 10.0
    backoff_max_s: float = 600.0
    ack_deadline_s: float = 600.0
    duplicate_rate: float = 0.0
    # A second process (`darkroom deadletters replay`) may queue messages without waking us.
    poll_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """Where a topic's messages go: an app and a path in it, and how many at once (Cloud Run's concurrency)."""

    app: ASGIApp
    path: str
    window: int = 64


class Dispatcher:
    """At least once, no order promised. Killed at any moment, it starts over with what was not acknowledged.

    What was in flight then is pushed again without counting as an attempt.
    """

    def __init__(
        self,
        bus: SqliteBus,
        routes: Mapping[Topic, Route],
        tokens: PushTokens,
        now: Callable[[], datetime],
        random: Random,
        policy: PushPolicy,
    ) -> None:
        self._bus = bus
        self._routes = routes
        self._tokens = tokens
        self._now = now
        self._random = random
        self._policy = policy
        self._in_flight: dict[int, Topic] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Push until cancelled; `aclose` ends what is in flight then."""
        topics: Set[Topic] = self._routes.keys()
        look_at = self._now()
        while True:
            if self._now() >= look_at:
                topics = self._routes.keys()
                look_at = self._now() + timedelta(seconds=self._policy.poll_s)
            soonest = await self._start_due(topics)
            look_at = min(look_at, soonest or look_at)
            topics = await self._bus.noticed(wait_s=max(0.0, (look_at - self._now()).total_seconds()))

    async def aclose(self, *, grace_s: float = 0.0) -> None:
        """Push nothing new, and give what is in flight `grace_s` to end: a call to the model may be under way.

        What is cut off then is pushed again when the folder is opened next.
        """
        if self._tasks and grace_s:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def drain(self) -> int:
        """Push until nothing is due at the present time; answers how many deliveries were tried. For tests."""
        before = tried = 0
        while True:
            await self._start_due(self._routes.keys())
            if not self._tasks:
                return tried
            before = len(self._tasks)
            await asyncio.wait(self._tasks)
            tried += before

    async def _start_due(self, topics: Set[Topic]) -> datetime | None:
        busy = Counter(self._in_flight.values())
        routed = [(topic, self._routes[topic].window) for topic in topics & self._routes.keys()]
        free = {topic: window - busy[topic] for topic, window in routed if busy[topic] < window}
        try:
            envelopes, soonest = await self._bus.due(free, frozenset(self._in_flight))
        except DarkroomError as exc:
            log.error("bus.unreadable", extra={"code": exc.code, "detail": exc.detail})
            return None
        for envelope in envelopes:
            self._in_flight[envelope.id] = envelope.topic
            task = asyncio.create_task(self._deliver(envelope))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return soonest

    async def _deliver(self, envelope: Envelope) -> None:
        follow_trace(envelope.attributes.get("traceparent", ""))
        copies = 2 if self._random.random() < self._policy.duplicate_rate else 1
        try:
            errors = await asyncio.gather(*(self._push(envelope) for _ in range(copies)))
            error = next((e for e in errors if e is not None), None)
            if error is None:
                await self._bus.acknowledge(envelope.id)
            elif envelope.attempt >= self._policy.attempts_max:
                await self._bus.bury(envelope.id, error=error)
                log.error("bus.dead_letter", extra={"topic": envelope.topic, "message_id": envelope.id, "error": error})
            else:
                await self._bus.retry(envelope.id, delay_s=self._backoff_s(envelope.attempt), error=error)
                self._bus.notice(envelope.topic)
        except DarkroomError as exc:
            # The answer could not be written down, so the message is simply pushed again.
            log.error("bus.unwritable", extra={"message_id": envelope.id, "code": exc.code, "detail": exc.detail})
            await asyncio.sleep(self._policy.poll_s)
            self._bus.notice(envelope.topic)
        finally:
            if Counter(self._in_flight.values())[envelope.topic] >= self._routes[envelope.topic].window:
                self._bus.notice(envelope.topic)
            del self._in_flight[envelope.id]

    async def _push(self, envelope: Envelope) -> str | None:
        body = {
            "message": {
                "data": base64.b64encode(envelope.data).decode(),
                "attributes": dict(envelope.attributes),
                "messageId": str(envelope.id),
                "publishTime": envelope.published_at.isoformat(),
            },
            "subscription": f"projects/local/subscriptions/{envelope.topic}",
            "deliveryAttempt": envelope.attempt,
        }
        headers = {"authorization": f"Bearer {self._tokens.mint()}"}
        try:
            async with asyncio.timeout(self._policy.ack_deadline_s):
                route = self._routes[envelope.topic]
                status, answer = await post(route.app, route.path, json.dumps(body).encode(), headers)
        except TimeoutError:
            return f"no answer within {self._policy.ack_deadline_s:.0f} s"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not ours: something the handler waited for was cancelled under it.
            return "the app gave up the request"
        except Exception as exc:
            # An app that ends without an answer. Whatever it is, it counts as an attempt and is tried later.
            return f"the app broke: {type(exc).__name__}"
        if status in ACKNOWLEDGED:
            return None
        return f"{status} {answer.decode(errors='replace')[:error_chars_max]}"

    def _backoff_s(self, attempt: int) -> float:
        """Doubling with full jitter above the minimum: neighbours that failed together do not return together."""
        low, high = self._policy.backoff_min_s, self._policy.backoff_max_s
        ceiling = min(high, low * 2 ** min(attempt, 30))
        return self._random.uniform(low, max(low, ceiling))
