"""The cloud engine: the four ports on Firestore, Cloud Storage and Pub/Sub; twin of local/engine/engine.py."""

from collections.abc import Callable
from datetime import datetime
from random import Random, SystemRandom

from common.clock import new_id, utc_now
from common.google.blobs import CloudBlobs
from common.google.bus import PubSubBus
from common.google.custom_token import CustomTokens
from common.google.feed import FirestoreFeed
from common.google.identity import Identity
from common.google.push_keys import PushKeys
from common.google.store import FirestoreStore
from common.ports import Engine
from common.settings import Settings, SettingsError


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
    identity = Identity(settings, now)
    store = FirestoreStore(project, database)
    blobs = CloudBlobs(settings, identity, now)
    bus = PubSubBus(project)
    feed = FirestoreFeed(project, database)
    keys = PushKeys(settings.push_certs_url, now)
    tokens = CustomTokens(identity, project, database, now)

    async def aclose() -> None:
        for part in (feed, bus, blobs, store, keys, identity):
            await part.aclose()

    return Engine(store, blobs, bus, feed, now, ids, random or SystemRandom(), keys.public_key, aclose, tokens.mint)
