"""A job as clients see it, the same in every answer, stream and webhook; nothing is read or decided here."""

import asyncio
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from common.errors import Unavailable
from common.job import Image, Job, JobError, Kind, Photo, Stage, Status, Timings, Webhook
from common.ledger import Attempt, Cost
from common.links import ResultLinks
from common.records import Model
from common.settings import Settings
from common.telemetry import logger

log = logger(__name__)


class Links(Model):
    """Absolute URLs of everything a client may want next."""

    self: str
    cancel: str
    events: str
    images: list[str]


class ImageView(Image):
    """An image; `url` and `thumbnail_url` are signed for at most an hour and only in a single job's answer."""

    url: str | None = Field(
        None,
        description="Where the finished image may be fetched without a token, for 45 minutes at least by default. Null"
        " in lists, and while signing is unavailable: then follow the job's `links.images`, or ask again.",
    )
    thumbnail_url: str | None = Field(
        None, description="The same for the thumbnail; by `links.images` it is `?variant=thumbnail`."
    )


class Upload(Model):
    """The one request that brings the photo: send exactly this method, URL and headers, with the file as body."""

    method: Literal["PUT"] = "PUT"
    url: str
    headers: dict[str, str]
    expires_at: datetime


class JobView(Model):
    """A job. The set of statuses may grow: `done` says whether it has ended."""

    id: str
    kind: Kind
    status: Status
    done: bool
    stage: Stage | None
    style: str
    prompt: str | None
    negative_prompt: str | None
    aspect_ratio: str
    size: str
    num_images: int
    model: str
    lane: str
    stand_in: bool = Field(description="Drawn by the local stand-in, not by Gemini.")
    input: Photo | None
    images: list[ImageView]
    error: JobError | None
    partial: bool = Field(description="Completed, but some images failed.")
    attempts: list[Attempt] = Field(description="The ledger of calls to the model.")
    cost: Cost
    revision: int = Field(description="Rises with every change that is told.")
    reached: dict[Status, int] = Field(description="At which revision each status was reached.")
    timings: Timings
    created_at: datetime
    changed_at: datetime | None
    finished_at: datetime | None
    upload_expires_at: datetime | None
    deadline_at: datetime
    delete_at: datetime
    metadata: dict[str, str]
    webhook: Webhook | None
    links: Links
    upload: Upload | None = None


def job_view(job: Job, settings: Settings) -> JobView:
    """The view with API links only, as lists, streams and webhooks show it."""
    base = f"{settings.api_url}/v1/jobs/{job.id}"
    links = Links(
        self=base,
        cancel=f"{base}/cancel",
        events=f"{settings.events_url}/v1/jobs/{job.id}/events",
        images=[f"{base}/images/{image.index}" for image in job.images],
    )
    fields: dict[str, Any] = {name: getattr(job, name) for name in JobView.model_fields if name in Job.model_fields}
    fields["images"] = [ImageView.model_construct(**dict(image)) for image in job.images]
    return JobView.model_construct(**fields, done=job.done, links=links, upload=None)


async def signed_view(job: Job, settings: Settings, links: ResultLinks) -> JobView:
    """The view with signed URLs for every finished image and thumbnail; null where signing is unavailable.

    A job that is there can be shown without: what its images look like is one request further, at `links.images`.
    """
    view = job_view(job, settings)
    names = [name for image in view.images for name in (image.name, image.thumbnail_name) if name is not None]
    # Together, because on Google Cloud each signature is a request to IAM; at most two for each of four images.
    answers = await asyncio.gather(*map(links.url, names), return_exceptions=True)
    urls: dict[str | None, str] = {}
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, str):
            urls[name] = answer
        elif not isinstance(answer, Unavailable):
            raise answer
    if len(urls) < len(names):
        log.warning("links.unsigned", extra={"job_id": job.id, "missing": len(names) - len(urls)})
    images = [
        image.model_copy(update={"url": urls.get(image.name), "thumbnail_url": urls.get(image.thumbnail_name)})
        for image in view.images
    ]
    return view.model_copy(update={"images": images})
