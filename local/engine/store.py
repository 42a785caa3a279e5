"""The Store port on SQLite; twin of common/google/store.py."""

import base64
import binascii
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from common.documents import check_key, decode, encode
from common.errors import Conflict, Rejected
from common.ports import Change, Create, Delete, Page, Stored, Update
from common.records import Record
from local.engine.database import Database, from_micros, next_version, to_micros

R = TypeVar("R", bound=Record)
Row = tuple[bytes, int, int | None]
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
        return None if row is None else self._stored(kind, row)

    async def commit(self, changes: Sequence[Change], *, save_id: str) -> tuple[Stored[Record] | None, ...]:
        """See Store.commit."""
        encoded = [b"" if isinstance(change, Delete) else encode(change.record) for change in changes]
        moment = self._now()
        written = await self._database.write(lambda connection: _apply(connection, changes, encoded, save_id, moment))
        answers: list[Stored[Record] | None] = []
        for change, row in zip(changes, written, strict=True):
            if isinstance(change, Delete):
                self._listener((change.kind, change.key))
                answers.append(None)
            elif row is not None:
                stored = self._stored(type(change.record), row)
                self._listener(stored.record)
                answers.append(stored)
        return tuple(answers)

    async def page(self, kind: type[R], *, owner: str, limit: int, token: str | None = None) -> Page[R]:
        """See Store.page."""
        before, before_key = _read_token(token) if token is not None else (2**62, "")
        rows: list[tuple[bytes, int, int | None, int, str]] = await self._database.read(
            lambda connection: connection.execute(
                "SELECT data, version, changed_at, created_at, key FROM records"
                " WHERE collection = ? AND owner = ? AND (created_at, key) < (?, ?)"
                " ORDER BY created_at DESC, key DESC LIMIT ?",
                (kind.collection, owner, before, before_key, limit + 1),
            ).fetchall()
        )
        items = tuple(self._stored(kind, row[:3]) for row in rows[:limit])
        more = len(rows) > limit
        return Page(items, _write_token(rows[limit - 1][3], rows[limit - 1][4]) if more else None)

    async def changed(self, kind: type[R], *, owner: str, since: datetime, limit: int) -> tuple[Stored[R], ...]:
        """See Store.changed."""
        rows: list[Row] = await self._database.read(
            lambda connection: connection.execute(
                "SELECT data, version, changed_at FROM records WHERE collection = ? AND owner = ? AND changed_at >= ?"
                " ORDER BY changed_at, key LIMIT ?",
                (kind.collection, owner, to_micros(since), limit),
            ).fetchall()
        )
        return tuple(self._stored(kind, row) for row in rows)

    async def due(self, kind: type[R], *, shard: str, before: datetime, limit: int) -> tuple[Stored[R], ...]:
        """See Store.due."""
        rows: list[Row] = await self._database.read(
            lambda connection: connection.execute(
                "SELECT data, version, changed_at FROM records WHERE collection = ? AND shard = ? AND wake_at <= ?"
                " ORDER BY wake_at, key LIMIT ?",
                (kind.collection, shard, to_micros(before), limit),
            ).fetchall()
        )
        return tuple(self._stored(kind, row) for row in rows)

    def _stored(self, kind: type[R], row: Row) -> Stored[R]:
        data, version, changed_at = row
        record = decode(kind, data)
        if changed_at is not None and "changed_at" in kind.model_fields:
            record = record.model_copy(update={"changed_at": from_micros(changed_at)})
        return Stored(record, str(version), self._now())


def _apply(
    connection: sqlite3.Connection, changes: Sequence[Change], encoded: Sequence[bytes], save_id: str, now: datetime
) -> list[Row | None]:
    written: list[Row | None] = []
    for change, data in zip(changes, encoded, strict=True):
        if isinstance(change, Delete):
            where = (change.kind.collection, change.key)
            connection.execute("DELETE FROM records WHERE collection = ? AND key = ?", where)
            written.append(None)
            continue
        record = change.record
        there = connection.execute(
            "SELECT data, version, changed_at, save_id FROM records WHERE collection = ? AND key = ?",
            (record.collection, record.key),
        ).fetchone()
        if there is not None and there[3] == save_id:
            # This very commit was applied before and its answer was lost.
            written.append(there[:3])
            continue
        _check_version(change, record, None if there is None else str(there[1]))
        version = next_version(connection)
        connection.execute(
            "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (record.collection, record.key, version, save_id, data, *_index(record, now)),
        )
        written.append((data, version, to_micros(now)))
    return written


def _check_version(change: Create | Update, record: Record, etag: str | None) -> None:
    if isinstance(change, Create):
        if etag is not None:
            raise Conflict(f"{record.collection}/{record.key} exists already")
    elif etag != change.etag:
        raise Conflict(f"{record.collection}/{record.key} changed since it was read")


def _index(record: Record, now: datetime) -> tuple[str | None, int | None, int, str | None, int | None]:
    created_at = getattr(record, "created_at", None)
    wake_at = getattr(record, "wake_at", None)
    return (
        getattr(record, "owner", None) if created_at is not None else None,
        None if created_at is None else to_micros(created_at),
        to_micros(now),
        record.shard if wake_at is not None else None,
        None if wake_at is None else to_micros(wake_at),
    )


def _write_token(created_at: int, key: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at}/{key}".encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, str]:
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
        created_at, key = text.split("/", 1)
        return int(created_at), key
    except (binascii.Error, ValueError) as exc:
        raise Rejected("invalid_request", "the page_token was not given by this API; start without one") from exc
