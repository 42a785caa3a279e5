"""What intake does: open a job, take in its photo, cancel it, and find what never came. No HTTP here."""

from datetime import datetime, timedelta
from pathlib import Path

from common import names
from common.errors import Conflict, NotFound, Rejected, Retryable
from common.job import Job, JobError, Kind, Original, Photo, Stage, Status, Timings
from common.messages import Topic, UploadFinalized
from common.ports import Blob, Engine
from common.records import Desk, Work
from common.saving import Task, create, ending, load, requeue, save, save_work, sweep_each, tell, try_tell
from common.scratch import scratch_files
from common.settings import Settings
from common.telemetry import logger
from common.workers import WorkerDied, Workers, WorkerTimeout
from ingest.imaging import ImageLimits, ShrunkPhoto, shrink
from ingest.orders import new_job
from ingest.schemas import JobRequest

log = logger(__name__)

# How soon the sweep first asks the bucket whether an unannounced upload is there; then the wait doubles.
first_look_s = 60
_races_max = 4


class Intake:
    """The ingest service's use cases, over the ports. `workers` is None in the public app, which opens no photo."""

    def __init__(self, engine: Engine, settings: Settings, workers: Workers | None = None) -> None:
        self._engine = engine
        self._settings = settings
        self._workers = workers
        self._limits = ImageLimits(
            upload_bytes_max=settings.upload_bytes_max,
            jpeg_pixels_max=settings.jpeg_pixels_max,
            png_pixels_max=settings.png_pixels_max,
            webp_pixels_max=settings.webp_pixels_max,
            edge_px=settings.input_edge_px,
        )

    def draft(self, owner: str, request: JobRequest) -> Job:
        """The job that a request asks for, checked against style and model, under an id of its own; nothing is saved.

        Raises Rejected with the code of the first wish that cannot be met.
        """
        return new_job(self._engine.new_id(), owner, request, self._engine.now(), self._settings)

    async def open_job(self, job: Job) -> Job:
        """Save a draft; an image is queued at once. Whatever its client must be told is to be had before."""
        now = self._engine.now()
        portrait = job.kind is Kind.PORTRAIT
        work = Work(
            job_id=job.id,
            owner=job.owner,
            desk=Desk.INGEST if portrait else Desk.PROCESSOR,
            wake_at=now + timedelta(seconds=first_look_s if portrait else self._settings.retell_s),
            deadline_at=job.deadline_at,
            delete_at=job.delete_at,
            unqueued=not portrait,
        )
        task = await create(self._engine, job, work)
        log.info("job.created", extra={"job_id": job.id, "kind": job.kind, "style": job.style})
        if not portrait:
            await try_tell(self._engine, task)
        return task.job.record

    async def cancel(self, owner: str, job_id: str) -> Job:
        """End the job now. Raises NotFound for unknown and for foreign jobs, Rejected("already_ended")."""
        for _ in range(_races_max):
            task = await load(self._engine, job_id)
            job, work = task.job.record, task.work.record
            if job.owner != owner:
                raise NotFound(f"there is no job {job_id}")
            now = self._engine.now()
            try:
                task = await save(self._engine, task, job.cancel(now), self._ending(work, now))
            except Conflict:
                continue
            await try_tell(self._engine, task)
            return task.job.record
        raise Conflict(f"job {job_id} keeps changing")

    async def take_upload(self, fact: UploadFinalized) -> None:
        """Check, upright, strip and shrink the photo; queue the job. Safe to repeat at any point.

        Raises Rejected for objects that are no upload of ours, Retryable while the job is unknown.
        """
        if fact.bucket != self._settings.uploads_bucket:
            raise Rejected("invalid_request", "only the uploads bucket starts work")
        owner, job_id = names.parse_upload_name(fact.name)
        for _ in range(_races_max):
            task = await self._awaiting(owner, job_id)
            if task is None:
                # Taken in before, or ended meanwhile: all that is left to do is tidying up.
                await self._engine.blobs.delete(fact.bucket, fact.name)
                return
            try:
                used = await self._check(task, fact)
            except Conflict:
                continue
            if used:
                await self._engine.blobs.delete(fact.bucket, fact.name)
            return
        raise Conflict(f"job {job_id} keeps changing")

    async def sweep(self) -> int:
        """Find uploads nobody announced, expire what never came, tell what stayed untold; answers how many."""
        return await sweep_each(self._engine, Desk.INGEST, self._look_after)

    async def _awaiting(self, owner: str, job_id: str) -> Task | None:
        try:
            task = await load(self._engine, job_id)
        except NotFound as exc:
            raise Retryable("unavailable", f"upload for job {job_id}, which does not exist yet") from exc
        if task.job.record.owner != owner:
            raise Rejected("not_found", "the upload lies in a folder of another owner")
        return task if task.job.record.status is Status.AWAITING_UPLOAD else None

    async def _check(self, task: Task, fact: UploadFinalized) -> bool:
        """Whether the photo was accepted or refused; False if it is not there any more but another one is."""
        job = task.job.record
        if job.stage is not Stage.VALIDATING:
            task = await save(self._engine, task, job.validating(), task.work.record)
            job = task.job.record
        try:
            photo = await self._shrink_and_keep(job, fact)
        except NotFound as exc:
            if await self._engine.blobs.stat(fact.bucket, fact.name) is not None:
                # Deleted and uploaded again: that photo has an event of its own.
                return False
            raise Retryable("unavailable", f"the photo of job {job.id} is not there (yet)") from exc
        except Rejected as exc:
            log.info("photo.refused", extra={"job_id": job.id, "code": exc.code})
            now = self._engine.now()
            failed = job.give_up(JobError.of(exc.code, detail=exc.detail), now)
            await tell(self._engine, await save(self._engine, task, failed, self._ending(task.work.record, now)))
            return True
        now = self._engine.now()
        accepted = job.accept(photo, _timings(job, fact, now), now, now + self._job_limit)
        work = task.work.record.model_copy(
            update={
                "desk": Desk.PROCESSOR,
                "wake_at": now + timedelta(seconds=self._settings.retell_s),
                "deadline_at": accepted.deadline_at,
                "unqueued": True,
            }
        )
        await tell(self._engine, await save(self._engine, task, accepted, work))
        return True

    async def _shrink_and_keep(self, job: Job, fact: UploadFinalized) -> Photo:
        name = names.input_name(job.owner, job.id)
        with scratch_files(self._settings.scratch_dir, 2) as (source, target):
            if fact.size > self._limits.upload_bytes_max:
                raise Rejected("upload_too_large")
            await self._engine.blobs.download(fact.bucket, fact.name, source, generation=fact.generation)
            shrunk = await self._shrink(source, target)
            try:
                blob = await self._engine.blobs.put(
                    self._settings.inputs_bucket, name, target, content_type="image/jpeg", metadata=_describe(shrunk)
                )
            except Conflict:
                # An earlier delivery of this upload was cut off between the object and the job.
                blob = await self._adopt(name)
        return _photo(blob)

    async def _shrink(self, source: Path, target: Path) -> ShrunkPhoto:
        assert self._workers is not None, "the public app takes in no photos"
        try:
            return await self._workers.run(
                shrink, source, target, self._limits, timeout_s=self._settings.image_timeout_s
            )
        except (WorkerTimeout, WorkerDied) as exc:
            raise Rejected("image_too_complex", "reading the image took more time or memory than we allow") from exc

    async def _adopt(self, name: str) -> Blob:
        blob = await self._engine.blobs.stat(self._settings.inputs_bucket, name)
        if blob is None:
            raise Retryable("unavailable", "the checked photo vanished while it was adopted")
        return blob

    async def _look_after(self, task: Task) -> None:
        job, work, now = task.job.record, task.work.record, task.work.read_at
        if job.done:
            await self._tidy(task)
        elif job.status is Status.AWAITING_UPLOAD:
            await self._look_for_upload(task, job, work, now)

    async def _tidy(self, task: Task) -> None:
        """No upload can come any more: remove what came too late, and let the job sleep."""
        job, work = task.job.record, task.work.record
        for bucket, name in (
            (self._settings.uploads_bucket, names.upload_name(job.owner, job.id)),
            (self._settings.inputs_bucket, names.input_name(job.owner, job.id)),
        ):
            await self._engine.blobs.delete(bucket, name)
        await save_work(self._engine, task, work.model_copy(update={"wake_at": None}))

    async def _look_for_upload(self, task: Task, job: Job, work: Work, now: datetime) -> None:
        assert job.upload_expires_at is not None
        grace_ends_at = job.upload_expires_at + timedelta(seconds=self._settings.upload_grace_s)
        if now >= job.deadline_at:
            gone = job.give_up(JobError.of("deadline_exceeded"), now)
            await tell(self._engine, await save(self._engine, task, gone, self._ending(work, now)))
            return
        name = names.upload_name(job.owner, job.id)
        blob = await self._engine.blobs.stat(self._settings.uploads_bucket, name)
        if blob is not None:
            again = requeue(work, now, retell_s=self._settings.retell_s)
            await save_work(self._engine, task, again.model_copy(update={"unqueued": False}))
            await self._engine.bus.publish(Topic.UPLOAD_FINALIZED, _announce(blob))
            log.warning("upload.found", extra={"job_id": job.id})
        elif now >= grace_ends_at:
            await tell(self._engine, await save(self._engine, task, job.expire(now), self._ending(work, now)))
        else:
            elapsed = max(now - job.created_at, timedelta(seconds=first_look_s))
            look_at = min(now + elapsed, job.upload_expires_at if now < job.upload_expires_at else grace_ends_at)
            await save_work(self._engine, task, work.model_copy(update={"wake_at": look_at}))

    def _ending(self, work: Work, now: datetime) -> Work:
        return ending(work, now, retell_s=self._settings.retell_s)

    @property
    def _job_limit(self) -> timedelta:
        return timedelta(seconds=self._settings.job_limit_s)


def _timings(job: Job, fact: UploadFinalized, now: datetime) -> Timings:
    def ms(start: datetime, end: datetime) -> int:
        return max(0, round((end - start).total_seconds() * 1000))

    return Timings(upload_ms=ms(job.created_at, fact.time_created), ingest_ms=ms(fact.time_created, now))


def _describe(photo: ShrunkPhoto) -> dict[str, str]:
    return {name: str(getattr(photo, name)) for name in photo.__slots__}


def _photo(blob: Blob) -> Photo:
    """The Photo that an object in `inputs` is; all of it stands in the object's metadata, so it can be adopted."""
    about = blob.metadata
    original = Original(
        content_type=about["original_content_type"],
        width=int(about["original_width"]),
        height=int(about["original_height"]),
        bytes=int(about["original_bytes"]),
    )
    return Photo(
        name=blob.name,
        generation=blob.generation,
        sha256=about["sha256"],
        width=int(about["width"]),
        height=int(about["height"]),
        bytes=blob.size,
        original=original,
    )


def _announce(blob: Blob) -> UploadFinalized:
    return UploadFinalized(
        bucket=blob.bucket,
        name=blob.name,
        generation=blob.generation,
        size=blob.size,
        content_type=blob.content_type,
        time_created=blob.created_at,
        metadata=dict(blob.metadata),
    )
