"""The EventBus port on SQLite: a durable queue a topic, with dead letters; twin of common/google/bus.py.

Who pushes the messages to their routes is local/engine/dispatcher.py.
"""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

from common.errors import NotFound
from common.messages import Message, Topic
from common.pubsub import message_attributes
from local.engine.database import Database, from_micros, to_micros


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message on its way: `attempt` counts this delivery, from 1."""

    id: int
    topic: Topic
    data: bytes
    attributes: Mapping[str, str]
    published_at: datetime
    attempt: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up, and the last thing its route said."""

    id: int
    topic: Topic
    data: bytes
    attempts: int
    last_error: str
    dead_at: datetime


class SqliteBus:
    """Publishes in one insert. `reorder_s` delays each message by up to so many seconds, at random."""

    def __init__(self, database: Database, now: Callable[[], datetime], random: Random, *, reorder_s: float) -> None:
        self._database = database
        self._now = now
        self._random = random
        self._reorder_s = reorder_s
        self._something = asyncio.Event()
        self._fresh: set[Topic] = set()

    async def publish(self, topic: Topic, message: Message, *, event_id: str | None = None) -> str:
        """See EventBus.publish."""
        data, beside = message.encode(), message_attributes(event_id)
        number = await self._database.write(lambda connection: self.insert(connection, topic, data, beside))
        self.notice(topic)
        return str(number)

    def notice(self, topic: Topic) -> None:
        """There may be something to push on this topic."""
        self._fresh.add(topic)
        self._something.set()

    async def noticed(self, *, wait_s: float) -> frozenset[Topic]:
        """Topics noticed since the last call, waiting for the first up to `wait_s`; none if that time passed."""
        try:
            async with asyncio.timeout(wait_s):
                await self._something.wait()
        except TimeoutError:
            pass
        topics = frozenset(self._fresh)
        self._fresh.clear()
        self._something.clear()
        return topics

    def insert(self, connection: sqlite3.Connection, topic: Topic, data: bytes, attributes: Mapping[str, str]) -> int:
        """Publish inside somebody's transaction; call `notice` after it."""
        now = self._now()
        due_at = now + timedelta(seconds=self._random.uniform(0, self._reorder_s)) if self._reorder_s else now
        cursor = connection.execute(
            "INSERT INTO messages (topic, data, attributes, published_at, due_at) VALUES (?, ?, ?, ?, ?)",
            (topic, data, json.dumps(attributes), to_micros(now), to_micros(due_at)),
        )
        return int(cursor.lastrowid or 0)

    async def due(self, free: Mapping[Topic, int], in_flight: frozenset[int]) -> tuple[list[Envelope], datetime | None]:
        """Up to `free[topic]` messages a topic that may be pushed now, oldest first, and when the next one may be."""
        now = to_micros(self._now())

        def read(connection: sqlite3.Connection) -> tuple[list[Envelope], datetime | None]:
            found: list[Envelope] = []
            soonest: list[int] = []
            for topic, number in free.items():
                rows = connection.execute(
                    "SELECT id, topic, data, attributes, published_at, attempts FROM messages"
                    " WHERE dead_at IS NULL AND topic = ? AND due_at <= ? ORDER BY due_at, id LIMIT ?",
                    (topic, now, number + len(in_flight)),
                )
                fresh = [row for row in rows if row[0] not in in_flight][:number]
                found += [_envelope(row) for row in fresh]
                later = connection.execute(
                    "SELECT MIN(due_at) FROM messages WHERE dead_at IS NULL AND topic = ? AND due_at > ?", (topic, now)
                )
                soonest += [row[0] for row in later if row[0] is not None]
            return found, from_micros(min(soonest)) if soonest else None

        return await self._database.read(read)

    async def acknowledge(self, message_id: int) -> None:
        """The message is done with. Not urgent: until it is on the disk, a kill only means one push more."""
        await self._database.write(
            lambda connection: connection.execute("DELETE FROM messages WHERE id = ?", (message_id,)), lazily=True
        )

    async def retry(self, message_id: int, *, delay_s: float, error: str) -> None:
        """Push it again after a delay."""
        due_at = to_micros(self._now() + timedelta(seconds=delay_s))
        await self._database.write(
            lambda connection: connection.execute(
                "UPDATE messages SET attempts = attempts + 1, due_at = ?, last_error = ? WHERE id = ?",
                (due_at, error, message_id),
            )
        )

    async def bury(self, message_id: int, *, error: str) -> None:
        """Give it up: it stays as a dead letter until somebody replays it."""
        dead_at = to_micros(self._now())
        await self._database.write(
            lambda connection: connection.execute(
                "UPDATE messages SET attempts = attempts + 1, dead_at = ?, last_error = ? WHERE id = ?",
                (dead_at, error, message_id),
            )
        )

    async def dead_letters(self, *, limit: int = 100) -> tuple[DeadLetter, ...]:
        """What was given up, the newest first."""
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT id, topic, data, attempts, last_error, dead_at FROM messages WHERE dead_at IS NOT NULL"
                " ORDER BY dead_at DESC, id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        )
        return tuple(DeadLetter(r[0], Topic(r[1]), r[2], r[3], r[4] or "", from_micros(r[5])) for r in rows)

    async def replay(self, message_id: int) -> None:
        """Queue a dead letter again with a fresh count of attempts. Raises NotFound if there is none such."""
        now = to_micros(self._now())
        changed = await self._database.write(
            lambda connection: (
                connection.execute(
                    "UPDATE messages SET dead_at = NULL, attempts = 0, due_at = ? WHERE id = ? AND dead_at IS NOT NULL",
                    (now, message_id),
                ).rowcount
            )
        )
        if not changed:
            raise NotFound(f"there is no dead letter {message_id}; `darkroom deadletters list` shows them")
        for topic in Topic:
            self.notice(topic)


def _envelope(row: tuple[int, str, bytes, str, int, int]) -> Envelope:
    number, topic, data, attributes, published_at, attempts = row
    return Envelope(number, Topic(topic), data, json.loads(attributes), from_micros(published_at), attempts + 1)
