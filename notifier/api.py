"""The public notifier API: live streams and webhook secrets. It reads records and writes none."""

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.auth import Users
from common.cors import cors
from common.errors import NotFound
from common.health import health_routes
from common.names import is_job_id
from common.ports import Engine
from common.problems import HANDLERS
from common.settings import Settings, SettingsError
from notifier.stream import find, job_events
from notifier.webhooks import owner_secret


def create_app(engine: Engine, settings: Settings) -> Starlette:
    """The notifier-api service. Raises SettingsError if nobody could sign in or webhooks could not be signed."""
    users = Users(settings, engine.now)
    if settings.webhook_secret is None:
        raise SettingsError("webhooks could not be signed: set WEBHOOK_SECRET to 32 random bytes or more")
    master = settings.webhook_secret.get_secret_value()

    async def events(request: Request) -> Response:
        owner = users.owner(request)
        job_id = request.path_params["job_id"]
        if not is_job_id(job_id):
            raise NotFound("a job id has 32 hex digits")
        job = await find(engine, owner, job_id)
        return EventSourceResponse(
            job_events(engine, settings, job),
            ping=round(settings.heartbeat_s),
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def secret(request: Request) -> Response:
        owner = users.owner(request)
        return JSONResponse({"secret": owner_secret(master, owner)}, headers={"cache-control": "no-store"})

    routes = [
        Route("/v1/jobs/{job_id}/events", events, methods=["GET"]),
        Route("/v1/webhook-secret", secret, methods=["GET"]),
        *health_routes(engine),
    ]
    return Starlette(routes=routes, exception_handlers=HANDLERS, middleware=cors(settings))
