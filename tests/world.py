"""The whole pipeline on the embedded engine under a clock that tests move; nothing is mocked, nothing sleeps."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
from PIL import Image
from starlette.applications import Starlette

from common.clock import new_id
from common.job import Job
from common.messages import Topic
from common.ports import Engine, Stored
from common.records import Work
from common.settings import Settings
from local.engine.dispatcher import Dispatcher, PushPolicy
from local.engine.engine import EmbeddedEngine, open_engine
from local.engine.push_tokens import PushTokens
from local.server import complete, private_apps, public_app, push_routes

JsonObject = dict[str, Any]


@dataclass
class Clock:
    """Starts at the present, because signed tokens are checked by libraries too; moves only when told."""

    moment: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@dataclass
class World:
    """All apps on one data folder; `api` speaks to the public one, `dispatcher.drain()` lets the bus work."""

    embedded: EmbeddedEngine
    settings: Settings
    clock: Clock
    dispatcher: Dispatcher
    private: tuple[Starlette, Starlette, Starlette]
    api: httpx2.AsyncClient
    stand_in_url: str
    folder: Path
    wake: Callable[[], Awaitable[None]]

    @property
    def engine(self) -> Engine:
        return self.embedded.engine

    async def create(self, **wishes: Any) -> JsonObject:
        """A job that must be accepted."""
        answer = await self.api.post("/v1/jobs", json=wishes)
        assert answer.status_code == 201, answer.text
        job: JsonObject = answer.json()
        return job

    async def upload(self, job: JsonObject, photo: bytes) -> httpx2.Response:
        """Send the photo exactly as the job says."""
        upload = job["upload"]
        return await self.api.put(upload["url"], headers=upload["headers"], content=photo)

    async def job(self, job_id: str) -> JsonObject:
        """The job as its owner sees it."""
        answer = await self.api.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job: JsonObject = answer.json()
        return job

    async def work(self, job_id: str) -> Work:
        """The job's private record."""
        stored: Stored[Work] | None = await self.engine.store.get(Work, job_id)
        assert stored is not None
        return stored.record

    async def stored(self, job_id: str) -> Stored[Job]:
        """The job as stored."""
        stored = await self.engine.store.get(Job, job_id)
        assert stored is not None
        return stored

    async def run(self) -> None:
        """Let the bus deliver until nothing is due at this moment."""
        await self.wake()
        await self.dispatcher.drain()

    async def run_only(self, topic: Topic) -> None:
        """Let the bus deliver what is due on one topic."""
        await self.wake()
        only = {topic: push_routes(*self.private)[topic]}
        dispatcher = self.embedded.dispatcher(only, PushPolicy())
        await dispatcher.drain()
        await dispatcher.aclose()

    async def sweep(self) -> None:
        """One round of every app's sweep, then let the bus deliver."""
        await self.sweep_only()
        await self.run()

    async def sweep_only(self) -> None:
        """One round of every app's sweep, through its route."""
        await self.wake()
        for app in self.private:
            transport = httpx2.ASGITransport(app=app)
            async with httpx2.AsyncClient(transport=transport, base_url="https://push.local") as client:
                token = self.embedded.tokens.mint()
                answer = await client.post("/tasks/sweep", headers={"authorization": f"Bearer {token}"})
                assert answer.status_code == 204, answer.text

    async def later(self, seconds: float) -> None:
        """Let time pass, and everything that was waiting for it happen."""
        self.clock.advance(seconds)
        await self.sweep()

    async def portrait(self, photo: bytes | None = None, **wishes: Any) -> JsonObject:
        """A portrait job with its photo uploaded; the bus has not run yet."""
        job = await self.create(**wishes)
        answer = await self.upload(job, jpeg() if photo is None else photo)
        assert answer.status_code == 200, answer.text
        return job

    def mood(self, mood: str, **more: Any) -> None:
        """How the model answers from now on; `count` limits it to so many answers."""
        httpx2.put(f"{self.stand_in_url}/standin/mood", json={"mood": mood, **more}).raise_for_status()

    def asked(self) -> int:
        """How many calls the model has got since it was started."""
        calls: int = httpx2.get(f"{self.stand_in_url}/standin/stats").json()["calls"]
        return calls


@asynccontextmanager
async def open_world(
    folder: Path,
    stand_in_url: str,
    *,
    policy: PushPolicy | None = None,
    clock: Clock | None = None,
    wrap: Callable[[Engine], Engine] | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """A world on `folder`; open it again on the same folder to see what survives.

    `wrap` may put something between the apps and the engine, to break it.
    """
    clock = clock or Clock()
    wanted: dict[str, Any] = {
        "local_owner": "local:me",
        "webhook_loopback": True,
        "stand_in": True,
        "gemini_api_key": "stand-in",
        "gemini_base_url": stand_in_url,
        "public_url": "http://127.0.0.1",
        "image_workers": 1,
    }
    _reuse_key(folder / "keys" / "push.pem")
    configured = complete(Settings(**(wanted | settings)), folder)
    random = Random(7)
    async with AsyncExitStack() as stack:
        embedded = await open_engine(folder, configured, now=clock, ids=new_id, random=random)
        stack.push_async_callback(embedded.engine.aclose)
        if wrap is not None:
            embedded = replace(embedded, engine=wrap(embedded.engine))
        private = private_apps(embedded.engine, configured)
        asleep = list(private)

        async def wake() -> None:
            # Their worker processes take longer to start than most tests of the public apps.
            while asleep:
                app = asleep.pop()
                await stack.enter_async_context(app.router.lifespan_context(app))

        dispatcher = embedded.dispatcher(push_routes(*private), policy or PushPolicy())
        stack.push_async_callback(dispatcher.aclose)
        transport = httpx2.ASGITransport(app=public_app(embedded.engine, configured, embedded.storage_app))
        api = await stack.enter_async_context(
            httpx2.AsyncClient(transport=transport, base_url=configured.api_url, timeout=None)
        )
        yield World(embedded, configured, clock, dispatcher, private, api, stand_in_url, folder, wake)


@cache
def _push_key() -> bytes:
    """One RSA key a run: making it takes longer than most tests."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "push.pem")
        PushTokens(path, lambda: datetime.now(UTC))
        return path.read_bytes()


def _reuse_key(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_bytes(_push_key())


def jpeg(width: int = 320, height: int = 240, color: str = "teal", **more: Any) -> bytes:
    """A small sound JPEG."""
    encoded = BytesIO()
    Image.new("RGB", (width, height), color).save(encoded, "JPEG", **more)
    return encoded.getvalue()
