"""The engines that contract tests run on, each behind one Bench; a new engine is added to ENGINES and nowhere else."""

import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import MappingProxyType

import httpx2
from starlette.applications import Starlette
from starlette.routing import Mount

from common.messages import Topic
from common.settings import Settings
from local.engine.dispatcher import PushPolicy, Route
from local.engine.engine import STORAGE_PATH, EmbeddedEngine, open_engine
from local.server import complete
from tests.bench import ALLOWED_ORIGIN, PUSH_PATH, Bench, Clock, Opened, Surroundings
from tests.google.bench import open_google


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
async def open_embedded(around: Surroundings) -> AsyncIterator[EmbeddedBench]:
    """The embedded engine on a folder, with the run's keys: an RSA key takes longer to make than most tests."""
    folder, keys = around.folder, around.shared_folder / "keys"
    keys.mkdir(exist_ok=True)
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


ENGINES: Mapping[str, Callable[[Surroundings], Opened]] = MappingProxyType(
    {"embedded": open_embedded, "google": open_google}
)
