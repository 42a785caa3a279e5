"""The Store port on SQLite; twin of common/google/store.py."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TypeVar

from pydantic import ValidationError

from common.documents import check_key, check_owner, decode, encode, read_token, write_token
from common.errors import Conflict, Rejected, Unavailable
from common.ports import Change, Create, Delete, Page, Stored, Update
from common.records import Record
from common.telemetry import logger
from local.engine.database import Database, from_micros, next_version, to_micros

log = logger(__name__)

R = TypeVar("R", bound=Record)
Row = tuple[bytes, int, int | None]
# Without data where the record is the one we were given.
Written = tuple[bytes | None, int, int | None]
Listener = Callable[[Record | tuple[type[Record], str]], None]


class SqliteStore:
    """Records as JSON rows. `listener` hears every committed record, and `(type, key)` of every deleted one."""

    def __init__(self, database: Database, now: Callable[[], datetime], listener: Listener) -> None:
        self._database = database
        self._now = now
        self._listener = listener

    async def get(self, kind: type[R], key: str) -> Stored[R] | None:
        """See Store.get."""
        check_key(key)
        row: Row | None = await self._database.read(
            lambda connection: connection.execute(
                "SELECT data, version, changed_at FROM records WHERE collection = ? AND key = ?", (kind.collection, key)
            ).fetchone()
        )
        if row is None:
            return None
        readable = self._readable(kind, [(key, row)])
        if not readable:
            raise Unavailable(f"{kind.collection}/{key} was written by a version that knew more")
        return readable[0]

    async def commit(self, changes: Sequence[Change], *, save_id: str) -> tuple[Stored[Record] | None, ...]:
        """See Store.commit."""
        places = [_place(change) for change in changes]
        if len(set(places)) < len(places):
            raise Rejected("unsafe_record", "a commit changes each record once")
        encoded = [b"" if isinstance(change, Delete) else encode(change.record) for change in changes]
        moment = self._now()
        answers: list[Stored[Record] | None] = []

        def tell(written: list[Written | None]) -> None:
            for change, row in zip(changes, written, strict=True):
                if isinstance(change, Delete):
                    self._listener((change.kind, change.key))
                    answers.append(None)
                elif row is not None:
                    stored = self._written(change.record, row)
                    self._listener(stored.record)
                    answers.append(stored)

        # Watchers hear of what was committed even if the committer was cancelled while it waited for the disk.
        await self._database.write(lambda connection: _apply(connection, changes, encoded, save_id, moment), then=tell)
        return tuple(answers)

    async def page(self, kind: type[R], *, owner: str, limit: int, token: str | None = None) -> Page[R]:
        """See Store.page."""
        check_owner(owner)
        before = (2**62, "")
        if token is not None:
            moment, last = read_token(kind, owner, token)
            before = (to_micros(moment), last)
        rows: list[tuple[bytes, int, int | None, int, str]] = await self._database.read(
            lambda connection: connection.execute(
                "SELECT data, version, changed_at, created_at, key FROM records"
                " WHERE collection = ? AND owner = ? AND (created_at, key) < (?, ?)"
                " ORDER BY created_at DESC, key DESC LIMIT ?",
                (kind.collection, owner, *before, limit + 1),
            ).fetchall()
        )
        items = self._readable(kind, ((row[4], row[:3]) for row in rows[:limit]))
        if len(rows) <= limit:
            return Page(items, None)
        created_at, key = rows[limit - 1][3:]
        return Page(items, write_token(kind, owner, from_micros(created_at), key))

    async def changed(self, kind: type[R], *, owner: str, since: datetime, limit: int) -> tuple[Stored[R], ...]:
        """See Store.changed."""
        check_owner(owner)
        rows: list[tuple[bytes, int, int | None, str]] = await self._database.read(
            lambda connection: connection.execute(
                "SELECT data, version, changed_at, key FROM records"
                " WHERE collection = ? AND owner = ? AND changed_at >= ? ORDER BY changed_at, key LIMIT ?",
                (kind.collection, owner, to_micros(since), limit),
            ).fetchall()
        )
        return self._readable(kind, ((row[3], row[:3]) for row in rows))

    async def due(self, kind: type[R], *, shards: Sequence[str], before: datetime, limit: int) -> tuple[Stored[R], ...]:
        """See Store.due."""
        wanted = json.dumps(list(shards))
        rows: list[tuple[bytes, int, int | None, str]] = await self._database.read(
            lambda connection: connection.execute(
                "SELECT data, version, changed_at, key FROM records WHERE collection = ?"
                " AND shard IN (SELECT value FROM json_each(?)) AND wake_at <= ? ORDER BY wake_at, key LIMIT ?",
                (kind.collection, wanted, to_micros(before), limit),
            ).fetchall()
        )
        return self._readable(kind, ((row[3], row[:3]) for row in rows))

    def _written(self, record: Record, row: Written) -> Stored[Record]:
        data, version, changed_at = row
        if data is not None:
            # Written by an earlier try of the same commit.
            return self._stored(type(record), (data, version, changed_at))
        return self._stamped(record, version, changed_at)

    def _readable(self, kind: type[R], rows: Iterable[tuple[str, Row]]) -> tuple[Stored[R], ...]:
        found = []
        for key, row in rows:
            try:
                found.append(self._stored(kind, row))
            except ValidationError:
                # Written by a version that knew more. It must not hide the others from their owner or the sweep.
                log.error("record.unreadable", extra={"collection": kind.collection, "key": key})
        return tuple(found)

    def _stored(self, kind: type[R], row: Row) -> Stored[R]:
        data, version, changed_at = row
        return self._stamped(decode(kind, data), version, changed_at)

    def _stamped(self, record: R, version: int, changed_at: int | None) -> Stored[R]:
        if changed_at is not None and "changed_at" in type(record).model_fields:
            record = record.model_copy(update={"changed_at": from_micros(changed_at)})
        return Stored(record, str(version), self._now())


def _place(change: Change) -> tuple[str, str]:
    if isinstance(change, Delete):
        check_key(change.key)
        return change.kind.collection, change.key
    return change.record.collection, change.record.key


def _apply(
    connection: sqlite3.Connection, changes: Sequence[Change], encoded: Sequence[bytes], save_id: str, now: datetime
) -> list[Written | None]:
    found = [
        connection.execute(
            "SELECT data, version, changed_at, save_id FROM records WHERE collection = ? AND key = ?", _place(change)
        ).fetchone()
        for change in changes
    ]
    mine = [row is not None and row[3] == save_id for change, row in zip(changes, found, strict=True)]
    if any(mine):
        # This very commit was applied before and its answer was lost; what it deleted may be there again.
        if not all(own or isinstance(change, Delete) for change, own in zip(changes, mine, strict=True)):
            raise Conflict("this commit was applied before, and a record has changed since")
        return [row[:3] if own else None for row, own in zip(found, mine, strict=True)]
    stamp = _stamp(connection, to_micros(now))
    written: list[Written | None] = []
    for change, data, row in zip(changes, encoded, found, strict=True):
        if isinstance(change, Delete):
            connection.execute("DELETE FROM records WHERE collection = ? AND key = ?", _place(change))
            written.append(None)
            continue
        _check_version(change, change.record, None if row is None else str(row[1]))
        version = next_version(connection)
        connection.execute(
            "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*_place(change), version, save_id, data, *_index(change.record, stamp)),
        )
        written.append((None, version, stamp))
    return written


def _stamp(connection: sqlite3.Connection, now: int) -> int:
    """The store's time of a commit: never behind an earlier one, though the machine's clock may be set back."""
    row = connection.execute(
        "UPDATE counters SET value = max(value, ?) WHERE name = 'changed_at' RETURNING value", (now,)
    ).fetchone()
    return int(row[0])


def _check_version(change: Create | Update, record: Record, etag: str | None) -> None:
    if isinstance(change, Create):
        if etag is not None:
            raise Conflict(f"{record.collection}/{record.key} exists already")
    elif etag != change.etag:
        raise Conflict(f"{record.collection}/{record.key} changed since it was read")


def _index(record: Record, stamp: int) -> tuple[str | None, int | None, int, str | None, int | None]:
    created_at = getattr(record, "created_at", None)
    wake_at = getattr(record, "wake_at", None)
    return (
        getattr(record, "owner", None) if created_at is not None else None,
        None if created_at is None else to_micros(created_at),
        stamp,
        record.shard if wake_at is not None else None,
        None if wake_at is None else to_micros(wake_at),
    )
