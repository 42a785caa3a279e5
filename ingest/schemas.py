"""The bodies that the public ingest API takes and gives; no behaviour beyond validation."""

from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from common.job import Kind, Status
from common.views import JobView

prompt_chars_max = 1000
Label = Annotated[str, StringConstraints(min_length=1, max_length=64)]
# A job begins as awaiting_upload, and what it begins as is the answer to POST, never news.
Told = Literal[
    Status.PENDING, Status.PROCESSING, Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED
]  # fmt: skip


class WebhookRequest(BaseModel):
    """Where to send signed news of the job, and of which statuses; without `events`, of every end."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, StringConstraints(max_length=2000)]
    events: list[Told] = Field(
        default=[Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED],
        min_length=1,
        max_length=6,
        description="`pending` is news of a portrait only: an image begins with it.",
    )

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"https", "http"} or not parts.hostname or parts.username or parts.port == 0:
            raise ValueError("must be an absolute http(s) URL without a user name")
        if not url.isprintable() or " " in url:
            raise ValueError("must hold no spaces or control characters")
        return url


class JobRequest(BaseModel):
    """A new job. A portrait is made from a photo that is uploaded next; an image from `prompt` alone."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    kind: Kind = Kind.PORTRAIT
    style: Label | None = Field(None, description="A named recipe; `corporate` for portraits, `photo` for images.")
    prompt: str | None = Field(None, description="1 to 1,000 characters; needed for an image.")
    negative_prompt: str | None = Field(None, description="What the picture must not show; up to 1,000 characters.")
    aspect_ratio: Label | None = Field(None, examples=["3:4"])
    size: Label | None = Field(None, examples=["1K"])
    num_images: int = Field(1, ge=1, le=4, strict=True)
    model: Label | None = None
    content_type: Literal["image/jpeg", "image/png", "image/webp"] = Field(
        "image/jpeg", description="What will be uploaded; the signed URL takes no other type."
    )
    metadata: dict[Label, Annotated[str, StringConstraints(max_length=256)]] = Field(
        default_factory=dict, max_length=16, description="Up to 16 strings of yours, returned with the job."
    )
    webhook: WebhookRequest | None = None

    @field_validator("metadata")
    @classmethod
    def _storable(cls, metadata: dict[str, str]) -> dict[str, str]:
        # Firestore keeps such names for itself.
        if any(name.startswith("__") and name.endswith("__") for name in metadata):
            raise ValueError("names must not begin and end with two underscores")
        return metadata


class JobList(BaseModel):
    """One page of the caller's jobs, newest first, with API links only."""

    jobs: list[JobView]
    next_page_token: str | None


class FirestoreAccess(BaseModel):
    """What an app needs to listen to its jobs in Firestore by itself; docs/firestore.md shows how."""

    token: str = Field(description="A Firebase custom token, for `signInWithCustomToken`.")
    expires_at: datetime = Field(description="When the token, and what was signed in with it, stop opening anything.")
    project_id: str
    database: str = Field(examples=["(default)"])
    collection: str = Field(examples=["jobs"])
    owner: str = Field(description="What a query must ask for: `where owner == …`.", examples=["key:acme"])
