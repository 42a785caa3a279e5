"""A job and its state machine: the only place where a status changes. No storage, no clock, no network."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic import Field

from common.errors import CODES, Rejected
from common.ledger import Attempt, Billed, Cost
from common.records import Model, Record


class Status(StrEnum):
    """Where a job stands. The set may grow: clients look at `done` instead of listing ends."""

    AWAITING_UPLOAD = "awaiting_upload"
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Stage(StrEnum):
    """What goes on right now inside a status, for a person who waits."""

    VALIDATING = "validating"
    QUEUED = "queued"
    GENERATING = "generating"
    STORING = "storing"


S = Status

# The whole machine; docs/job.md draws it and a test compares the two.
TRANSITIONS: Mapping[Status, frozenset[Status]] = MappingProxyType(
    {
        S.AWAITING_UPLOAD: frozenset({S.PENDING, S.FAILED, S.CANCELLED, S.EXPIRED}),
        S.PENDING: frozenset({S.PROCESSING, S.FAILED, S.CANCELLED}),
        S.PROCESSING: frozenset({S.COMPLETED, S.FAILED, S.CANCELLED}),
        S.COMPLETED: frozenset(),
        S.FAILED: frozenset(),
        S.CANCELLED: frozenset(),
        S.EXPIRED: frozenset(),
    }
)


class Kind(StrEnum):
    """A portrait starts from a photo, an image from words alone."""

    PORTRAIT = "portrait"
    IMAGE = "image"


class Original(Model):
    """The photo as it was uploaded; width and height in pixels as a person sees it, upright."""

    content_type: str
    width: int
    height: int
    bytes: int


class Photo(Model):
    """The photo as the model gets it: uprighted, shrunk, without metadata, in bucket `inputs`."""

    name: str
    generation: int
    sha256: str
    width: int
    height: int
    bytes: int
    original: Original


class JobError(Model):
    """Why a job or one of its images ended without a picture, in words for a person."""

    code: str
    message: str
    retryable: bool
    billed: Billed
    advice: str

    @classmethod
    def of(cls, code: str, *, billed: Billed = "no", detail: str = "") -> "JobError":
        """Fill in title and advice from the table of codes."""
        entry = CODES[code]
        return cls(
            code=code, message=detail or entry.title, retryable=entry.retryable, billed=billed, advice=entry.advice
        )


class Image(Model):
    """One picture asked for: `pending` until it is kept or given up; sizes in pixels and bytes."""

    index: int
    status: Literal["pending", "completed", "failed"] = "pending"
    name: str | None = None
    thumbnail_name: str | None = None
    content_type: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    cached: bool = False
    error: JobError | None = None


class Timings(Model):
    """Milliseconds: until the photo was there, its check, the wait for a worker, the model's own time."""

    upload_ms: int | None = None
    ingest_ms: int | None = None
    queued_ms: int | None = None
    model_ms: int | None = None


class Webhook(Model):
    """Where the owner wants to hear of the job, and of which statuses."""

    url: str
    events: tuple[Status, ...] = (S.COMPLETED, S.FAILED, S.CANCELLED, S.EXPIRED)


class Job(Record):
    """What its owner may see of a job. Every method returns the next version and leaves this one alone."""

    collection: ClassVar[str] = "jobs"
    free_form: ClassVar[tuple[str, ...] | None] = ("metadata",)
    derived: ClassVar[tuple[str, ...]] = ("done",)

    id: str
    owner: str
    kind: Kind
    style: str
    prompt: str | None
    negative_prompt: str | None
    aspect_ratio: str
    size: str
    num_images: int = Field(ge=1, le=4)
    model: str
    lane: Literal["interactive", "batch"] = "interactive"
    status: Status
    stage: Stage | None
    input: Photo | None = None
    images: tuple[Image, ...]
    error: JobError | None = None
    partial: bool = False
    stand_in: bool = False
    attempts: tuple[Attempt, ...] = ()
    cost: Cost
    revision: int = 1
    reached: dict[Status, int]
    timings: Timings = Timings()
    created_at: datetime
    changed_at: datetime | None = None
    queued_at: datetime | None = None
    finished_at: datetime | None = None
    upload_expires_at: datetime | None = None
    deadline_at: datetime
    delete_at: datetime
    metadata: dict[str, str] = Field(default_factory=dict)
    webhook: Webhook | None = None

    @property
    def key(self) -> str:
        """The job's id."""
        return self.id

    @property
    def done(self) -> bool:
        """Whether it has ended; an end never changes."""
        return not TRANSITIONS[self.status]

    def event_id(self, status: Status) -> str:
        """The id of the news that `status` was reached: the same on every channel and every repetition."""
        return f"{self.id}.{self.reached[status]}"

    def validating(self) -> "Job":
        """The photo is there and its check has begun."""
        return self._show(stage=Stage.VALIDATING)

    def accept(self, photo: Photo, timings: Timings, now: datetime, deadline_at: datetime) -> "Job":
        """The photo is sound: the job waits for a worker, and its time limit starts afresh."""
        return self._advance(
            S.PENDING, stage=Stage.QUEUED, input=photo, timings=timings, queued_at=now, deadline_at=deadline_at
        )

    def send(self, images: tuple[Image, ...], attempts: tuple[Attempt, ...], now: datetime) -> "Job":
        """A worker has claimed it and is about to call: the ledger as it stands, with a `sent` line for each call."""
        changes = {"images": images, "stage": Stage.GENERATING, **self._ledger(attempts)}
        if self.status is S.PROCESSING:
            return self._show(**changes)
        waited = now - (self.queued_at or self.created_at)
        timings = self.timings.model_copy(update={"queued_ms": max(0, round(waited.total_seconds() * 1000))})
        return self._advance(S.PROCESSING, timings=timings, **changes)

    def settle(
        self, images: tuple[Image, ...], attempts: tuple[Attempt, ...], stage: Stage, model_ms: int | None
    ) -> "Job":
        """The calls came back: ledger and cost follow, and `stage` says whether pictures are being kept.

        `model_ms` is the longest call of this claim, or None if none brought a picture.
        """
        timings = self.timings.model_copy(update={"model_ms": self.timings.model_ms if model_ms is None else model_ms})
        return self._show(images=images, stage=stage, timings=timings, **self._ledger(attempts))

    def settle_silently(self, attempts: tuple[Attempt, ...]) -> "Job":
        """The ledger of a job that ended while a call was under way: cost changes, nothing is told."""
        return self.model_copy(update=self._ledger(attempts))

    def finish(self, images: tuple[Image, ...], attempts: tuple[Attempt, ...], now: datetime) -> "Job":
        """Every image is kept or given up: completed if one is there, failed with the first reason if none."""
        failed = [image.error for image in images if image.error is not None]
        changes = {"images": images, "finished_at": now, **self._ledger(attempts)}
        if len(failed) == len(images):
            return self._advance(S.FAILED, error=failed[0], **changes)
        return self._advance(S.COMPLETED, partial=bool(failed), **changes)

    def give_up(self, error: JobError, now: datetime, attempts: tuple[Attempt, ...] | None = None) -> "Job":
        """End it with what there is: every image still pending fails with `error`, and the job if none was kept."""
        images = tuple(
            image.model_copy(update={"status": "failed", "error": error}) if image.status == "pending" else image
            for image in self.images
        )
        if any(image.status == "completed" for image in images):
            return self.finish(images, attempts or self.attempts, now)
        ledger = self._ledger(attempts or self.attempts)
        return self._advance(S.FAILED, error=error, images=images, finished_at=now, **ledger)

    def cancel(self, now: datetime) -> "Job":
        """Its owner wants it no more. A call already sent still shows in the ledger and may cost."""
        return self._advance(S.CANCELLED, finished_at=now)

    def expire(self, now: datetime) -> "Job":
        """No photo came within the upload window and its grace."""
        return self._advance(S.EXPIRED, error=JobError.of("upload_expired"), finished_at=now)

    def _advance(self, to: Status, **changes: object) -> "Job":
        if to not in TRANSITIONS[self.status]:
            raise Rejected("already_ended", f"job {self.id} is {self.status} and cannot become {to}")
        stage = changes.pop("stage", None)
        reached = {**self.reached, to: self.revision + 1}
        return self.model_copy(
            update={"status": to, "stage": stage, "revision": self.revision + 1, "reached": reached, **changes}
        )

    def _show(self, **changes: object) -> "Job":
        if self.done:
            raise Rejected("already_ended", f"job {self.id} is {self.status}; an end never changes")
        return self.model_copy(update={"revision": self.revision + 1, **changes})

    def _ledger(self, attempts: tuple[Attempt, ...]) -> dict[str, object]:
        settled = sum((attempt.cost_usd for attempt in attempts), Decimal(0))
        return {"attempts": attempts, "cost": self.cost.model_copy(update={"settled_usd": settled})}
