"""The cloud engine behind a Bench: Google's emulators, the storage front, and pushes over loopback."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from random import Random

import h11
import httpx2

from common.google.engine import open_engine
from common.messages import Topic
from common.settings import Settings
from tests.bench import ALLOWED_ORIGIN, Bench, Clock, Surroundings
from tests.google.front import BUCKETS, Front, storage_front
from tests.google.pushes import PushGate, PushTokens, ReadyBus
from tests.google.subscriptions import Subscriptions, attempts_max

PUSH_AUDIENCE = "darkroom-test"
PUSH_EMAIL = "push@test.iam.gserviceaccount.com"


class _Wire(httpx2.AsyncBaseTransport):
    """The network, but for requests that an HTTP client refuses to write down: those go straight to the front."""

    def __init__(self, front: Front) -> None:
        self._network = httpx2.AsyncHTTPTransport(verify=False)
        self._front = httpx2.ASGITransport(app=front.app)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await self._network.handle_async_request(request)
        except (httpx2.LocalProtocolError, h11.LocalProtocolError):
            return await self._front.handle_async_request(request)

    async def aclose(self) -> None:
        await self._network.aclose()


class GoogleBench(Bench):
    """The cloud engine in a project of its own on the run's emulators."""

    # The emulator's own: a second, always.
    backoff_s_max = 1.0
    attempts_max = attempts_max

    def __init__(self, around: Surroundings) -> None:
        super().__init__()
        emulators = around.emulators()
        self.fakes = around.fakes()
        self.clock = Clock()
        self.project = f"test-{secrets.token_hex(4)}"
        claims = {"aud": PUSH_AUDIENCE, "email": PUSH_EMAIL, "email_verified": True}
        tokens = PushTokens(self.fakes, self.clock, claims)
        # Like the project it stays when the engine is opened anew.
        self.gate = PushGate(Subscriptions(emulators.pubsub_host, self.project), self.routes, tokens.token)
        self._stack = AsyncExitStack()
        self._stack.push_async_callback(self.gate.aclose)
        self._front: Front | None = None

    async def open(self) -> None:
        if self._front is None:
            # It keeps the objects, so it stays while the engine is reopened.
            self._loop = asyncio.get_running_loop()
            front = storage_front(
                self.project,
                buckets=(*BUCKETS, "elsewhere"),
                anonymous=False,
                now=self.clock,
                publish=self._announce,
            )
            self._front = await self._stack.enter_async_context(front)
        self.settings = Settings(
            google_cloud_project=self.project,
            storage_url=self._front.url,
            iam_credentials_url=self.fakes.settings["iam_credentials_url"],
            public_url="http://127.0.0.1:8080",
            cors_origins=(ALLOWED_ORIGIN,),
            local_owner="local:me",
            push_auth="oidc",
            push_audience=PUSH_AUDIENCE,
            push_email=PUSH_EMAIL,
            push_certs_url=self.fakes.settings["push_certs_url"],
        )
        engine = open_engine(self.settings, now=self.clock, random=Random(1))
        self.engine = replace(engine, bus=ReadyBus(engine.bus, self.gate))
        self.http = httpx2.AsyncClient(transport=_Wire(self._front))

    async def close(self) -> None:
        await self.http.aclose()
        await self.engine.aclose()

    async def end(self) -> None:
        """Close what a closed engine leaves open, for good."""
        await self._stack.aclose()

    async def later(self, seconds: float) -> None:
        self.clock.advance(seconds)
        if seconds >= self.backoff_s_max:
            # No clock of ours rules the emulator.
            await self.gate.backoff()

    async def deliver(self) -> None:
        await self.gate.deliver()

    async def dead_letters(self, topic: Topic) -> list[bytes]:
        return await self.gate.dead_letters(topic)

    async def reopen(self) -> None:
        await self.close()
        await self.open()

    async def _announce(self, data: bytes, attributes: Mapping[str, str]) -> None:
        # The front has a thread of its own, and the gate's loop is the test's.
        publishing = self.gate.publish(Topic.UPLOAD_FINALIZED, data, attributes)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(publishing, self._loop))


@asynccontextmanager
async def open_google(around: Surroundings) -> AsyncIterator[GoogleBench]:
    """The cloud engine, opened."""
    bench = GoogleBench(around)
    try:
        await bench.open()
        try:
            yield bench
        finally:
            await bench.close()
    finally:
        await bench.end()
