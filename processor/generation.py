"""One queued job, from claim to end: claim, call, keep, finish. How the model is asked is gemini.py's business."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

from common.errors import Conflict, Deferred, NotFound, Rejected, Retryable
from common.job import Attempt, Billed, Image, Job, JobError, Stage, Status
from common.messages import JobQueued
from common.ports import Engine
from common.records import Lease, Work
from common.saving import Task, load, requeue, save, tell, try_tell
from common.settings import Settings
from common.telemetry import logger
from processor.calls import Called, Calls, cap_reached, lost
from processor.gemini import Action, Gemini
from processor.results import Results

log = logger(__name__)

_races_max = 4


@dataclass(frozen=True, slots=True)
class Claim:
    """What one worker holds: the task as claimed, its lease, and when (event loop's clock) it got it."""

    task: Task
    lease: Lease
    at: float


class Generation:
    """The processor's use case over the ports: every queued job comes through `handle`, perhaps many times at once."""

    def __init__(self, engine: Engine, settings: Settings, model: Gemini, results: Results) -> None:
        self._engine = engine
        self._settings = settings
        self._results = results
        self._calls = Calls(engine, settings, model)
        self._slots = asyncio.Semaphore(settings.calls_in_flight_max)

    async def handle(self, fact: JobQueued) -> None:
        """Bring the job as far as it goes. Safe to repeat and to race: the claim lets one worker through.

        Raises Deferred while another worker holds it or it has to wait, Retryable while it is unknown.
        """
        async with self._slots:
            claim = await self._claim(fact.job_id)
            if claim is None:
                return
            told, called = await asyncio.gather(
                try_tell(self._engine, claim.task), self._calls.make(claim.task.job.record, claim.lease, claim.at)
            )
            try:
                await self._end_claim(claim, called, told=told)
            except Conflict:
                await self._too_late(claim, called)

    async def _claim(self, job_id: str) -> Claim | None:
        """The lease and its ledger lines in one commit, or None when the job needs no call (any more)."""
        for _ in range(_races_max):
            try:
                task = await load(self._engine, job_id)
            except NotFound as exc:
                raise Retryable("unavailable", f"job {job_id} is queued but does not exist yet") from exc
            job, work, now = task.job.record, task.work.record, task.work.read_at
            if job.done:
                return None
            _check_claimable(job, work, now)
            started = asyncio.get_running_loop().time()
            try:
                return await self._try_claim(task, now, started)
            except Conflict:
                continue
        raise Conflict(f"job {job_id} keeps changing")

    async def _try_claim(self, task: Task, now: datetime, started: float) -> Claim | None:
        job, work = task.job.record, task.work.record
        if now >= job.deadline_at:
            await end(self._engine, task, late(job, work, now), now, self._settings)
            return None
        attempts = tuple(lost(attempt, now) for attempt in job.attempts)
        images, attempts = await self._results.adopt(job, attempts) if attempts else (job.images, attempts)
        images = tuple(cap_reached(i, attempts, self._settings.paid_calls_max) for i in images)
        wanted = [image for image in images if image.status == "pending"]
        if not wanted:
            await end(self._engine, task, job.finish(images, attempts, now), now, self._settings)
            return None
        fence = work.fence + 1
        lease = Lease(
            token=self._engine.new_id(), fence=fence, expires_at=now + timedelta(seconds=self._settings.lease_s)
        )
        sent = tuple(Attempt(image=i.index, fence=fence, model=job.model, state="sent", sent_at=now) for i in wanted)
        # Who holds the message knows that all earlier news is out (see `tell`), so both marks fall.
        claimed = work.model_copy(
            update={"lease": lease, "fence": fence, "unqueued": False, "untold": (), "wake_at": lease.expires_at}
        )
        task = await save(self._engine, task, job.send(images, attempts + sent, now), claimed)
        log.info("job.claimed", extra={"job_id": job.id, "fence": fence, "calls": len(sent)})
        return Claim(task, lease, started)

    async def _end_claim(self, claim: Claim, called: list[Called], *, told: bool) -> None:
        """Settle the ledger, keep the pictures, and finish the job or hand it back to the queue."""
        job, work = claim.task.job.record, claim.task.work.record
        if told:
            work = work.model_copy(update={"untold": ()})
        attempts = self._calls.settle(job, called)
        images = _give_up(job.images, called, attempts, self._settings.paid_calls_max)
        answers = {call.attempt.image: call for call in called if call.answer is not None}
        stage = Stage.STORING if answers else Stage.QUEUED
        model_ms = max((c.answer.model_ms for c in answers.values() if c.answer is not None), default=None)
        task = claim.task
        if answers:
            task = await save(self._engine, task, job.settle(images, attempts, stage, model_ms), work)
            job, work = task.job.record, task.work.record
            images, attempts = await self._results.keep(job, claim.lease, answers)
            images = tuple(cap_reached(i, attempts, self._settings.paid_calls_max) for i in images)
        now = self._engine.now()
        if all(image.status != "pending" for image in images):
            await end(self._engine, task, job.finish(images, attempts, now), now, self._settings, work)
            return
        handed_back = job.settle(images, attempts, Stage.QUEUED, model_ms)
        await self._hand_back(task, handed_back, work, called, now)

    async def _hand_back(self, task: Task, job: Job, work: Work, called: list[Called], now: datetime) -> None:
        waits = [c for c in called if c.failure is not None and c.failure.action is Action.WAIT]
        code = next((c.failure.code for c in called if c.failure is not None), None)
        if not waits:
            again = requeue(work, now, retell_s=self._settings.retell_s).model_copy(update={"last_code": code})
            await tell(self._engine, await save(self._engine, task, job, again))
            return
        wait_s = max(self._calls.wait_s(call, work.waits) for call in waits)
        wake_at = now + timedelta(seconds=wait_s)
        code = waits[0].failure.code if waits[0].failure else code
        if wake_at >= job.deadline_at or (code == "quota_exhausted" and job.lane == "interactive"):
            # Waiting for longer than the job may live would tell its owner nothing for half an hour.
            failed = job.fail(JobError.of(code or "busy"), now)
            await end(self._engine, task, failed, now, self._settings, work)
            return
        waiting = work.model_copy(
            update={"lease": None, "waits": work.waits + 1, "wake_at": wake_at, "unqueued": False, "last_code": code}
        )
        await save(self._engine, task, job, waiting)
        raise Deferred(code or "busy", wake_at)

    async def _too_late(self, claim: Claim, called: list[Called]) -> None:
        """Somebody else changed the job during our calls: write down what they cost, and touch nothing else."""
        for _ in range(_races_max):
            task = await load(self._engine, claim.task.job.record.id)
            job = task.job.record
            log.warning("job.overtaken", extra={"job_id": job.id, "status": job.status, "fence": claim.lease.fence})
            if not job.done:
                # A later claim goes on; it has marked our calls unknown, and adopts what we kept.
                return
            if job.status is not Status.COMPLETED:
                await self._results.remove(job)
            settled = job.settle_silently(self._calls.settle(job, called))
            try:
                await save(self._engine, task, settled, task.work.record)
            except Conflict:
                continue
            return


async def end(
    engine: Engine, task: Task, job: Job, now: datetime, settings: Settings, work: Work | None = None
) -> None:
    """Save the job's end, release its lease, and tell."""
    work = work or task.work.record
    retell_at = now + timedelta(seconds=settings.retell_s)
    over = work.model_copy(update={"lease": None, "unqueued": False, "wake_at": retell_at})
    await try_tell(engine, await save(engine, task, job, over))


def late(job: Job, work: Work, now: datetime) -> Job:
    """The job failed at its time limit, with the last reason it had to wait for, if any."""
    billed: Billed = "maybe" if any(attempt.counts for attempt in job.attempts) else "no"
    code = work.last_code or "deadline_exceeded"
    return job.fail(JobError.of(code, billed=billed), now)


def _check_claimable(job: Job, work: Work, now: datetime) -> None:
    if job.status is Status.AWAITING_UPLOAD:
        raise Rejected("not_ready", f"job {job.id} was queued before its photo came")
    if work.lease is not None and now < work.lease.expires_at:
        raise Deferred("busy", work.lease.expires_at, "another worker holds the job")
    waiting = not work.unqueued and work.lease is None and work.wake_at is not None
    if waiting and work.wake_at is not None and now < work.wake_at:
        raise Deferred("busy", work.wake_at, "the job waits for the model")


def _give_up(
    images: tuple[Image, ...], called: list[Called], attempts: tuple[Attempt, ...], paid_calls_max: int
) -> tuple[Image, ...]:
    """Images whose call said never, or whose last allowed call brought nothing, fail; the others stay pending."""
    ended = {call.attempt.image: call.failure for call in called if call.failure and call.failure.action is Action.END}
    decided = []
    for image in images:
        failure = ended.get(image.index)
        if failure is not None:
            error = JobError.of(failure.code, billed=failure.billed)
            image = image.model_copy(update={"status": "failed", "error": error})
        elif not any(c.attempt.image == image.index and c.answer is not None for c in called):
            image = cap_reached(image, attempts, paid_calls_max)
        decided.append(image)
    return tuple(decided)
