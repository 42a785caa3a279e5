"""The paid calls of one claim and their lines in the ledger. Nothing is stored here."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from common import catalogue, styles
from common.job import Image, Job, JobError
from common.ledger import Attempt, billed
from common.ports import Engine
from common.records import Lease
from common.settings import Settings
from common.telemetry import logger
from processor.gemini import Ask, Gemini
from processor.outcomes import Action, Answer, ModelFailure
from processor.patience import Patience

log = logger(__name__)

_wait_min_s = 2.0
_wait_max_s = 300.0
# No user can mend these: somebody who runs the service has to look.
_OPERATORS = frozenset({"service_config", "model_retired", "quota_exhausted"})


@dataclass(frozen=True, slots=True)
class Called:
    """What became of one attempt: an answer or a failure, never both."""

    attempt: Attempt
    price: Decimal
    answer: Answer | None = None
    failure: ModelFailure | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """All that the calls of a claim need, fetched before anything is written down or paid for."""

    ask: Ask
    price: Decimal


class Calls:
    """Makes the calls that a claim has written into the ledger, at once, one a picture."""

    def __init__(self, engine: Engine, settings: Settings, model: Gemini) -> None:
        self._engine = engine
        self._settings = settings
        self._model = model

    async def prepare(self, job: Job) -> Order:
        """The job's order. Raises Rejected if style, model or photo are gone, Unavailable if the bucket is away."""
        style = styles.get(job.style, job.kind)
        price = Decimal(0) if job.stand_in else catalogue.load().model(job.model).price_usd(job.size)
        photo = None
        if job.input is not None:
            photo = await self._engine.blobs.read(self._settings.inputs_bucket, job.input.name)
        ask = Ask(
            model=job.model,
            prompt=style.compose(job.prompt, job.negative_prompt),
            aspect_ratio=job.aspect_ratio,
            size=job.size,
            photo=photo,
        )
        return Order(ask, price)

    async def make(self, job: Job, order: Order, lease: Lease, patience: Patience) -> list[Called]:
        """One call for each of the claim's `sent` lines. Raises nothing of what the model answers."""
        attempts = [a for a in job.attempts if a.fence == lease.fence and a.state == "sent"]
        calls = (self._call(job, attempt, order, patience) for attempt in attempts)
        return list(await asyncio.gather(*calls))

    def settle(self, ledger: tuple[Attempt, ...], called: list[Called]) -> tuple[Attempt, ...]:
        """The ledger with what these calls came to; other lines stay."""
        now = self._engine.now()
        settled = {(c.attempt.image, c.attempt.fence): _settled(c, now) for c in called}
        return tuple(settled.get((attempt.image, attempt.fence), attempt) for attempt in ledger)

    def wait_s(self, call: Called, waits: int) -> float:
        """Seconds until the job may be tried again: doubling with jitter, 2 s to 5 min, or longer if the model says so.

        A hint alone would be obeyed for ever: "0 s" repeated for half an hour fills a ledger with thousands of lines.
        """
        ceiling = min(_wait_max_s, _wait_min_s * 2 ** min(waits, 10))
        own = self._engine.random.uniform(ceiling / 2, ceiling)
        hint = call.failure.retry_after_s if call.failure is not None else None
        return own if hint is None else max(own, hint + self._engine.random.uniform(0, 1))

    async def _call(self, job: Job, attempt: Attempt, order: Order, patience: Patience) -> Called:
        if patience.held_s > self._settings.lease_s - self._settings.model_deadline_s:
            # The lease could end before the answer comes, and another worker would pay for the same picture.
            late = ModelFailure(Action.WAIT, "busy", billed="no", detail="too little of the lease was left")
            return Called(attempt, order.price, failure=late)
        try:
            answer = await self._model.generate(order.ask)
        except ModelFailure as exc:
            fields = {"job_id": job.id, "image": attempt.image, "code": exc.code, "action": exc.action}
            level = logging.ERROR if exc.code in _OPERATORS else logging.WARNING
            log.log(level, "model.failed", extra={**fields, "billed": exc.billed, "detail": exc.detail})
            return Called(attempt, order.price, failure=exc)
        fields = {"job_id": job.id, "image": attempt.image, "model_ms": answer.model_ms}
        log.info("model.answered", extra={**fields, "model": answer.model_version})
        return Called(attempt, order.price, answer=answer)


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
    outcome = counted[-1].outcome or "timeout"
    error = JobError.of("not_kept" if outcome == "image" else outcome, billed=billed(counted))
    return image.model_copy(update={"status": "failed", "error": error})


def _settled(call: Called, now: datetime) -> Attempt:
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
        "cost_usd": call.price,
    }
    return call.attempt.model_copy(update=update)
