"""The records the services keep beside the job, and the base of them all. The engines say how they are stored."""

from datetime import datetime
from enum import StrEnum
from typing import ClassVar
from zlib import crc32

from pydantic import BaseModel, ConfigDict

SHARDS = 16


class Model(BaseModel):
    """A frozen value. Unknown fields are dropped on reading, so a newer version's records stay readable."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Record(Model):
    """Something a Store keeps under `(collection, key)`.

    A record with work owed has a `wake_at` and a `desk`, the service that owes it; the store finds it
    by shard. A record that is listed has `owner`, `created_at` and `changed_at`; the store sets
    `changed_at` to its own time at every commit. One with a `delete_at` is rubbish from then on (Firestore's TTL).
    """

    collection: ClassVar[str]
    free_form: ClassVar[tuple[str, ...] | None] = None
    """Fields whose shape comes from strangers, to be checked at every commit (0.1 ms a record); None: check all."""
    derived: ClassVar[tuple[str, ...]] = ()
    """Properties that stand beside the fields in Firestore, for whoever listens to the document there."""

    @property
    def key(self) -> str:
        """The record's name within its collection: 1-1500 bytes, no slash (Firestore's rule)."""
        raise NotImplementedError

    @property
    def shard(self) -> str | None:
        """Where the sweep looks for it while it has a `wake_at`: desk and hash, spread over 16."""
        desk = getattr(self, "desk", None)
        return None if desk is None else shard_names(desk)[crc32(self.key.encode()) % SHARDS]


def shard_names(desk: str) -> tuple[str, ...]:
    """All shards of one desk; a sweep visits each."""
    return tuple(f"{desk}-{number}" for number in range(SHARDS))


class Desk(StrEnum):
    """The service that owes a record its next step, and so sweeps it."""

    INGEST = "ingest"
    PROCESSOR = "processor"
    NOTIFIER = "notifier"


class Lease(Model):
    """One worker's claim on a job: its secret token, its fencing number, and its end by the store's clock."""

    token: str
    fence: int
    expires_at: datetime


class Work(Record):
    """What the services owe a job, private to them: one per job, gone quiet when the job has ended and was told.

    `untold` are statuses whose `job-changed` is not known to be published, `unqueued` the same for
    `job-queued`. `fence` counts claims. `waits` counts hand-backs that cost nothing, for the backoff.
    """

    collection: ClassVar[str] = "work"
    free_form: ClassVar[tuple[str, ...] | None] = ()

    job_id: str
    owner: str
    desk: Desk
    wake_at: datetime | None
    deadline_at: datetime
    lease: Lease | None = None
    fence: int = 0
    delete_at: datetime | None = None
    waits: int = 0
    untold: tuple[str, ...] = ()
    unqueued: bool = False
    last_code: str | None = None

    @property
    def key(self) -> str:
        """The job's id."""
        return self.job_id


class DeliveryStatus(StrEnum):
    """A delivery waits, has arrived, or has been given up."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DeliveryAttempt(Model):
    """One POST to a webhook: when, what it answered (None: nothing), and how long it took."""

    at: datetime
    http_status: int | None
    duration_ms: int
    error: str | None = None


class Delivery(Record):
    """One piece of news on its way to one webhook; its id is the event's id, so a repetition is recognised.

    `event` is the status that was reached.
    """

    collection: ClassVar[str] = "deliveries"
    free_form: ClassVar[tuple[str, ...] | None] = ()

    event_id: str
    job_id: str
    owner: str
    url: str
    event: str
    status: DeliveryStatus
    desk: Desk = Desk.NOTIFIER
    wake_at: datetime | None
    created_at: datetime
    changed_at: datetime | None = None
    delete_at: datetime | None = None
    attempts: tuple[DeliveryAttempt, ...] = ()

    @property
    def key(self) -> str:
        """The event's id: one webhook a job, so one delivery an event."""
        return self.event_id
