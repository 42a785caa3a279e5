"""What a Listen stream listens to, a job or an owner, and the watchers who hear of it; no connection here."""

import asyncio
from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from common.errors import Unavailable
from common.google.documents import from_fields, to_python
from common.job import Job
from common.telemetry import logger
from common.watcher import Watchers

if TYPE_CHECKING:
    from google.cloud.firestore_v1.types import Target as Selection

log = logger(__name__)

margin_s = 10
"""`changed_at` is when Firestore received a commit, cut to milliseconds; the commit counts from a little later on."""


class Target(ABC):
    """Something listened to: where it stands on the stream, and what its documents mean to its watchers.

    The stream sets `id` and calls the methods as it hears things. From `token`, if there is one, Firestore can resume.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.watchers = Watchers()
        self.id = 0
        self.token = b""
        self.restarts = 0
        self.current = False
        self._settled = asyncio.Event()
        self._failure: str | None = None

    async def ready(self) -> None:
        """Wait until all is told that was committed before it was added. Raises Unavailable if Firestore refuses it."""
        await self._settled.wait()
        if self._failure is not None:
            raise Unavailable(self._failure)

    @abstractmethod
    def selection(self) -> "Selection":
        """The documents to listen to, as Firestore wants to be asked."""

    @property
    def count(self) -> int | None:
        """How many documents are known to be there; None if it does not matter to anybody which ones have gone."""
        return None

    @abstractmethod
    def change(self, document: Any) -> None:
        """A document, as a protobuf message, was written, or is told again."""

    def gone(self) -> None:  # noqa: B027 - an owner has no use for it
        """A document was deleted."""

    def reset(self) -> None:
        """All that is there now will be told from the beginning."""
        self.token = b""
        self._unsettle()

    def interrupt(self) -> None:
        """The stream broke; the next one goes on from the token."""
        self.restarts = 0
        self._unsettle()

    def settle(self) -> None:
        """All has been told that was there when it was added, resumed or reset."""
        self.current = True
        self._settled.set()

    def told_until(self, change: Any) -> None:
        """All was told that had happened by then; `change` is Firestore's TargetChange, a protobuf message."""
        self.token = change.resume_token

    def fail(self, reason: str) -> None:
        """Nothing will be told any more."""
        self.current = False
        self._failure = reason
        self._settled.set()
        self.watchers.fail(reason)

    def _unsettle(self) -> None:
        self.current = False
        self._settled.clear()


class JobTarget(Target):
    """One document. Its watchers' iterators end when it is deleted, or turns out not to be there."""

    def __init__(self, name: str, document: str) -> None:
        super().__init__(name)
        self._document = document
        self._present = False

    def selection(self) -> "Selection":
        from google.cloud.firestore_v1.types import Target as Selection

        return Selection(documents=Selection.DocumentsTarget(documents=[self._document]))

    @property
    def count(self) -> int | None:
        return int(self._present)

    def change(self, document: Any) -> None:
        self._present = True
        job = read(document)
        if job is not None:
            self.watchers.offer(job)

    def gone(self) -> None:
        self._present = False
        self.watchers.end()

    def reset(self) -> None:
        super().reset()
        self._present = False

    def settle(self) -> None:
        super().settle()
        if not self._present:
            self.watchers.end()


class OwnerTarget(Target):
    """The owner's jobs that changed since the store's time `since`; each watcher drops what is older than itself.

    It never resumes from a token. Each stream asks for what has changed since the last one had told all, so that an
    owner who is always watched does not gather jobs for longer than a stream lasts (connection.stream_s_max), and
    starting afresh reads a few seconds' jobs, not all since the first watcher. A RESET stays with Firestore, which
    tells again what this stream asked for: the emulator sends one with each change.
    """

    def __init__(self, name: str, parent: str, owner: str, since: datetime) -> None:
        super().__init__(name)
        self._parent = parent
        self._owner = owner
        self._since = since - timedelta(seconds=margin_s)

    def selection(self) -> "Selection":
        from google.cloud.firestore_v1.types import StructuredQuery, Value
        from google.cloud.firestore_v1.types import Target as Selection

        def condition(field: str, operator: str, value: Value) -> StructuredQuery.Filter:
            return StructuredQuery.Filter(
                field_filter=StructuredQuery.FieldFilter(
                    field=StructuredQuery.FieldReference(field_path=field), op=operator, value=value
                )
            )

        both = StructuredQuery.CompositeFilter(
            op="AND",
            filters=[
                condition("owner", "EQUAL", Value(string_value=self._owner)),
                condition("changed_at", "GREATER_THAN_OR_EQUAL", Value(timestamp_value=self._since)),
            ],
        )
        query = StructuredQuery(
            from_=[StructuredQuery.CollectionSelector(collection_id=Job.collection)],
            where=StructuredQuery.Filter(composite_filter=both),
        )
        return Selection(query=Selection.QueryTarget(parent=self._parent, structured_query=query))

    def told_until(self, change: Any) -> None:
        if change.HasField("read_time"):
            self._since = change.read_time.ToDatetime(tzinfo=UTC) - timedelta(seconds=margin_s)

    def change(self, document: Any) -> None:
        job = read(document)
        if job is not None:
            self.watchers.offer(job, document.update_time.ToDatetime(tzinfo=UTC))


def read(document: Any) -> Job | None:
    """The job in a document, a protobuf message; None, and a line in the log, if it cannot be read."""
    from google.cloud.firestore_v1.types import Value

    try:
        return from_fields(Job, {name: to_python(Value.wrap(value)) for name, value in document.fields.items()})
    except Exception as exc:
        # Perhaps from a version that knew more. One such document must not end what all others here watch.
        log.error("feed.unreadable", extra={"document": document.name, "error": type(exc).__name__})
        return None
