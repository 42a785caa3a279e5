"""The private processor app: what the bus and the scheduler call. No user reaches it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette

from common.auth import Pushes
from common.google.service import on_google_cloud
from common.health import health_routes
from common.messages import JobQueued
from common.ports import Engine
from common.problems import HANDLERS
from common.pubsub import push_route, sweep_route
from common.settings import Settings
from common.workers import Workers
from processor import pictures
from processor.gemini import Gemini
from processor.generation import Generation
from processor.results import Results
from processor.sweep import sweep


def create_app(engine: Engine, settings: Settings) -> Starlette:
    """The processor-push service. Its lifespan owns the model's client and the workers that check pictures."""
    pushes = Pushes(settings, engine.push_key, engine.now)
    workers = Workers(
        count=settings.image_workers, memory_bytes_max=settings.image_memory_bytes_max, preload=pictures.PRELOAD
    )
    model = Gemini(
        api_key=settings.gemini_api_key.get_secret_value() if settings.gemini_api_key else None,
        base_url=settings.gemini_base_url,
        vertex_project=settings.vertex_project,
        vertex_location=settings.vertex_location,
        deadline_s=settings.model_deadline_s,
    )
    results = Results(engine, settings, workers)
    generation = Generation(engine, settings, model, results)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await workers.start()
        warming = asyncio.create_task(model.warm())
        try:
            yield
        finally:
            await warming
            await workers.aclose()
            await model.aclose()

    routes = [
        push_route("/push/job-queued", JobQueued, generation.handle, pushes),
        sweep_route(partial(sweep, engine, settings, results), pushes),
        *health_routes(engine),
    ]
    return Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)


app = on_google_cloud(create_app)
