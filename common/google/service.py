"""How a service starts on Google Cloud: settings from the environment, the cloud engine, and one of the five apps."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette

from common.ports import Engine
from common.settings import Settings, SettingsError, load
from common.telemetry import configure


def on_google_cloud(create_app: Callable[[Engine, Settings], Starlette]) -> Callable[[], Starlette]:
    """The factory for `uvicorn --factory`. What it makes closes the engine with its lifespan.

    A configuration that cannot be used ends the process with the text that says what to mend.
    """

    def app() -> Starlette:
        from common.google.engine import open_engine

        try:
            settings = load()
            configure(settings.log_level, project=settings.google_cloud_project)
            engine = open_engine(settings)
            served = create_app(engine, settings)
        except SettingsError as exc:
            sys.exit(str(exc))
        within = served.router.lifespan_context

        @asynccontextmanager
        async def lifespan(starlette: Starlette) -> AsyncIterator[Any]:
            try:
                async with within(starlette) as state:
                    yield state
            finally:
                await engine.aclose()

        served.router.lifespan_context = lifespan
        return served

    return app
