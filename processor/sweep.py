"""What the processor's sweep finds: jobs nobody works on, waits that are over, limits that passed, news untold."""

from datetime import timedelta
from functools import partial

from common.ports import Engine
from common.records import Desk
from common.saving import Task, requeue, save, save_work, sweep_each, tell
from common.settings import Settings
from common.telemetry import logger
from processor.calls import lost
from processor.generation import end, late
from processor.results import Results

log = logger(__name__)


async def sweep(engine: Engine, settings: Settings, results: Results) -> int:
    """One round; answers how many records were due. Safe to run beside itself and beside any worker."""
    return await sweep_each(engine, Desk.PROCESSOR, partial(_look_after, engine, settings, results))


async def _look_after(engine: Engine, settings: Settings, results: Results, task: Task) -> None:
    job, work, now = task.job.record, task.work.record, task.work.read_at
    if job.done:
        await _tidy(engine, results, task)
    elif now >= job.deadline_at:
        # Whoever still calls for it finds the job ended, and writes down only what the call cost.
        await end(engine, task, late(job, work, now), now, settings)
    elif work.lease is not None and now < work.lease.expires_at:
        # A worker has it, but may not have got its news out.
        await tell(engine, task)
        wake_at = min(work.lease.expires_at, job.deadline_at)
        await save_work(engine, task, work.model_copy(update={"untold": (), "wake_at": wake_at}))
    else:
        # Saved before it is published: a crash between the two costs one round, never a storm.
        again = requeue(work, now, retell_s=settings.retell_s)
        await tell(engine, await save_work(engine, task, again))
        log.info("job.requeued", extra={"job_id": job.id, "waits": again.waits})


async def _tidy(engine: Engine, results: Results, task: Task) -> None:
    """Once no worker can hold the job any more, close its ledger and remove left-overs."""
    job, work, now = task.job.record, task.work.record, task.work.read_at
    if work.lease is not None and now < work.lease.expires_at:
        await save_work(engine, task, work.model_copy(update={"wake_at": work.lease.expires_at + timedelta(seconds=1)}))
        return
    await results.remove(job)
    closed = job.settle_silently(tuple(lost(attempt, now) for attempt in job.attempts))
    await save(engine, task, closed, work.model_copy(update={"lease": None, "wake_at": None}))
