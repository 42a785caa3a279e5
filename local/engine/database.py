"""One SQLite file for records, objects' metadata and messages; the only place that opens it."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from common.errors import Unavailable

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_lazy_s = 0.01

# The last line but one says which version this is.
_SCHEMA_VERSION = 1
_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS records (
    collection TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, save_id TEXT NOT NULL, data BLOB NOT NULL,
    owner TEXT, created_at INTEGER, changed_at INTEGER, shard TEXT, wake_at INTEGER,
    PRIMARY KEY (collection, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_creation ON records (collection, owner, created_at, key) WHERE owner IS NOT NULL;
CREATE INDEX IF NOT EXISTS records_by_change ON records (collection, owner, changed_at) WHERE owner IS NOT NULL;
CREATE INDEX IF NOT EXISTS records_due ON records (collection, shard, wake_at) WHERE wake_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS objects (
    bucket TEXT NOT NULL, name TEXT NOT NULL, generation INTEGER NOT NULL, size INTEGER NOT NULL,
    content_type TEXT NOT NULL, created_at INTEGER NOT NULL, metadata TEXT NOT NULL, file TEXT NOT NULL,
    PRIMARY KEY (bucket, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, data BLOB NOT NULL, attributes TEXT NOT NULL,
    published_at INTEGER NOT NULL, due_at INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    last_error TEXT, dead_at INTEGER);
CREATE INDEX IF NOT EXISTS messages_due ON messages (topic, due_at) WHERE dead_at IS NULL;
CREATE INDEX IF NOT EXISTS messages_dead ON messages (dead_at) WHERE dead_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO counters VALUES ('version', 0), ('changed_at', 0);
PRAGMA user_version = 1;
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class _Waiting:
    work: Work[Any]
    future: asyncio.Future[Any]
    then: Callable[[Any], None] | None


class Database:
    """All writes go through one thread and share transactions: those that wait together pay one fsync together.

    A write is on the disk when its await returns (WAL, synchronous=FULL), so a kill or a power cut takes
    back nothing that was answered. Several processes may open the same file. Raises Unavailable when
    SQLite fails (disk full, file locked for 10 s); what the work itself raises passes through.

    Reads run on the event loop: each is an index look-up of 10-30 µs, a thread hop costs ten times that, and in
    WAL mode no writer makes them wait (docs/decisions/0007).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        self._write_connection: sqlite3.Connection | None = None
        self._read_connection: sqlite3.Connection | None = None
        self._waiting: deque[_Waiting] = deque()
        self._flusher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def write(self, work: Work[T], *, then: Callable[[T], None] | None = None, lazily: bool = False) -> T:
        """Run `work` inside a transaction of its own making; it is rolled back alone if it raises.

        With `lazily` it waits up to 10 ms for others to share its fsync.

        `then` gets the result as soon as it is on the disk, in the order of the writes and also if the caller
        was cancelled meanwhile: the write stands, so whoever must hear of it does.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(work, future, then))
        if not lazily:
            self._start_flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_lazy_s, self._start_flush)
        return await future

    async def read(self, work: Work[T]) -> T:
        """Run `work`, which must not write; it sees at least every finished write."""
        if self._closed:
            raise Unavailable(f"the database at {self._path.name} is closed")
        try:
            if self._read_connection is None:
                self._read_connection = _open(self._path)
            return work(self._read_connection)
        except (sqlite3.Error, OSError) as exc:
            raise Unavailable(f"the database at {self._path.name} cannot be read: {exc}") from exc

    async def aclose(self) -> None:
        """Finish what waits, then close the file."""
        self._closed = True
        if self._waiting:
            self._start_flush()
        if self._flusher is not None:
            await asyncio.wait([self._flusher])
        if self._write_connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._write_connection.close)
        self._writer.shutdown()
        if self._read_connection is not None:
            self._read_connection.close()

    def _start_flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = list(self._waiting)
            self._waiting.clear()
            try:
                results = await loop.run_in_executor(self._writer, self._run_batch, [write.work for write in batch])
            except RuntimeError as exc:
                # The pool is shut down; nobody may wait for ever for that.
                results = [_unavailable(f"the database at {self._path.name} is closed", exc)] * len(batch)
            for write, result in zip(batch, results, strict=True):
                _answer(write, result)

    def _run_batch(self, batch: list[Work[Any]]) -> list[Any]:
        try:
            if self._write_connection is None:
                self._write_connection = _open(self._path)
            connection = self._write_connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                results = [_run_one(connection, work) for work in batch]
                connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some failures, a full disk among them.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as exc:
            return [_unavailable(f"the database at {self._path.name} does not take writes: {exc}", exc)] * len(batch)
        return results


def next_version(connection: sqlite3.Connection) -> int:
    """A number never given before in this file: versions of records and generations of objects."""
    row = connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'version' RETURNING value").fetchone()
    return int(row[0])


def to_micros(moment: datetime) -> int:
    """Whole microseconds since 1970 UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The aware UTC datetime that `to_micros` read."""
    return _EPOCH + timedelta(microseconds=micros)


def _answer(write: _Waiting, result: Any) -> None:
    if write.then is not None and not isinstance(result, BaseException):
        try:
            write.then(result)
        except Exception as exc:
            result = exc
    if write.future.cancelled():
        return
    if isinstance(result, BaseException):
        write.future.set_exception(result)
    else:
        write.future.set_result(result)


def _run_one(connection: sqlite3.Connection, work: Work[Any]) -> Any:
    connection.execute("SAVEPOINT one")
    try:
        result = work(connection)
    except sqlite3.Error:
        # The file's trouble, so everybody's in this batch.
        raise
    except Exception as exc:
        connection.execute("ROLLBACK TO one")
        connection.execute("RELEASE one")
        return exc
    connection.execute("RELEASE one")
    return result


def _unavailable(detail: str, cause: Exception) -> Unavailable:
    error = Unavailable(detail)
    error.__cause__ = cause
    return error


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=2000;")
        # Only where it is missing: it needs the write lock, which another process may hold while we only want to read.
        if connection.execute("PRAGMA user_version").fetchone()[0] < _SCHEMA_VERSION:
            connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection
