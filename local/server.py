"""All five apps in one process on the embedded engine; what Cloud Run, Scheduler and Pub/Sub are in the cloud."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.routing import Match, Mount, Router
from starlette.types import ASGIApp, Receive, Scope, Send

import ingest.api
import ingest.push
import notifier.api
import notifier.push
import processor.push
from common.messages import Topic
from common.ports import Engine, Update
from common.records import Desk, Work, shard_names
from common.saving import sweep_page
from common.settings import Settings
from common.telemetry import logger
from local.engine.asgi import post
from local.engine.dispatcher import PushPolicy, Route
from local.engine.engine import SCRATCH, STORAGE_PATH, open_engine, read_key
from local.engine.push_tokens import AUDIENCE, EMAIL, ISSUER, PushTokens
from local.guard import LoopbackOnly

log = logger(__name__)

# Cloud Scheduler calls once a minute; here a waiting job should not wait that long for its turn.
sweep_every_s = 1.0
# Cloud Run gives 10 s from SIGTERM to the end, 3 s of them to streams; longer calls to the model are cut off.
grace_s = 5.0


@dataclass(frozen=True, slots=True)
class Mischief:
    """What the bus does on purpose, to show that nothing depends on its good behaviour."""

    duplicate_rate: float = 0.0
    reorder_s: float = 0.0


def complete(settings: Settings, folder: Path) -> Settings:
    """The settings of a local server: its own bus signs the pushes, its data folder holds the webhook secret."""
    keys = folder / "keys"
    keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    update: dict[str, object] = {
        "push_auth": "oidc",
        "push_audience": AUDIENCE,
        "push_issuer": ISSUER,
        "push_email": EMAIL,
        "scratch_dir": folder / SCRATCH,
    }
    if "image_workers" not in settings.model_fields_set:
        # Two of the apps have workers of their own, and all share this machine.
        update["image_workers"] = max(1, (os.cpu_count() or 1) // 2)
    if settings.webhook_secret is None:
        update["webhook_secret"] = SecretStr(read_key(keys / "webhook.key").hex())
    return settings.model_copy(update=update)


@asynccontextmanager
async def serve_apps(
    settings: Settings, folder: Path, *, mischief: Mischief | None = None, policy: PushPolicy | None = None
) -> AsyncIterator[ASGIApp]:
    """The engine, the five apps, the dispatcher and the sweeps, running; yields the one app that faces the network."""
    mischief = mischief or Mischief()
    policy = policy or PushPolicy(duplicate_rate=mischief.duplicate_rate)
    embedded = await open_engine(folder, settings, reorder_s=mischief.reorder_s)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(embedded.engine.aclose)
        private = private_apps(embedded.engine, settings)
        for app in private:
            await stack.enter_async_context(app.router.lifespan_context(app))
        await release_leases(embedded.engine)
        dispatcher = embedded.dispatcher(push_routes(*private), policy)
        stack.push_async_callback(partial(dispatcher.aclose, grace_s=grace_s))
        pushing = forever(dispatcher.run, pause_s=1.0)
        sweeping = forever(partial(sweep_once, private, embedded.tokens), pause_s=sweep_every_s)
        await stack.enter_async_context(running(pushing, sweeping))
        yield public_app(embedded.engine, settings, embedded.storage_app)


def private_apps(engine: Engine, settings: Settings) -> tuple[Starlette, Starlette, Starlette]:
    """ingest-push, processor-push and notifier-push."""
    return (
        ingest.push.create_app(engine, settings),
        processor.push.create_app(engine, settings),
        notifier.push.create_app(engine, settings),
    )


def push_routes(intake: ASGIApp, processor_app: ASGIApp, notifier_app: ASGIApp) -> dict[Topic, Route]:
    """Which private app reads which topic, as Terraform wires the subscriptions."""
    return {
        # As on Cloud Run, where ingest-push takes two a CPU: more would only wait for the workers, photos in hand.
        Topic.UPLOAD_FINALIZED: Route(intake, "/push/upload-finalized", window=2 * (os.cpu_count() or 1)),
        Topic.JOB_QUEUED: Route(processor_app, "/push/job-queued"),
        Topic.JOB_QUEUED_BATCH: Route(processor_app, "/push/job-queued"),
        Topic.JOB_CHANGED: Route(notifier_app, "/push/job-changed"),
        Topic.DELIVERY_DUE: Route(notifier_app, "/push/delivery"),
    }


def public_app(engine: Engine, settings: Settings, storage_app: ASGIApp | None = None) -> ASGIApp:
    """Both public apps, and the buckets if we keep them, behind one origin.

    Guarded against other hosts where nobody signs in.
    """
    api = ingest.api.create_app(engine, settings)
    events = notifier.api.create_app(engine, settings)
    buckets = [] if storage_app is None else [Mount(STORAGE_PATH, storage_app)]
    app: ASGIApp = _FirstMatch(events.router, events, Router(buckets, default=api))
    if settings.local_owner is not None:
        app = LoopbackOnly(app, origins=settings.cors_origins)
    return app


async def release_leases(engine: Engine) -> None:
    """End the leases of workers that died with the process before us, so that their jobs need not wait for it.

    Only here, where the data folder's lock says that no other process works on it.
    """
    now = engine.now()
    shards = shard_names(Desk.PROCESSOR)
    for stored in await engine.store.due(Work, shards=shards, before=now + timedelta(days=1), limit=sweep_page):
        lease = stored.record.lease
        if lease is not None and lease.expires_at > now:
            ended = lease.model_copy(update={"expires_at": now})
            work = stored.record.model_copy(update={"lease": ended, "wake_at": now})
            await engine.store.commit([Update(work, stored.etag)], save_id=engine.new_id())
            log.info("lease.released", extra={"job_id": work.job_id, "fence": lease.fence})


async def sweep_once(apps: Sequence[ASGIApp], tokens: PushTokens) -> None:
    """Call each private app's sweep, as Cloud Scheduler does, through its route."""
    headers = {"authorization": f"Bearer {tokens.mint()}"}
    for app in apps:
        status, _ = await post(app, "/tasks/sweep", b"", headers)
        if status != 204:
            log.error("sweep.failed", extra={"status": status})


async def forever(work: Callable[[], Awaitable[None]], *, pause_s: float) -> None:
    """Do `work` again and again until cancelled. Whatever it raises is logged: nobody else would see it end."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("local.stumbled")
        await asyncio.sleep(pause_s)


class _FirstMatch:
    """Sends a request to `app` if one of its routes takes the path, but its own health routes; else to `other`."""

    def __init__(self, router: Router, app: ASGIApp, other: ASGIApp) -> None:
        self._routes = [route for route in router.routes if not getattr(route, "path", "").startswith("/health")]
        self._app = app
        self._other = other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken = scope["type"] == "http" and any(route.matches(scope)[0] is not Match.NONE for route in self._routes)
        await (self._app if taken else self._other)(scope, receive, send)


@asynccontextmanager
async def running(*works: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Let them run beside the caller, and end them with it."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
