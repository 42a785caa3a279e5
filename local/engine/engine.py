"""The embedded engine: the four ports on one data folder, durable, for one process; twin of common/google/engine.py."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random, SystemRandom
from typing import IO

from starlette.applications import Starlette

from common.clock import new_id, utc_now
from common.messages import Topic
from common.ports import Engine
from common.settings import Settings
from common.v4 import HmacKey
from local.engine import storage
from local.engine.blobs import FileBlobs
from local.engine.bus import SqliteBus
from local.engine.database import Database
from local.engine.dispatcher import Dispatcher, PushPolicy, Route
from local.engine.feed import LocalFeed
from local.engine.push_tokens import PushTokens, write_secret
from local.engine.store import SqliteStore

STORAGE_PATH = "/storage"
SCRATCH = "scratch"


class DataFolderInUse(Exception):
    """Another server works on the same data folder."""


@dataclass(frozen=True, slots=True)
class EmbeddedEngine:
    """The Engine and what only the embedded one has: the bus's inside and the buckets' HTTP app."""

    engine: Engine
    bus: SqliteBus
    storage_app: Starlette
    tokens: PushTokens

    def dispatcher(self, routes: Mapping[Topic, Route], policy: PushPolicy) -> Dispatcher:
        """What pushes this engine's messages to `routes`."""
        return Dispatcher(self.bus, routes, self.tokens, self.engine.now, self.engine.random, policy)


async def open_engine(
    folder: Path,
    settings: Settings,
    *,
    now: Callable[[], datetime] = utc_now,
    ids: Callable[[], str] = new_id,
    random: Random | None = None,
    reorder_s: float = 0.0,
) -> EmbeddedEngine:
    """Open the data folder, made if absent, and go on where it was left.

    Only one process at a time may: raises DataFolderInUse. The lock goes with the process, however it ends.
    """
    objects = folder / "objects"
    keys = folder / "keys"
    for path in (folder, objects, keys):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = _lock(folder / "lock")
    # Photos and pictures that a kill left in the middle of the work.
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    (folder / SCRATCH).mkdir(mode=0o700)
    random = random or SystemRandom()
    database = open_database(folder)
    bus = SqliteBus(database, now, random, reorder_s=reorder_s)
    key = HmacKey("local", read_key(keys / "storage.key"))
    blobs = FileBlobs(
        objects,
        database,
        bus,
        url=settings.api_url + STORAGE_PATH,
        announced_bucket=settings.uploads_bucket,
        key=key,
        now=now,
    )
    await blobs.collect()
    feed = LocalFeed(lambda: store)
    store = SqliteStore(database, now, feed.notify)
    tokens = PushTokens(keys / "push.pem", now)

    async def aclose() -> None:
        await database.aclose()
        lock.close()

    engine = Engine(store, blobs, bus, feed, now, ids, random, tokens.public_key, aclose)
    app = storage.create_app(blobs, key.check, now, cors_origins=settings.cors_origins)
    return EmbeddedEngine(engine, bus, app, tokens)


def open_database(folder: Path) -> Database:
    """The folder's database, also beside a running server; for tools that look at it."""
    return Database(folder / "darkroom.sqlite3")


def read_key(path: Path) -> bytes:
    """32 secret bytes that stay the same for this data folder, made on first use."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        write_secret(path, secrets.token_bytes(32))
        return path.read_bytes()


def _lock(path: Path) -> IO[str]:
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise DataFolderInUse(f"process {owner} works on {path.parent}; stop it, or choose --data-dir") from exc
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
