"""The cloud engine: the four ports on Firestore, Cloud Storage and Pub/Sub; twin of local/engine/engine.py."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from random import Random, SystemRandom
from typing import Protocol

from common.clock import new_id, utc_now
from common.google.blobs import CloudBlobs
from common.google.bus import PubSubBus
from common.google.credentials import Loader
from common.google.custom_token import CustomTokens
from common.google.feed import FirestoreFeed
from common.google.identity import Identity
from common.google.push_keys import PushKeys
from common.google.store import FirestoreStore
from common.ports import Engine
from common.settings import Settings, SettingsError
from common.telemetry import logger

log = logger(__name__)

close_s_max = 3.0
"""How long one part may take to close. Cloud Run kills a process 10 s after SIGTERM, and requests end before."""


class _Part(Protocol):
    def aclose(self) -> Awaitable[None]: ...


def open_engine(
    settings: Settings,
    *,
    now: Callable[[], datetime] = utc_now,
    ids: Callable[[], str] = new_id,
    random: Random | None = None,
) -> Engine:
    """The engine of one instance. Opens no connection: each client is made by the first call that needs it.

    Raises SettingsError without GOOGLE_CLOUD_PROJECT.
    """
    project, database = settings.google_cloud_project, settings.firestore_database
    if project is None:
        raise SettingsError("the cloud engine needs a project: set GOOGLE_CLOUD_PROJECT, e.g. my-project")
    loader = Loader()
    identity = Identity(settings, now, loader)
    store = FirestoreStore(project, database, loader)
    blobs = CloudBlobs(settings, identity, now)
    bus = PubSubBus(project, loader)
    feed = FirestoreFeed(project, database, loader)
    keys = PushKeys(settings.push_certs_url, now)
    tokens = CustomTokens(identity, project, database, now)

    async def aclose() -> None:
        loader.close()
        await close_together(feed, bus, blobs, store, keys, identity)

    return Engine(store, blobs, bus, feed, now, ids, random or SystemRandom(), keys.public_key, aclose, tokens.mint)


async def close_together(*parts: _Part) -> None:
    """Close them all at once, each in its time; one that fails or hangs is logged, and holds up no other."""
    ends = await asyncio.gather(*(_close(part) for part in parts), return_exceptions=True)
    for part, end in zip(parts, ends, strict=True):
        if end is not None:
            log.error("engine.not_closed", exc_info=end, extra={"part": type(part).__name__})


async def _close(part: _Part) -> None:
    async with asyncio.timeout(close_s_max):
        await part.aclose()
