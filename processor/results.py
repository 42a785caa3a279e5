"""Pictures in bucket `results`: checked, kept once under a known name, and adopted after a crash."""

import asyncio
import tempfile
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

from common.errors import Conflict, Rejected, Retryable
from common.job import Attempt, Image, Job
from common.names import result_name, thumbnail_name
from common.ports import Blob, Engine
from common.records import Lease
from common.settings import Settings
from common.telemetry import logger
from common.workers import WorkerDied, Workers, WorkerTimeout
from processor.calls import Called
from processor.outcomes import Answer
from processor.pictures import Picture, check_picture

log = logger(__name__)


class Results:
    """Writes each picture once. Its metadata say which attempt made it, so that adoption also settles the ledger."""

    def __init__(self, engine: Engine, settings: Settings, workers: Workers) -> None:
        self._engine = engine
        self._settings = settings
        self._workers = workers

    async def keep(
        self, job: Job, lease: Lease, answers: Mapping[int, Called]
    ) -> tuple[tuple[Image, ...], tuple[Attempt, ...]]:
        """Images and ledger after checking and storing the answers; a damaged picture leaves its image pending."""
        kept = await asyncio.gather(*(self._keep(job, lease, image, answers.get(image.index)) for image in job.images))
        damaged = {(image.index, lease.fence) for image, sound in kept if not sound}
        attempts = tuple(
            a.model_copy(update={"outcome": "bad_output"}) if (a.image, a.fence) in damaged else a for a in job.attempts
        )
        return tuple(image for image, _ in kept), attempts

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
                image = _image(job, image, blob)
                attempts = tuple(_settled_by(attempt, image.index, blob) for attempt in attempts)
            images.append(image)
        return tuple(images), attempts

    async def remove(self, job: Job) -> None:
        """Take away what a late worker stored for a job that ended without it."""
        for image in job.images:
            for name in (result_name(job.owner, job.id, image.index), thumbnail_name(job.owner, job.id, image.index)):
                await self._engine.blobs.delete(self._settings.results_bucket, name)

    async def _keep(self, job: Job, lease: Lease, image: Image, call: Called | None) -> tuple[Image, bool]:
        if call is None or call.answer is None:
            return image, True
        with tempfile.TemporaryDirectory(prefix="darkroom-") as folder:
            source, thumbnail = Path(folder, "result"), Path(folder, "thumbnail")
            await asyncio.to_thread(source.write_bytes, call.answer.image)
            try:
                picture = await self._workers.run(
                    check_picture, source, thumbnail, timeout_s=self._settings.image_timeout_s
                )
            except (Rejected, WorkerTimeout, WorkerDied) as exc:
                log.warning("result.damaged", extra={"job_id": job.id, "image": image.index, "why": type(exc).__name__})
                return image, False
            # The thumbnail first: where a result lies, its thumbnail lies too.
            await self._put(thumbnail_name(job.owner, job.id, image.index), thumbnail, "image/webp", {})
            name = result_name(job.owner, job.id, image.index)
            price = next(a.cost_usd for a in job.attempts if (a.image, a.fence) == (image.index, lease.fence))
            about = _describe(picture, call.answer, lease) | {"cost_usd": str(price)}
            blob = await self._put(name, source, picture.content_type, about)
        return _image(job, image, blob), True

    async def _put(self, name: str, path: Path, content_type: str, metadata: Mapping[str, str]) -> Blob:
        bucket = self._settings.results_bucket
        try:
            return await self._engine.blobs.put(bucket, name, path, content_type=content_type, metadata=metadata)
        except Conflict:
            blob = await self._engine.blobs.stat(bucket, name)
            if blob is None:
                raise Retryable("unavailable", "a result vanished while it was adopted") from None
            return blob


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
