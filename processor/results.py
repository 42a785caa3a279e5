"""Pictures in bucket `results`: checked, kept once under a known name, and adopted after a crash."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

from common.errors import Conflict, Rejected, Retryable
from common.job import Image, Job
from common.ledger import Attempt
from common.names import result_name, thumbnail_name
from common.ports import Blob, Engine
from common.records import Lease
from common.scratch import scratch_files
from common.settings import Settings
from common.telemetry import logger
from common.workers import WorkerDied, Workers, WorkerTimeout
from processor.outcomes import Answer
from processor.patience import Patience
from processor.pictures import Picture, check_picture

log = logger(__name__)


class Results:
    """Writes each picture once. Its metadata say which attempt made it, so that adoption also settles the ledger.

    The result comes first and its thumbnail is made from what lies under its name, so that the two always match.
    """

    def __init__(self, engine: Engine, settings: Settings, workers: Workers) -> None:
        self._engine = engine
        self._settings = settings
        self._workers = workers

    async def keep(
        self, job: Job, lease: Lease, answers: Mapping[int, Answer], patience: Patience
    ) -> tuple[tuple[Image, ...], tuple[Attempt, ...]]:
        """Images and ledger after checking and storing the answers; a damaged picture leaves its image pending.

        What our own bucket or workers would not take within the lease stays pending too.
        """
        pending = [image for image in job.images if image.index in answers]
        keeping = (self._keep(job, lease, image, answers[image.index], patience) for image in pending)
        kept = dict(zip((i.index for i in pending), await asyncio.gather(*keeping), strict=True))
        damaged = {(index, lease.fence) for index, image in kept.items() if image is None}
        attempts = tuple(
            a.model_copy(update={"outcome": "bad_output"}) if (a.image, a.fence) in damaged else a for a in job.attempts
        )
        return tuple(kept.get(image.index) or image for image in job.images), attempts

    async def adopt(self, job: Job, attempts: tuple[Attempt, ...]) -> tuple[tuple[Image, ...], tuple[Attempt, ...]]:
        """Images and ledger after taking over what an earlier claim stored but did not live to write down."""
        images = []
        for image in job.images:
            blob = None
            if image.status == "pending":
                name = result_name(job.owner, job.id, image.index)
                blob = await self._engine.blobs.stat(self._settings.results_bucket, name)
            if blob is not None:
                log.info("result.adopted", extra={"job_id": job.id, "image": image.index})
                await self._thumbnail_of(job, image, blob)
                image = _image(job, image, blob)
                attempts = tuple(_settled_by(attempt, image.index, blob) for attempt in attempts)
            images.append(image)
        return tuple(images), attempts

    async def remove(self, job: Job) -> None:
        """Take away what a late worker stored for an ended job that does not name it. Safe to repeat."""
        for image in job.images:
            if image.name is None:
                for name in (
                    result_name(job.owner, job.id, image.index),
                    thumbnail_name(job.owner, job.id, image.index),
                ):
                    await self._engine.blobs.delete(self._settings.results_bucket, name)

    async def _keep(self, job: Job, lease: Lease, image: Image, answer: Answer, patience: Patience) -> Image | None:
        """The image, kept; unchanged if it could not be; None if the picture is damaged."""
        with scratch_files(self._settings.scratch_dir, 2) as (source, thumbnail):
            try:
                await asyncio.to_thread(source.write_bytes, answer.image)
                picture = await patience.insist(lambda: self._check(source, thumbnail))
            except Rejected:
                log.warning("result.damaged", extra={"job_id": job.id, "image": image.index})
                return None
            except (Retryable, OSError) as exc:
                log.error("result.unkept", extra={"job_id": job.id, "image": image.index, "why": type(exc).__name__})
                return image
            price = next(a.cost_usd for a in job.attempts if (a.image, a.fence) == (image.index, lease.fence))
            about = _describe(picture, answer, lease) | {"cost_usd": str(price)}
            try:
                blob = await patience.insist(lambda: self._put(job, image, source, picture, about, thumbnail))
            except Retryable as exc:
                log.error("result.unkept", extra={"job_id": job.id, "image": image.index, "code": exc.code})
                return image
        return _image(job, image, blob)

    async def _check(self, source: Path, thumbnail: Path) -> Picture:
        try:
            return await self._workers.run(check_picture, source, thumbnail, timeout_s=self._settings.image_timeout_s)
        except (WorkerTimeout, WorkerDied) as exc:
            raise Rejected("bad_output", "reading the picture took more time or memory than we allow") from exc

    async def _put(
        self, job: Job, image: Image, source: Path, picture: Picture, about: Mapping[str, str], thumbnail: Path
    ) -> Blob:
        bucket, name = self._settings.results_bucket, result_name(job.owner, job.id, image.index)
        try:
            blob = await self._engine.blobs.put(bucket, name, source, content_type=picture.content_type, metadata=about)
        except Conflict:
            # We came second, or our first attempt was written although it failed: what is there is the picture.
            there = await self._engine.blobs.stat(bucket, name)
            if there is None:
                raise Retryable("unavailable", "a result vanished while it was adopted") from None
            if there.metadata["sha256"] != picture.sha256:
                await self._thumbnail_of(job, image, there)
                return there
            blob = there
        await self._put_thumbnail(job, image, thumbnail)
        return blob

    async def _thumbnail_of(self, job: Job, image: Image, blob: Blob) -> None:
        """Make the thumbnail of a stored result if it has none."""
        name = thumbnail_name(job.owner, job.id, image.index)
        if await self._engine.blobs.stat(blob.bucket, name) is not None:
            return
        with scratch_files(self._settings.scratch_dir, 2) as (source, thumbnail):
            await self._engine.blobs.download(blob.bucket, blob.name, source, generation=blob.generation)
            await self._check(source, thumbnail)
            await self._put_thumbnail(job, image, thumbnail)

    async def _put_thumbnail(self, job: Job, image: Image, thumbnail: Path) -> None:
        name = thumbnail_name(job.owner, job.id, image.index)
        with suppress(Conflict):
            await self._engine.blobs.put(
                self._settings.results_bucket, name, thumbnail, content_type="image/webp", metadata={}
            )


def _describe(picture: Picture, answer: Answer, lease: Lease) -> dict[str, str]:
    return {
        "fence": str(lease.fence),
        "width": str(picture.width),
        "height": str(picture.height),
        "sha256": picture.sha256,
        "input_tokens": str(answer.input_tokens),
        "output_tokens": str(answer.output_tokens),
        "model_version": answer.model_version,
    }


def _image(job: Job, image: Image, blob: Blob) -> Image:
    return image.model_copy(
        update={
            "status": "completed",
            "name": blob.name,
            "thumbnail_name": thumbnail_name(job.owner, job.id, image.index),
            "content_type": blob.content_type,
            "width": int(blob.metadata["width"]),
            "height": int(blob.metadata["height"]),
            "bytes": blob.size,
            "sha256": blob.metadata["sha256"],
            "error": None,
        }
    )


def _settled_by(attempt: Attempt, index: int, blob: Blob) -> Attempt:
    about = blob.metadata
    if attempt.image != index or str(attempt.fence) != about["fence"]:
        return attempt
    update = {
        "state": "settled",
        "outcome": "image",
        "billed": "yes",
        "input_tokens": int(about["input_tokens"]),
        "output_tokens": int(about["output_tokens"]),
        "cost_usd": Decimal(about["cost_usd"]),
    }
    return attempt.model_copy(update=update)
