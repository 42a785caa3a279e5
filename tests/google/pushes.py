"""The gate between the Pub/Sub emulator's push subscriptions and a test's apps; it adds what the emulator leaves out.

That is the token of each push and `deliveryAttempt`. The gate lets pushes in only while `deliver` runs, so that
nothing happens between the lines of a test. A push that comes at another time is kept waiting for its answer, and
so is one that comes again before `backoff` was waited out.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from common.messages import Message, Topic
from common.ports import EventBus
from local.engine.asgi import post
from tests.bench import PUSH_PATH
from tests.google.fakes import Fakes
from tests.google.subscriptions import Subscriptions

deliver_s_max = 10.0
# The emulator pushes a second after it was refused.
backoff_s_max = 5.0
# So many threads of the emulator push a subscription's messages.
pushes_at_once = 2
token_life, token_renewed_after = timedelta(hours=1), timedelta(minutes=55)
_first_look_s, _look_s_max = 0.01, 0.2


@dataclass
class _Line:
    """The messages of one topic, as the gate has seen them: all by id."""

    attempts: Counter[str] = field(default_factory=Counter)
    at_gate: set[str] = field(default_factory=set)
    inside: set[str] = field(default_factory=set)
    due: set[str] = field(default_factory=set)

    def is_answered(self, message_id: str) -> bool:
        """Whether its last push was answered, and no other is due."""
        return self.attempts[message_id] > 0 and message_id not in self.inside | self.due


class PushGate:
    """Pushes a project's messages to the apps in `routes`, with the token that `token()` answers."""

    def __init__(self, subscriptions: Subscriptions, routes: Mapping[Topic, ASGIApp], token: Callable[[], str]) -> None:
        self._subscriptions = subscriptions
        self._routes = routes
        self._token = token
        self._lines: dict[Topic, _Line] = {}
        self._making = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._answers = 0
        self._delivering = False
        self._closed = False
        self._config = uvicorn.Config(
            self._receive, interface="asgi3", lifespan="off", log_config=None, access_log=False
        )
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    async def aclose(self) -> None:
        """Remove the subscriptions and turn away whoever waits."""
        await self._subscriptions.aclose()
        self._closed = True
        await self._tell()
        if self._server is not None:
            self._server.close()
            await asyncio.gather(*self._state.tasks, return_exceptions=True)
            for connection in list(self._state.connections):
                connection.shutdown()

    async def make(self, topic: Topic) -> None:
        """Make sure that the topic is there; most tests use one of them, or none."""
        async with self._making:
            if topic in self._lines:
                return
            if self._server is None:
                self._server = await self._listen()
            port = self._server.sockets[0].getsockname()[1]
            await self._subscriptions.create(topic, f"http://127.0.0.1:{port}/{topic}")
            self._lines[topic] = _Line()

    async def publish(self, topic: Topic, data: bytes, attributes: Mapping[str, str]) -> str:
        """Publish as Cloud Storage does its notifications; answers the message's id."""
        await self.make(topic)
        return await self._subscriptions.publish(topic, data, attributes)

    async def deliver(self) -> None:
        """Let pushes in until every message of a topic with a route was answered, and every one that is due again.

        Raises AssertionError if that takes more than 10 s.
        """
        owed: set[tuple[Topic, str]] = set()
        self._delivering = True
        await self._tell()
        try:
            async with asyncio.timeout(deliver_s_max):
                while True:
                    before = self._answers
                    owed = await self._owed()
                    # Whoever answered in the meantime may have published before.
                    if not owed and self._answers == before:
                        return
                    await self._until(partial(self._are_answered, owed), _look_s_max)
        except TimeoutError as exc:
            early = sum(len(line.at_gate) for line in self._lines.values())
            raise AssertionError(
                f"after {deliver_s_max:.0f} s these are still to be answered: {sorted(owed)}; {early} pushes wait at"
                f" the gate for `backoff` or a route, and {pushes_at_once} of a topic keep all its others from coming"
            ) from exc
        finally:
            self._delivering = False

    async def backoff(self) -> None:
        """Wait until the emulator pushes again, or gives up, whatever was answered and not acknowledged.

        Raises AssertionError if that takes more than 5 s.
        """
        try:
            async with asyncio.timeout(backoff_s_max):
                for topic, line in self._lines.items():
                    line.due |= await self._coming_back(topic, line)
        except TimeoutError as exc:
            raise AssertionError(f"after {backoff_s_max:.0f} s the emulator has not pushed again") from exc

    async def dead_letters(self, topic: Topic) -> list[bytes]:
        """The data of the messages that the emulator gave up."""
        return await self._subscriptions.dead_letters(topic) if topic in self._lines else []

    async def _owed(self) -> set[tuple[Topic, str]]:
        topics = [topic for topic in self._lines if topic in self._routes]
        left = await asyncio.gather(*map(self._subscriptions.unacknowledged, topics))
        return {
            (topic, message_id)
            for topic, message_ids in zip(topics, left, strict=True)
            for message_id in message_ids
            if not self._lines[topic].is_answered(message_id)
        }

    def _are_answered(self, messages: set[tuple[Topic, str]]) -> bool:
        return all(self._lines[topic].is_answered(message_id) for topic, message_id in messages)

    async def _coming_back(self, topic: Topic, line: _Line) -> set[str]:
        look_s = _first_look_s
        while True:
            left = await self._subscriptions.unacknowledged(topic)
            coming = {message_id for message_id in left if line.is_answered(message_id)}
            if coming <= line.at_gate or len(line.at_gate) >= pushes_at_once:
                return coming
            # It comes after a second; or the acknowledgement is on its way; or it goes to the dead letters.
            await self._until(partial(coming.issubset, line.at_gate), look_s)
            look_s = min(2 * look_s, _look_s_max)

    async def _receive(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app that the emulator pushes to, one path a topic."""
        topic = Topic(scope["path"].removeprefix("/"))
        push = await Request(scope, receive).json()
        status = await self._pass(topic, self._lines[topic], push)
        if status == 203:
            # The emulator takes it for an acknowledgement, and 202 for none; Pub/Sub does the opposite, and we send
            # neither. https://cloud.google.com/pubsub/docs/push#receive_push
            status = 503
        await Response(status_code=status)(scope, receive, send)

    async def _pass(self, topic: Topic, line: _Line, push: dict[str, Any]) -> int:
        message_id = push["message"]["messageId"]

        def may_enter() -> bool:
            is_its_turn = message_id in line.due or not line.attempts[message_id]
            return self._closed or (self._delivering and topic in self._routes and is_its_turn)

        line.at_gate.add(message_id)
        await self._tell()
        async with self._changed:
            await self._changed.wait_for(may_enter)
        line.at_gate.discard(message_id)
        if self._closed:
            return 503
        line.due.discard(message_id)
        line.attempts[message_id] += 1
        line.inside.add(message_id)
        push["deliveryAttempt"] = line.attempts[message_id]
        try:
            return await self._ask(self._routes[topic], json.dumps(push).encode())
        finally:
            line.inside.discard(message_id)
            self._answers += 1
            await self._tell()

    async def _ask(self, app: ASGIApp, body: bytes) -> int:
        headers = {"authorization": f"Bearer {self._token()}"}
        try:
            async with asyncio.timeout(deliver_s_max):
                status, _ = await post(app, PUSH_PATH, body, headers)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return 500
        except Exception:
            # What a server answers for an app that breaks.
            return 500
        return status

    async def _listen(self) -> asyncio.Server:
        self._config.load()
        # A whole uvicorn.Server takes over the process's signals, and 0.2 s to stop.
        http = partial(H11Protocol, config=self._config, server_state=self._state, app_state={})
        return await asyncio.get_running_loop().create_server(http, "127.0.0.1", 0)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(condition)


class ReadyBus:
    """An engine's bus to which a topic is made before the first fact goes there, as Terraform does."""

    def __init__(self, bus: EventBus, gate: PushGate) -> None:
        self._bus = bus
        self._gate = gate

    async def publish(self, topic: Topic, message: Message, *, event_id: str | None = None) -> str:
        """See EventBus.publish."""
        await self._gate.make(topic)
        return await self._bus.publish(topic, message, event_id=event_id)


class PushTokens:
    """The token of a subscription: one for nearly an hour of the test's time, as Pub/Sub's are."""

    def __init__(self, fakes: Fakes, now: Callable[[], datetime], claims: Mapping[str, object]) -> None:
        self._fakes = fakes
        self._now = now
        self._claims = claims
        self._token = ""
        self._minted_at: datetime | None = None

    def token(self) -> str:
        """A token that is good at present."""
        now = self._now()
        if self._minted_at is None or not self._minted_at <= now <= self._minted_at + token_renewed_after:
            times = {"iat": int(now.timestamp()), "exp": int((now + token_life).timestamp())}
            self._token = self._fakes.mint_push_token({**self._claims, **times})
            self._minted_at = now
        return self._token
