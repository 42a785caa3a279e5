"""The facts that travel on topics, and their JSON; nothing here publishes or handles them."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from common.job import Status


class Topic(StrEnum):
    """Each topic has one push subscription, so one private app reads it."""

    UPLOAD_FINALIZED = "upload-finalized"
    JOB_QUEUED = "job-queued"
    JOB_QUEUED_BATCH = "job-queued-batch"
    JOB_CHANGED = "job-changed"
    DELIVERY_DUE = "delivery-due"


class Message(BaseModel):
    """A frozen fact. Unknown fields are ignored, so that old and new versions can talk."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    def encode(self) -> bytes:
        """UTF-8 JSON under the names the topic uses."""
        return self.model_dump_json(by_alias=True).encode()


class UploadFinalized(Message):
    """An object is complete in a bucket: the part of Cloud Storage's JSON_API_V1 that we read.

    https://cloud.google.com/storage/docs/pubsub-notifications#payload; size and generation are decimal strings there.
    """

    bucket: str
    name: str
    generation: int
    size: int
    content_type: str = Field(alias="contentType", default="application/octet-stream")
    time_created: datetime = Field(alias="timeCreated")
    metadata: dict[str, str] = Field(default_factory=dict)


class JobQueued(Message):
    """A job waits for a worker. `fence` says how often it had been claimed when it was queued."""

    job_id: str
    fence: int = 0


class JobChanged(Message):
    """A job reached a status. `event_id` is the same on every repetition."""

    job_id: str
    event_id: str
    status: Status


class DeliveryDue(Message):
    """A delivery should be tried now."""

    delivery_id: str
