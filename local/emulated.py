"""`darkroom serve --engine google`: the cloud engine on Google's emulators, all apps in one process."""

import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from starlette.routing import Router
from starlette.types import ASGIApp

from common.clock import utc_now
from common.google.engine import open_engine
from common.loopback import LOOPBACK
from common.messages import Topic
from common.settings import Settings, SettingsError
from local.engine.asgi import post
from local.engine.dispatcher import PushPolicy, Route
from local.engine.engine import SCRATCH
from local.engine.push_tokens import PushTokens
from local.server import forever, private_apps, public_app, push_routes, running, sweep_every_s, sweep_once
from local.subscriptions import subscribe

EMULATORS = ("FIRESTORE_EMULATOR_HOST", "PUBSUB_EMULATOR_HOST", "STORAGE_EMULATOR_HOST")
_PREFIX = "/emulated-pubsub"


def check_emulators(settings: Settings) -> Settings:
    """The settings with the buckets' address filled in. Raises SettingsError unless everything leads to an emulator.

    Google's certificates for pushes are not among it: here the server signs its pushes itself.
    """
    missing = [name for name in EMULATORS if not os.environ.get(name)]
    if missing:
        raise SettingsError(
            f"--engine google runs on Google's emulators only, and {' and '.join(missing)} is not set; docs/cloud.md"
            " says how to start them. On Google Cloud each service runs by itself."
        )
    if urlsplit(settings.iam_credentials_url).hostname not in LOOPBACK:
        # Or links would be signed by a real account of whoever is logged in.
        raise SettingsError(
            "--engine google signs with what runs on this machine, and IAM_CREDENTIALS_URL leads elsewhere:"
            f" {settings.iam_credentials_url}. `make emulators` prints the variables to export, this one too."
        )
    if settings.google_cloud_project is None:
        raise SettingsError(
            "the emulators keep everything under a project: set GOOGLE_CLOUD_PROJECT, e.g. darkroom-dev"
        )
    return settings.model_copy(update={"storage_url": os.environ["STORAGE_EMULATOR_HOST"].rstrip("/")})


@asynccontextmanager
async def serve_on_emulators(
    settings: Settings, folder: Path, *, policy: PushPolicy | None = None
) -> AsyncIterator[ASGIApp]:
    """The five apps on the emulators, with subscriptions that push to this server; yields the app for the network.

    The emulator signs no pushes, so they come to a path that only it knows, and get the bus's token there.
    """
    (folder / SCRATCH).mkdir(exist_ok=True, mode=0o700)
    tokens = PushTokens(folder / "keys" / "push.pem", utc_now)
    engine = replace(open_engine(settings), push_key=tokens.public_key)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.aclose)
        private = private_apps(engine, settings)
        for app in private:
            await stack.enter_async_context(app.router.lifespan_context(app))
        secret = secrets.token_urlsafe(16)
        routes = push_routes(*private)
        assert settings.google_cloud_project is not None
        base = f"{settings.api_url}{_PREFIX}/{secret}"
        endpoints = {topic: f"{base}/{topic}" for topic in routes}
        await subscribe(settings.google_cloud_project, endpoints, policy or PushPolicy())
        await stack.enter_async_context(running(forever(partial(sweep_once, private, tokens), pause_s=sweep_every_s)))
        gate = HttpRoute(f"{_PREFIX}/{secret}/{{topic}}", _Gate(routes, tokens).take, methods=["POST"])
        yield Router([gate], default=public_app(engine, settings))


class _Gate:
    """What Pub/Sub does and its emulator does not: sign each push."""

    def __init__(self, routes: Mapping[Topic, Route], tokens: PushTokens) -> None:
        self._routes = routes
        self._tokens = tokens

    async def take(self, request: Request) -> Response:
        route = self._routes[Topic(request.path_params["topic"])]
        headers = {"authorization": f"Bearer {self._tokens.mint()}"}
        status, answer = await post(route.app, route.path, await request.body(), headers)
        return Response(answer, status)
