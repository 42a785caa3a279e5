"""What the processor's sweep finds: jobs nobody works on, waits that are over, limits that passed, news untold."""

from common.errors import Conflict, NotFound
from common.ports import Engine
from common.records import Desk
from common.saving import Task, due_work, load, requeue, save, tell
from common.settings import Settings
from common.telemetry import logger
from processor.generation import end, late

log = logger(__name__)


async def sweep(engine: Engine, settings: Settings) -> int:
    """One round; answers how many records were due. Safe to run beside itself and beside any worker."""
    due = await due_work(engine, Desk.PROCESSOR, engine.now())
    for stored in due:
        try:
            await _look_after(engine, settings, await load(engine, stored.record.job_id))
        except (Conflict, NotFound):
            # Somebody else just took care of it.
            continue
    return len(due)


async def _look_after(engine: Engine, settings: Settings, task: Task) -> None:
    job, work, now = task.job.record, task.work.record, task.work.read_at
    if work.wake_at is None or work.wake_at > now:
        return
    if job.done:
        await tell(engine, task)
    elif now >= job.deadline_at:
        # Whoever still calls for it finds the job ended, and writes down only what the call cost.
        await end(engine, task, late(job, work, now), now, settings)
    else:
        # Saved before it is published: a crash between the two costs one round, never a storm.
        again = requeue(work, now, retell_s=settings.retell_s)
        await tell(engine, await save(engine, task, job, again))
        log.info("job.requeued", extra={"job_id": job.id, "waits": again.waits})
