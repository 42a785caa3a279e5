"""One queued job, from claim to end: claim, call, keep, finish. How the model is asked is gemini.py's business."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from common.errors import Conflict, Deferred, NotFound, Rejected, Retryable, Unavailable
from common.job import Image, Job, JobError, Stage, Status
from common.ledger import Attempt, billed
from common.messages import JobQueued
from common.ports import Engine
from common.records import Lease, Work
from common.saving import Task, ending, load, requeue, save, tell, try_tell
from common.settings import Settings
from common.telemetry import logger
from processor.calls import Called, Calls, Order, cap_reached, lost
from processor.gemini import Gemini
from processor.outcomes import Action
from processor.patience import Patience
from processor.results import Results

log = logger(__name__)

_races_max = 4
# Between reading a job and claiming it; longer means that it had to wait for room.
_door_s_max = 0.1


@dataclass(frozen=True, slots=True)
class Claim:
    """What one worker holds: the task as claimed, its lease, its order, and how long it may insist."""

    task: Task
    lease: Lease
    order: Order
    patience: Patience


class Generation:
    """The processor's use case over the ports: every queued job comes through `handle`, perhaps many times at once."""

    def __init__(self, engine: Engine, settings: Settings, model: Gemini, results: Results) -> None:
        self._engine = engine
        self._settings = settings
        self._results = results
        self._calls = Calls(engine, settings, model)
        self._free = asyncio.Semaphore(settings.calls_in_flight_max)
        self._door = asyncio.Lock()

    async def handle(self, fact: JobQueued) -> None:
        """Bring the job as far as it goes. Safe to repeat and to race: the claim lets one worker through.

        Raises Deferred while another worker holds it or it has to wait, Retryable while it is unknown or one of
        our own parts does not answer.
        """
        patience, task = await self._read(fact.job_id)
        if task.job.record.done:
            return
        _check_claimable(task)
        async with self._room_for(task.job.record.num_images):
            claim = await self._claim(task, patience)
            if claim is None:
                return
            told, called = await asyncio.gather(
                try_tell(self._engine, claim.task),
                self._calls.make(claim.task.job.record, claim.order, claim.lease, claim.patience),
            )
            try:
                await self._end_claim(claim, called, told=told)
            except Conflict:
                await self._too_late(claim, called)

    @asynccontextmanager
    async def _room_for(self, calls: int) -> AsyncIterator[None]:
        """Wait for as many of the process's calls as the job may make, before its lease begins to run."""
        taken = 0
        try:
            # One at a time through the door, or two that hold half of what they need would wait for each other.
            async with self._door:
                while taken < calls:
                    await self._free.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._free.release()

    async def _read(self, job_id: str) -> tuple[Patience, Task]:
        """The job, and from when a lease on it would count: from before the reading, so that it never ends unseen."""
        patience = Patience(asyncio.get_running_loop().time(), self._settings.lease_s)
        try:
            return patience, await load(self._engine, job_id)
        except NotFound as exc:
            raise Retryable("unavailable", f"job {job_id} is queued but does not exist yet") from exc

    async def _claim(self, task: Task, patience: Patience) -> Claim | None:
        """The lease and its ledger lines in one commit, or None when the job needs no call (any more)."""
        for _ in range(_races_max):
            if patience.held_s > _door_s_max:
                # It had to wait for room, perhaps for minutes, and those are no part of the lease.
                patience, task = await self._read(task.job.record.id)
            if task.job.record.done:
                return None
            _check_claimable(task)
            try:
                return await self._try_claim(task, task.work.read_at, patience)
            except Conflict:
                patience, task = await self._read(task.job.record.id)
        raise Conflict(f"job {task.job.record.id} keeps changing")

    async def _try_claim(self, task: Task, now: datetime, patience: Patience) -> Claim | None:
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
        try:
            order = await self._calls.prepare(job)
        except Rejected as exc:
            # Its style, its model or its photo are gone: no later claim would fare better.
            log.error("job.unpreparable", extra={"job_id": job.id, "code": exc.code, "detail": exc.detail})
            gone = job.give_up(JobError.of("internal", billed=billed(attempts)), now, attempts)
            await end(self._engine, task, gone, now, self._settings)
            return None
        fence = work.fence + 1
        expires_at = now + timedelta(seconds=self._settings.lease_s)
        lease = Lease(token=self._engine.new_id(), fence=fence, expires_at=expires_at)
        sent = tuple(Attempt(image=i.index, fence=fence, model=job.model, state="sent", sent_at=now) for i in wanted)
        # Who holds a job's first message knows that the news before it is out (see `tell`), so that mark falls.
        untold = () if job.status is Status.PENDING else work.untold
        wake_at = min(expires_at, job.deadline_at, now + timedelta(seconds=self._settings.retell_s))
        claimed = work.model_copy(
            update={"lease": lease, "fence": fence, "unqueued": False, "untold": untold, "wake_at": wake_at}
        )
        sending, save_id = job.send(images, attempts + sent, now), self._engine.new_id()
        try:
            task = await save(self._engine, task, sending, claimed, save_id=save_id)
        except Unavailable:
            # If only the answer was lost, the ledger says "sent", and going away now would cost a call of the cap.
            task = await save(self._engine, task, sending, claimed, save_id=save_id)
        log.info("job.claimed", extra={"job_id": job.id, "fence": fence, "calls": len(sent)})
        return Claim(task, lease, order, patience)

    async def _end_claim(self, claim: Claim, called: list[Called], *, told: bool) -> None:
        """Settle the ledger, keep the pictures, and finish the job or hand it back to the queue."""
        task, job, work = claim.task, claim.task.job.record, claim.task.work.record
        if told:
            work = work.model_copy(update={"untold": ()})
        attempts = self._calls.settle(job.attempts, called)
        images = _give_up(job.images, called, attempts, self._settings.paid_calls_max)
        answers = {call.attempt.image: call.answer for call in called if call.answer is not None}
        if answers:
            model_ms = max(answer.model_ms for answer in answers.values())
            task = await self._insist(claim, task, job.settle(images, attempts, Stage.STORING, model_ms), work)
            job, work = task.job.record, task.work.record
            images, attempts = await self._results.keep(job, claim.lease, answers, claim.patience)
            images = tuple(cap_reached(i, attempts, self._settings.paid_calls_max) for i in images)
        now = self._engine.now()
        released = work.model_copy(update={"lease": None})
        if all(image.status != "pending" for image in images):
            await self._finish(claim, task, job.finish(images, attempts, now), released, now)
            return
        handed_back = job.settle(images, attempts, Stage.QUEUED, None)
        await self._hand_back(claim, task, handed_back, released, called, now)

    async def _insist(self, claim: Claim, task: Task, job: Job, work: Work) -> Task:
        """Save what was paid for, and take neither a failure of the store nor the sweep's hand for an answer.

        The sweep looks after the Work of a long call, too. As long as the job is as we saw it and the lease is ours,
        nobody else has worked on it. Raises Conflict if somebody has.
        """
        for _ in range(_races_max):
            save_id = self._engine.new_id()
            try:
                return await claim.patience.insist(lambda: save(self._engine, task, job, work, save_id=save_id))  # noqa: B023
            except Conflict:
                there = await claim.patience.insist(lambda: load(self._engine, job.id))
                held = there.work.record.lease
                if there.job.etag != task.job.etag or held is None or held.token != claim.lease.token:
                    raise
                task = Task(task.job, there.work)
        raise Conflict(f"the Work of job {job.id} keeps changing")

    async def _finish(self, claim: Claim, task: Task, job: Job, work: Work, now: datetime) -> None:
        over = ending(work, now, retell_s=self._settings.retell_s)
        await try_tell(self._engine, await self._insist(claim, task, job, over))

    async def _hand_back(
        self, claim: Claim, task: Task, job: Job, work: Work, called: list[Called], now: datetime
    ) -> None:
        waits = [c for c in called if c.failure is not None and c.failure.action is Action.WAIT]
        if not waits:
            again = requeue(work, now, retell_s=self._settings.retell_s)
            await tell(self._engine, await self._insist(claim, task, job, again))
            return
        wake_at = now + timedelta(seconds=max(self._calls.wait_s(call, work.waits) for call in waits))
        codes = [call.failure.code for call in waits if call.failure is not None]
        if wake_at >= job.deadline_at or ("quota_exhausted" in codes and job.lane == "interactive"):
            # Waiting for longer than the job may live would tell its owner nothing for half an hour.
            code = "quota_exhausted" if "quota_exhausted" in codes else codes[0]
            gone = job.give_up(JobError.of(code, billed=billed(job.attempts)), now)
            await self._finish(claim, task, gone, work, now)
            return
        update = {"waits": work.waits + 1, "wake_at": wake_at, "unqueued": False, "last_code": codes[0]}
        saved = await self._insist(claim, task, job, work.model_copy(update=update))
        await try_tell(self._engine, saved)
        raise Deferred(codes[0], wake_at)

    async def _too_late(self, claim: Claim, called: list[Called]) -> None:
        """Somebody else changed the job during our calls: write down what they cost, and touch nothing else."""
        for _ in range(_races_max):
            task = await load(self._engine, claim.task.job.record.id)
            job, work = task.job.record, task.work.record
            log.warning("job.overtaken", extra={"job_id": job.id, "status": job.status, "fence": claim.lease.fence})
            if not job.done:
                # A later claim goes on; it has marked our calls unknown, and adopts what we kept.
                return
            settled = job.settle_silently(self._calls.settle(job.attempts, called))
            try:
                await claim.patience.insist(lambda: save(self._engine, task, settled, work))  # noqa: B023
            except Conflict:
                continue
            await self._results.remove(job)
            return
        log.error("job.unsettled", extra={"job_id": claim.task.job.record.id, "fence": claim.lease.fence})


async def end(engine: Engine, task: Task, job: Job, now: datetime, settings: Settings) -> None:
    """Save the job's end, and tell. A lease that still runs stays, so that its calls are looked after."""
    over = ending(task.work.record, now, retell_s=settings.retell_s)
    if over.lease is not None and over.lease.expires_at <= now:
        over = over.model_copy(update={"lease": None})
    await try_tell(engine, await save(engine, task, job, over))


def late(job: Job, work: Work, now: datetime) -> Job:
    """The job ended at its time limit with what there is, and with the last reason it had to wait for, if any."""
    held = work.lease is not None and now < work.lease.expires_at
    attempts = job.attempts if held else tuple(lost(attempt, now) for attempt in job.attempts)
    code = work.last_code or "deadline_exceeded"
    return job.give_up(JobError.of(code, billed=billed(attempts)), now, attempts)


def _check_claimable(task: Task) -> None:
    job, work, now = task.job.record, task.work.record, task.work.read_at
    if job.status is Status.AWAITING_UPLOAD:
        raise Rejected("not_ready", f"job {job.id} was queued before its photo came")
    if work.lease is not None and now < work.lease.expires_at:
        raise Deferred("busy", work.lease.expires_at, "another worker holds the job")
    if work.lease is None and not work.unqueued and work.wake_at is not None and now < work.wake_at:
        raise Deferred("busy", work.wake_at, "the job waits for the model")


def _give_up(
    images: tuple[Image, ...], called: list[Called], attempts: tuple[Attempt, ...], paid_calls_max: int
) -> tuple[Image, ...]:
    """Images whose call said never, or whose last allowed call brought nothing, fail; the others stay pending."""
    answered = {call.attempt.image for call in called if call.answer is not None}
    ended = {c.attempt.image: c.failure for c in called if c.failure is not None and c.failure.action is Action.END}
    decided = []
    for image in images:
        failure = ended.get(image.index)
        if failure is not None:
            paid = billed(attempt for attempt in attempts if attempt.image == image.index)
            error = JobError.of(failure.code, billed=paid)
            decided.append(image.model_copy(update={"status": "failed", "error": error}))
        elif image.index in answered:
            decided.append(image)
        else:
            decided.append(cap_reached(image, attempts, paid_calls_max))
    return tuple(decided)
