"""The private notifier app: what the bus and the scheduler call. No user reaches it, and it never writes a job."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
from starlette.applications import Starlette

from common.auth import Pushes
from common.google.service import on_google_cloud
from common.health import health_routes
from common.messages import DeliveryDue, JobChanged
from common.ports import Engine
from common.problems import HANDLERS
from common.pubsub import push_route, sweep_route
from common.settings import Settings
from notifier.delivery import Deliveries
from notifier.webhooks import master_secret

connections_max = 100


def create_app(engine: Engine, settings: Settings) -> Starlette:
    """The notifier-push service. Its client follows no redirects and takes nothing from the environment's proxies.

    Raises SettingsError where it would be open to everybody, or webhooks could not be signed.
    """
    master_secret(settings)
    pushes = Pushes(settings, engine.push_key, engine.now)
    limits = httpx2.Limits(max_connections=connections_max)
    client = httpx2.AsyncClient(
        follow_redirects=False, trust_env=False, limits=limits, timeout=settings.webhook_timeout_s
    )
    deliveries = Deliveries(engine, settings, client)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    routes = [
        push_route("/push/job-changed", JobChanged, deliveries.announce, pushes),
        push_route("/push/delivery", DeliveryDue, deliveries.deliver, pushes),
        sweep_route(deliveries.sweep, pushes),
        *health_routes(engine),
    ]
    return Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)


app = on_google_cloud(create_app)
