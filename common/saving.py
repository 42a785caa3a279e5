"""Commit, then tell: how every service changes a job (rules 1 and 3). What changes is the callers' business."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from common.errors import Conflict, DarkroomError, NotFound, Retryable
from common.job import Job, Status
from common.messages import JobChanged, JobQueued, Topic
from common.ports import Create, Delete, Engine, Stored, Update
from common.records import Desk, Work, shard_names
from common.telemetry import logger

log = logger(__name__)

sweep_page = 1000
sweep_at_once = 16
sweep_s_max = 45.0
put_off = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Task:
    """A job with its private Work, as they were read or saved together."""

    job: Stored[Job]
    work: Stored[Work]


async def load(engine: Engine, job_id: str) -> Task:
    """The job and its Work. Raises NotFound.

    The Work first: every change of a job changes it too, so if a commit falls between the two reads it is the Work
    that is out of date, and whatever is saved on it is refused.
    """
    work = await engine.store.get(Work, job_id)
    job = await engine.store.get(Job, job_id)
    if job is None or work is None:
        raise NotFound(f"there is no job {job_id}")
    return Task(job, work)


async def create(engine: Engine, job: Job, work: Work) -> Task:
    """Save a new job with its Work in one commit. Raises Conflict."""
    return await _commit(engine, Create(job), Create(work), engine.new_id())


async def save(engine: Engine, task: Task, job: Job, work: Work, *, save_id: str | None = None) -> Task:
    """Replace both in one commit; a status newly reached is marked untold if somebody may want it. Raises Conflict.

    That is every end, and what the job's webhook asks for. Whoever watches the job sees the rest on the feed.

    Whoever repeats it after Unavailable gives the same `save_id` again, and is then told of the first success.
    """
    before = task.job.record
    if job.status != before.status:
        if job.done or (job.webhook is not None and job.status in job.webhook.events):
            work = work.model_copy(update={"untold": (*work.untold, job.status)})
        log.info("job.advanced", extra={"job_id": job.id, "from": before.status, "to": job.status})
    return await _commit(engine, Update(job, task.job.etag), Update(work, task.work.etag), save_id or engine.new_id())


async def save_work(engine: Engine, task: Task, work: Work) -> Task:
    """Replace the Work alone, so that nobody sees the job change. Raises Conflict if either moved: both always do."""
    (stored,) = await engine.store.commit([Update(work, task.work.etag)], save_id=engine.new_id())
    return Task(task.job, cast(Stored[Work], stored))


async def tell(engine: Engine, task: Task) -> Task:
    """Publish what the Work says is untold: first `job-changed`, then `job-queued`.

    That order is why a claim may clear both marks: who holds the `job-queued` knows that the other is out.
    The marks of an ended job are cleared here; its Work sleeps for good, or until something may be left to tidy up.
    Safe to repeat. Raises Unavailable.
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
    told = work.model_copy(update={"untold": (), "unqueued": False, "wake_at": _tidy_at(job, work)})
    return await save_work(engine, task, told)


async def try_tell(engine: Engine, task: Task) -> bool:
    """Tell, and leave to the sweep what does not go out, since the commit stands either way; answers whether it did."""
    try:
        await tell(engine, task)
    except DarkroomError as exc:
        log.warning("job.untold", extra={"job_id": task.job.record.id, "code": exc.code, "detail": exc.detail})
        return False
    except Exception:
        # Whoever tells may have a paid call under way beside it, which a bug here must not cost.
        log.exception("job.untold", extra={"job_id": task.job.record.id})
        return False
    return True


async def sweep_each(engine: Engine, desk: Desk, look_after: Callable[[Task], Awaitable[None]]) -> int:
    """Look after every job that a desk owes a step, up to 1,000, the longest due first; answers how many.

    The news of ended jobs is told here, whichever desk it is; all else is `look_after`'s. Some are looked after at
    once, and none is begun after 45 s: the next sweep comes within the minute. One that cannot be looked after is
    logged and put off, so that it keeps the others from nothing.
    """
    due = await engine.store.due(Work, shards=shard_names(desk), before=engine.now(), limit=sweep_page)
    until = asyncio.get_running_loop().time() + sweep_s_max
    waiting = iter(due)

    async def visit() -> None:
        for stored in waiting:
            if asyncio.get_running_loop().time() > until:
                return
            await _visit(engine, stored, look_after)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(sweep_at_once, len(due))):
            group.create_task(visit())
    return len(due)


async def _visit(engine: Engine, stored: Stored[Work], look_after: Callable[[Task], Awaitable[None]]) -> None:
    job_id = stored.record.job_id
    try:
        task = await load(engine, job_id)
        work = task.work.record
        if work.wake_at is None or work.wake_at > task.work.read_at:
            return
        if task.job.record.done and work.untold:
            await tell(engine, task)
        else:
            await look_after(task)
    except NotFound:
        # Its job was erased, and both are written together: nobody will ever ask for it.
        await _quietly(job_id, engine.store.commit([Delete(Work, job_id)], save_id=engine.new_id()))
    except Conflict:
        # Somebody else just took care of it.
        return
    except Retryable as exc:
        # What was away for this one will be back for all, perhaps at the next sweep.
        log.warning("sweep.stumbled", extra={"job_id": job_id, "code": exc.code, "detail": exc.detail})
    except Exception:
        log.exception("sweep.stumbled", extra={"job_id": job_id})
        later = stored.record.model_copy(update={"wake_at": engine.now() + put_off})
        await _quietly(job_id, engine.store.commit([Update(later, stored.etag)], save_id=engine.new_id()))


async def _quietly(job_id: str, work: Awaitable[object]) -> None:
    """Do it if it can be done; otherwise the next sweep meets the same record."""
    try:
        await work
    except DarkroomError as exc:
        log.warning("sweep.unsaved", extra={"job_id": job_id, "code": exc.code})


def ending(work: Work, now: datetime, *, retell_s: int) -> Work:
    """The Work of a job that ends: its news is owed, and the sweep tells it if nobody does. A lease may still run."""
    return work.model_copy(update={"unqueued": False, "wake_at": now + timedelta(seconds=retell_s)})


def requeue(work: Work, now: datetime, *, retell_s: int) -> Work:
    """Marked to be queued again, and looked at again after 1, 2, 4, 8 times `retell_s` if nobody comes for it."""
    wait = timedelta(seconds=retell_s * 2 ** min(work.waits, 3))
    return work.model_copy(
        update={"unqueued": True, "lease": None, "waits": work.waits + 1, "wake_at": min(now + wait, work.deadline_at)}
    )


async def _commit(engine: Engine, job: Create | Update, work: Create | Update, save_id: str) -> Task:
    written = await engine.store.commit([job, work], save_id=save_id)
    if written[0] is None or written[1] is None:
        raise Conflict("the store did not say what it wrote")
    return Task(cast(Stored[Job], written[0]), cast(Stored[Work], written[1]))


def _tidy_at(job: Job, work: Work) -> datetime | None:
    """When something of an ended job may be left behind: a late upload, or the line and picture of a lost call."""
    if work.desk is Desk.INGEST:
        return job.deadline_at
    if work.lease is not None and any(attempt.state == "sent" for attempt in job.attempts):
        return work.lease.expires_at
    return None
