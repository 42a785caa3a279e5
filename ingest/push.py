"""The private ingest app: what the bus and the scheduler call. No user reaches it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from common.auth import Pushes
from common.google.service import on_google_cloud
from common.health import health_routes
from common.messages import UploadFinalized
from common.ports import Engine
from common.problems import HANDLERS
from common.pubsub import push_route, sweep_route
from common.settings import Settings
from common.workers import Workers
from ingest import imaging
from ingest.intake import Intake


def create_app(engine: Engine, settings: Settings) -> Starlette:
    """The ingest-push service. Its lifespan owns the worker processes that open photos."""
    pushes = Pushes(settings, engine.push_key, engine.now)
    workers = Workers(
        count=settings.image_workers, memory_bytes_max=settings.image_memory_bytes_max, preload=imaging.PRELOAD
    )
    intake = Intake(engine, settings, workers)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await workers.start()
        try:
            yield
        finally:
            await workers.aclose()

    routes = [
        push_route("/push/upload-finalized", UploadFinalized, intake.take_upload, pushes),
        sweep_route(intake.sweep, pushes),
        *health_routes(engine),
    ]
    return Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)


app = on_google_cloud(create_app)
