"""Commit, then tell: how every service changes a job (rules 1 and 3). What changes is the callers' business."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar, cast

from common.errors import Conflict, DarkroomError, NotFound
from common.job import Job, Status
from common.messages import JobChanged, JobQueued, Topic
from common.ports import Change, Create, Engine, Stored, Update
from common.records import Desk, Record, Work, shard_names
from common.telemetry import logger

log = logger(__name__)

R = TypeVar("R", bound=Record)
sweep_page = 100


@dataclass(frozen=True, slots=True)
class Task:
    """A job with its private Work, as they were read or saved together."""

    job: Stored[Job]
    work: Stored[Work]


async def load(engine: Engine, job_id: str) -> Task:
    """The job and its Work. Raises NotFound.

    They are read one after the other, so a commit may fall between; the versions are checked when saving.
    """
    job = await engine.store.get(Job, job_id)
    work = await engine.store.get(Work, job_id)
    if job is None or work is None:
        raise NotFound(f"there is no job {job_id}")
    return Task(job, work)


async def create(engine: Engine, job: Job, work: Work, *extra: Change) -> Task:
    """Save a new job with its Work in one commit. Raises Conflict."""
    return await _commit(engine, Create(job), Create(work), extra)


async def save(engine: Engine, task: Task, job: Job, work: Work) -> Task:
    """Replace both in one commit; a status the job has newly reached is marked untold. Raises Conflict."""
    before = task.job.record
    if job.status != before.status:
        work = work.model_copy(update={"untold": (*work.untold, job.status)})
        log.info("job.advanced", extra={"job_id": job.id, "from": before.status, "to": job.status})
    return await _commit(engine, Update(job, task.job.etag), Update(work, task.work.etag), ())


async def tell(engine: Engine, task: Task) -> Task:
    """Publish what the Work says is untold: first `job-changed`, then `job-queued`.

    That order is why a claim may clear both marks: who holds the `job-queued` knows that the other is out.
    The marks of an ended job are cleared here, and its Work sleeps for good. Safe to repeat. Raises Unavailable.
    """
    job, work = task.job.record, task.work.record
    for name in work.untold:
        status = Status(name)
        event_id = job.event_id(status)
        await engine.bus.publish(
            Topic.JOB_CHANGED, JobChanged(job_id=job.id, event_id=event_id, status=status), event_id=event_id
        )
    if work.unqueued and not job.done:
        topic = Topic.JOB_QUEUED_BATCH if job.lane == "batch" else Topic.JOB_QUEUED
        await engine.bus.publish(topic, JobQueued(job_id=job.id, fence=work.fence))
    if not job.done:
        return task
    told = work.model_copy(update={"untold": (), "unqueued": False, "lease": None, "wake_at": None})
    (stored,) = await engine.store.commit([Update(told, task.work.etag)], save_id=engine.new_id())
    return Task(task.job, cast(Stored[Work], stored))


async def try_tell(engine: Engine, task: Task) -> bool:
    """Tell, and leave to the sweep what does not go out, since the commit stands either way; answers whether it did."""
    try:
        await tell(engine, task)
    except DarkroomError as exc:
        log.warning("job.untold", extra={"job_id": task.job.record.id, "code": exc.code, "detail": exc.detail})
        return False
    return True


async def due_work(engine: Engine, desk: Desk, now: datetime) -> list[Stored[Work]]:
    """Work that a desk owes a step, up to 100 of each shard, the longest due first within a shard."""
    found: list[Stored[Work]] = []
    for shard in shard_names(desk):
        found += await engine.store.due(Work, shard=shard, before=now, limit=sweep_page)
    return found


def requeue(work: Work, now: datetime, *, retell_s: int) -> Work:
    """Marked to be queued again, and looked at again after 1, 2, 4, 8 times `retell_s` if nobody comes for it."""
    wait = timedelta(seconds=retell_s * 2 ** min(work.waits, 3))
    return work.model_copy(
        update={"unqueued": True, "lease": None, "waits": work.waits + 1, "wake_at": min(now + wait, work.deadline_at)}
    )


async def _commit(engine: Engine, job: Create | Update, work: Create | Update, extra: tuple[Change, ...]) -> Task:
    written = await engine.store.commit([job, work, *extra], save_id=engine.new_id())
    if written[0] is None or written[1] is None:
        raise Conflict("the store did not say what it wrote")
    return Task(cast(Stored[Job], written[0]), cast(Stored[Work], written[1]))
