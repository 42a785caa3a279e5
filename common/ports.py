"""The four ports that handlers know, and the Engine that holds one of each; what stands behind them lives elsewhere."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Generic, Protocol, TypeVar

from common.job import Job
from common.messages import Message, Topic
from common.records import Record

R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)


@dataclass(frozen=True, slots=True)
class Stored(Generic[R_co]):
    """A record as the store had it: `etag` names this version, `read_at` is the store's time of reading."""

    record: R_co
    etag: str
    read_at: datetime


@dataclass(frozen=True, slots=True)
class Create:
    """Write a record that must not exist yet."""

    record: Record


@dataclass(frozen=True, slots=True)
class Update:
    """Replace a record that must still be the version `etag`."""

    record: Record
    etag: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a record, whatever its version; absent is fine."""

    kind: type[Record]
    key: str


Change = Create | Update | Delete


@dataclass(frozen=True, slots=True)
class Page(Generic[R_co]):
    """Some records, newest first, and where to go on; no token means that was all."""

    items: tuple[Stored[R_co], ...]
    next_token: str | None


class Store(Protocol):
    """Typed records with atomic commits. Every method raises Unavailable when the store does not answer."""

    async def get(self, kind: type[R], key: str) -> Stored[R] | None:
        """The record, or None. Raises Unavailable, and logs `record.unreadable`, if a later version wrote it."""
        ...

    async def commit(self, changes: Sequence[Change], *, save_id: str) -> tuple[Stored[Record] | None, ...]:
        """Apply all changes or none; answer what was written, in order (None for a Delete).

        Raises Conflict if a Create exists or an Update's version has moved, unless the record there
        carries this `save_id`: then the same commit was applied before and its answer lost, and it
        succeeds. So the same commit may be sent again. `changed_at` of every written record becomes
        the store's time, which may stand still for a millisecond. Raises Rejected("unsafe_record") for
        what Firestore would refuse.
        """
        ...

    async def page(self, kind: type[R], *, owner: str, limit: int, token: str | None = None) -> Page[R]:
        """The owner's records by `created_at`, newest first. Raises Rejected for a token it did not give.

        One that cannot be read is logged and left out, here and below, so a page may come short and not be the last.
        """
        ...

    async def changed(self, kind: type[R], *, owner: str, since: datetime, limit: int) -> tuple[Stored[R], ...]:
        """The owner's records with `changed_at >= since`, oldest change first."""
        ...

    async def due(self, kind: type[R], *, shards: Sequence[str], before: datetime, limit: int) -> tuple[Stored[R], ...]:
        """Records of up to 30 shards with `wake_at <= before`, the longest due first.

        One that cannot be read is left out, so that it hides nothing behind it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Blob:
    """An object as its bucket describes it. `generation` tells one writing of a name from the next."""

    bucket: str
    name: str
    generation: int
    size: int
    content_type: str
    created_at: datetime
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request that anyone may send until `expires_at`, exactly as it stands here."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str]
    expires_at: datetime


class BlobStore(Protocol):
    """Objects that are written once. Every method raises Unavailable when the bucket does not answer."""

    async def put(
        self, bucket: str, name: str, data: bytes | Path, *, content_type: str, metadata: Mapping[str, str]
    ) -> Blob:
        """Write the object if the name is free. Raises Conflict if it is not: who comes second adopts what is there."""
        ...

    async def stat(self, bucket: str, name: str) -> Blob | None:
        """What is there, or None."""
        ...

    async def download(self, bucket: str, name: str, target: Path, *, generation: int | None = None) -> Blob:
        """Put the object at the new file `target`, for reading: it may be the store's own file under a second name.

        Raises NotFound if it, or that generation, is gone.
        """
        ...

    async def read(self, bucket: str, name: str) -> bytes:
        """The object's bytes. Raises NotFound."""
        ...

    async def delete(self, bucket: str, name: str) -> None:
        """Remove the object; absent is fine."""
        ...

    async def sign_put(
        self, bucket: str, name: str, *, content_type: str, bytes_max: int, expires_s: int
    ) -> SignedRequest:
        """A V4 signed PUT that fixes content type, a length of 1 to `bytes_max`, and that the name is free."""
        ...

    async def sign_get(self, bucket: str, name: str, *, expires_s: int) -> SignedRequest:
        """A V4 signed GET."""
        ...


class EventBus(Protocol):
    """At-least-once topics. What is published is pushed to the topic's route, perhaps twice, late or out of order."""

    async def publish(self, topic: Topic, message: Message, *, event_id: str | None = None) -> str:
        """Hand the fact over for good; answers the bus's message id. Raises Unavailable if that is not certain."""
        ...


class Feed(Protocol):
    """Changes as they happen: subscribed first, then the present state, then each newer one; slow readers skip some."""

    def watch_job(self, job_id: str) -> AbstractAsyncContextManager[AsyncIterator[Job]]:
        """One job's states, revisions only rising; ends when the job is erased."""
        ...

    def watch_owner(self, owner: str) -> AbstractAsyncContextManager[AsyncIterator[Job]]:
        """Every change of the owner's jobs from now on; each job's revisions only rise."""
        ...


@dataclass(frozen=True, slots=True)
class FirestoreToken:
    """A Firebase custom token that opens one owner's jobs, and the database they are in."""

    token: str = field(repr=False)
    expires_at: datetime
    project_id: str
    database: str


async def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Engine:
    """One of each port, and the clock, ids and randomness that handlers take from here and nowhere else.

    `push_key` answers the public key that signs the bus's pushes under a `kid`, or None if there is none such.
    `firestore_token` makes a token for an owner, where the store is one that clients may listen to themselves. It
    raises Rejected("invalid_request") for an owner that fits no token, and Unavailable.
    """

    store: Store
    blobs: BlobStore
    bus: EventBus
    feed: Feed
    now: Callable[[], datetime]
    new_id: Callable[[], str]
    random: Random
    push_key: Callable[[str], Awaitable[object | None]]
    aclose: Callable[[], Awaitable[None]] = _nothing
    firestore_token: Callable[[str], Awaitable[FirestoreToken]] | None = None
