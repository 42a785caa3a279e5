"""Health: alive means the event loop turns; ready means the store answers. Shared by all apps."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.errors import DarkroomError
from common.job import Job
from common.ports import Engine
from common.problems import problem
from common.version import VERSION

_deadline_s = 3.0


def health_routes(engine: Engine) -> list[Route]:
    """`/health/live`, `/health/ready` (503 while the store does not answer within 3 s), and `/health` for people."""

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "ok", "version": VERSION})

    async def ready(_: Request) -> Response:
        try:
            async with asyncio.timeout(_deadline_s):
                await engine.store.get(Job, "0" * 32)
        except (TimeoutError, DarkroomError):
            return problem("unavailable", "the store does not answer")
        return JSONResponse({"status": "ok", "version": VERSION})

    return [Route("/health/live", live), Route("/health/ready", ready), Route("/health", ready)]
