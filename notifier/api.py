"""The public notifier API: live streams and webhook secrets. It reads records and writes none."""

import anyio
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.auth import Users
from common.cors import cors
from common.google.service import on_google_cloud
from common.health import health_routes
from common.links import ResultLinks
from common.lookup import find_job
from common.ports import Engine
from common.problems import HANDLERS
from common.request_id import RequestIds
from common.settings import Settings
from notifier.stream import job_events
from notifier.webhooks import master_secret, owner_secret

# How long a stream may take to say goodbye when the server stops; less than any server of ours waits for it.
goodbye_s = 2.0


def create_app(engine: Engine, settings: Settings) -> Starlette:
    """The notifier-api service. Raises SettingsError if nobody could sign in or webhooks could not be signed."""
    users = Users(settings, engine.now)
    master = master_secret(settings)
    links = ResultLinks(engine, settings)

    async def events(request: Request) -> Response:
        owner = users.owner(request)
        job = await find_job(engine, owner, request.path_params["job_id"])
        # Set by sse-starlette when the server stops; a stream it had to cancel would break off in mid-answer.
        closing = anyio.Event()
        return EventSourceResponse(
            job_events(engine, settings, links, job, closing),
            ping=settings.heartbeat_s,
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
            shutdown_event=closing,
            shutdown_grace_period=goodbye_s,
        )

    async def secret(request: Request) -> Response:
        owner = users.owner(request)
        return JSONResponse({"secret": owner_secret(master, owner)}, headers={"cache-control": "no-store"})

    routes = [
        Route("/v1/jobs/{job_id}/events", events, methods=["GET"]),
        Route("/v1/webhook-secret", secret, methods=["GET"]),
        *health_routes(engine),
    ]
    middleware = [Middleware(RequestIds, new_id=engine.new_id), *cors(settings)]
    return Starlette(routes=routes, exception_handlers=HANDLERS, middleware=middleware)


app = on_google_cloud(create_app)
