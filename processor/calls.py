"""The paid calls of one claim and their lines in the ledger. Nothing is stored here."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from common import catalogue, styles
from common.errors import DarkroomError
from common.job import Attempt, Image, Job, JobError
from common.ports import Engine
from common.records import Lease
from common.settings import Settings
from common.telemetry import logger
from processor.gemini import Action, Answer, Ask, Gemini, ModelFailure

log = logger(__name__)

_wait_min_s = 2.0
_wait_max_s = 300.0
# No user can mend these: somebody who runs the service has to look.
_OPERATORS = frozenset({"service_config", "model_retired", "quota_exhausted"})


@dataclass(frozen=True, slots=True)
class Called:
    """What became of one attempt: an answer or a failure, never both."""

    attempt: Attempt
    answer: Answer | None = None
    failure: ModelFailure | None = None


class Calls:
    """Makes the calls that a claim has written into the ledger, at once, one a picture."""

    def __init__(self, engine: Engine, settings: Settings, model: Gemini) -> None:
        self._engine = engine
        self._settings = settings
        self._model = model

    async def make(self, job: Job, lease: Lease, claimed_at: float) -> list[Called]:
        """One call for each of the claim's `sent` lines. Never raises for what the model or the bucket answers."""
        attempts = [a for a in job.attempts if a.fence == lease.fence and a.state == "sent"]
        try:
            photo = None if job.input is None else await self._photo(job.input.name)
        except DarkroomError as exc:
            log.warning("photo.unreadable", extra={"job_id": job.id, "code": exc.code})
            unsent = ModelFailure(Action.WAIT, "upstream_unavailable", billed="no", detail="the input was not readable")
            return [Called(attempt, failure=unsent) for attempt in attempts]
        style = styles.get(job.style, job.kind)
        ask = Ask(
            model=job.model,
            prompt=style.compose(job.prompt, job.negative_prompt),
            aspect_ratio=job.aspect_ratio,
            size=job.size,
            photo=photo,
        )
        return list(await asyncio.gather(*(self._call(job, attempt, ask, claimed_at) for attempt in attempts)))

    def settle(self, job: Job, called: list[Called]) -> tuple[Attempt, ...]:
        """The job's ledger with what these calls came to; other lines stay."""
        now = self._engine.now()
        price = Decimal(0) if job.stand_in else catalogue.load().model(job.model).price_usd(job.size)
        settled = {(c.attempt.image, c.attempt.fence): _settled(c, now, price) for c in called}
        return tuple(settled.get((attempt.image, attempt.fence), attempt) for attempt in job.attempts)

    def wait_s(self, call: Called, waits: int) -> float:
        """Seconds until the job may be tried again: the model's own hint, or doubling with jitter, 2 s to 5 min."""
        hint = call.failure.retry_after_s if call.failure is not None else None
        if hint is not None:
            return hint + self._engine.random.uniform(0, 1)
        ceiling = min(_wait_max_s, _wait_min_s * 2 ** min(waits, 10))
        return self._engine.random.uniform(ceiling / 2, ceiling)

    async def _call(self, job: Job, attempt: Attempt, ask: Ask, claimed_at: float) -> Called:
        held_s = asyncio.get_running_loop().time() - claimed_at
        if held_s > self._settings.lease_s - self._settings.model_deadline_s:
            # The lease could end before the answer comes, and another worker would pay for the same picture.
            late = ModelFailure(Action.WAIT, "busy", billed="no", detail="too little of the lease was left")
            return Called(attempt, failure=late)
        try:
            answer = await self._model.generate(ask)
        except ModelFailure as exc:
            fields = {"job_id": job.id, "image": attempt.image, "code": exc.code, "action": exc.action}
            level = logging.ERROR if exc.code in _OPERATORS else logging.WARNING
            log.log(level, "model.failed", extra={**fields, "billed": exc.billed, "detail": exc.detail})
            return Called(attempt, failure=exc)
        fields = {"job_id": job.id, "image": attempt.image, "model_ms": answer.model_ms}
        log.info("model.answered", extra={**fields, "model": answer.model_version})
        return Called(attempt, answer=answer)

    async def _photo(self, name: str) -> bytes:
        return await self._engine.blobs.read(self._settings.inputs_bucket, name)


def lost(attempt: Attempt, now: datetime) -> Attempt:
    """A line that an earlier claim left as `sent`: nobody saw its outcome, so it counts as if it were paid."""
    if attempt.state != "sent":
        return attempt
    return attempt.model_copy(update={"state": "unknown", "settled_at": now, "outcome": "timeout", "billed": "maybe"})


def cap_reached(image: Image, attempts: tuple[Attempt, ...], paid_calls_max: int) -> Image:
    """The image given up if its paid calls are used up and it is still not there; else unchanged."""
    counted = [attempt for attempt in attempts if attempt.image == image.index and attempt.counts]
    if image.status != "pending" or len(counted) < paid_calls_max:
        return image
    outcome = counted[-1].outcome
    code = "bad_output" if outcome in (None, "image") else outcome
    error = JobError.of(code, billed=counted[-1].billed)
    return image.model_copy(update={"status": "failed", "error": error})


def _settled(call: Called, now: datetime, price: Decimal) -> Attempt:
    if call.failure is not None:
        update: dict[str, object] = {
            "state": "unknown" if call.failure.action is Action.UNKNOWN else "settled",
            "settled_at": now,
            "outcome": call.failure.code,
            "billed": call.failure.billed,
        }
        return call.attempt.model_copy(update=update)
    answer = call.answer
    assert answer is not None
    update = {
        "state": "settled",
        "settled_at": now,
        "outcome": "image",
        "billed": "yes",
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "cost_usd": price,
    }
    return call.attempt.model_copy(update=update)
