"""The engines that contract tests run on, each behind one Bench; a new engine is added to ENGINES and nowhere else."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import MappingProxyType

import httpx2
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from common.messages import Topic
from common.ports import Engine
from common.settings import Settings
from local.engine.dispatcher import PushPolicy, Route
from local.engine.engine import STORAGE_PATH, EmbeddedEngine, open_engine
from local.server import complete

ALLOWED_ORIGIN = "https://app.example.com"
PUSH_PATH = "/push"


class Bench(ABC):
    """An engine, and what a test needs around it: time, the way in for signed URLs, and the bus at work.

    `routes` says which app gets a topic's pushes, at PUSH_PATH. `backoff_s_max` is the longest the bus waits
    before it pushes again, `attempts_max` how often it pushes before it gives up.
    """

    engine: Engine
    settings: Settings
    http: httpx2.AsyncClient
    backoff_s_max: float
    attempts_max: int

    def __init__(self) -> None:
        self.routes: dict[Topic, ASGIApp] = {}

    @abstractmethod
    async def later(self, seconds: float) -> None:
        """Let so much time pass for signed URLs and for the bus's backoff; negative: whoever signed was ahead."""

    @abstractmethod
    async def deliver(self) -> None:
        """Let the bus push until nothing is due."""

    @abstractmethod
    async def dead_letters(self, topic: Topic) -> list[bytes]:
        """The data of the topic's messages that the bus gave up."""

    @abstractmethod
    async def reopen(self) -> None:
        """Close the engine, then open it on what it has kept."""


class Clock:
    """Time as tests tell it. Each reading is a millisecond after the last, as if something had been done between.

    It starts at the present, because third parties' libraries check signed tokens by the wall clock.
    """

    def __init__(self) -> None:
        self._now = datetime.now(UTC)

    def __call__(self) -> datetime:
        self._now += timedelta(milliseconds=1)
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


class EmbeddedBench(Bench):
    """The embedded engine on a folder, under a Clock."""

    backoff_s_max = 600.0
    attempts_max = 5

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.clock = Clock()
        self._folder = folder

    async def open(self) -> None:
        configured = Settings(
            public_url="http://127.0.0.1:8080", cors_origins=(ALLOWED_ORIGIN,), local_owner="local:me"
        )
        self.settings = complete(configured, self._folder)
        self.embedded: EmbeddedEngine = await open_engine(self._folder, self.settings, now=self.clock, random=Random(1))
        self.engine = self.embedded.engine
        app = Starlette(routes=[Mount(STORAGE_PATH, self.embedded.storage_app)])
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app))

    async def close(self) -> None:
        await self.http.aclose()
        await self.engine.aclose()

    async def later(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def deliver(self) -> None:
        policy = PushPolicy(attempts_max=self.attempts_max)
        routes = {topic: Route(app, PUSH_PATH) for topic, app in self.routes.items()}
        dispatcher = self.embedded.dispatcher(routes, policy)
        try:
            await dispatcher.drain()
        finally:
            await dispatcher.aclose()

    async def dead_letters(self, topic: Topic) -> list[bytes]:
        return [letter.data for letter in await self.embedded.bus.dead_letters() if letter.topic is topic]

    async def reopen(self) -> None:
        await self.close()
        await self.open()


@asynccontextmanager
async def open_embedded(folder: Path, keys: Path) -> AsyncIterator[EmbeddedBench]:
    """The embedded engine on `folder`, with copies of `keys`: an RSA key takes longer to make than most tests."""
    _copy(keys, folder / "keys")
    bench = EmbeddedBench(folder)
    await bench.open()
    _copy(folder / "keys", keys)
    try:
        yield bench
    finally:
        await bench.close()


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


Opened = AbstractAsyncContextManager[Bench]

ENGINES: Mapping[str, Callable[[Path, Path], Opened]] = MappingProxyType({"embedded": open_embedded})
"""By name: (empty folder for this test, folder shared by the run) -> the engine, opened."""
