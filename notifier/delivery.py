"""From a job's change to a webhook's answer: one delivery record an event. Signing is webhooks.py's business."""

import asyncio
from datetime import timedelta

import httpx2

from common.errors import Conflict, Retryable
from common.job import Job
from common.messages import DeliveryDue, JobChanged, Topic
from common.ports import Create, Engine, Update
from common.records import Delivery, DeliveryAttempt, DeliveryStatus, Desk, shard_names
from common.settings import Settings
from common.telemetry import logger
from notifier.webhooks import body, headers, owner_secret

log = logger(__name__)

_sweep_page = 1000
# Beyond the POST's own timeout, for saving its outcome; only after that may the sweep call the attempt lost.
_grace_s = 30
_races_max = 4


class Deliveries:
    """Writes deliveries and sends them. The event's id is the delivery's id, so no event is announced under two."""

    def __init__(self, engine: Engine, settings: Settings, client: httpx2.AsyncClient) -> None:
        if settings.webhook_secret is None:
            raise ValueError("set WEBHOOK_SECRET to 32 random bytes or more: webhooks are signed with it")
        self._engine = engine
        self._settings = settings
        self._client = client
        self._master = settings.webhook_secret.get_secret_value()
        self._lost_after = timedelta(seconds=settings.webhook_timeout_s + _grace_s)

    async def announce(self, fact: JobChanged) -> None:
        """Write the delivery that the job's owner wants for this event, if any, and queue it. Safe to repeat."""
        stored = await self._engine.store.get(Job, fact.job_id)
        if stored is None:
            raise Retryable("unavailable", f"job {fact.job_id} changed but does not exist yet")
        job, now = stored.record, self._engine.now()
        if job.webhook is None or fact.status not in job.webhook.events:
            return
        delivery = Delivery(
            event_id=fact.event_id,
            job_id=job.id,
            owner=job.owner,
            url=job.webhook.url,
            event=fact.status,
            status=DeliveryStatus.PENDING,
            wake_at=now + self._lost_after,
            created_at=now,
            delete_at=job.delete_at,
        )
        try:
            await self._engine.store.commit([Create(delivery)], save_id=self._engine.new_id())
        except Conflict:
            # Announced before. Its first message is on its way, or the sweep sends another.
            return
        await self._engine.bus.publish(Topic.DELIVERY_DUE, DeliveryDue(delivery_id=delivery.key))

    async def deliver(self, fact: DeliveryDue) -> None:
        """Send it and record the answer. A crash in between repeats the POST under the same `webhook-id`."""
        stored = await self._engine.store.get(Delivery, fact.delivery_id)
        if stored is None:
            raise Retryable("unavailable", f"delivery {fact.delivery_id} does not exist yet")
        if stored.record.status is not DeliveryStatus.PENDING:
            return
        job = await self._engine.store.get(Job, stored.record.job_id)
        if job is None:
            attempt = DeliveryAttempt(
                at=self._engine.now(), http_status=None, duration_ms=0, error="the job was erased"
            )
        else:
            attempt = await self._post(stored.record, job.record)
        await self._record(fact.delivery_id, attempt)

    async def _record(self, delivery_id: str, attempt: DeliveryAttempt) -> None:
        """Write the outcome down, whoever else (the sweep, a twin of the message) changed the record meanwhile."""
        for _ in range(_races_max):
            stored = await self._engine.store.get(Delivery, delivery_id)
            if stored is None or stored.record.status is not DeliveryStatus.PENDING:
                return
            done = DeliveryStatus.DELIVERED if attempt.error is None else DeliveryStatus.FAILED
            attempts = (*stored.record.attempts, attempt)
            record = stored.record.model_copy(update={"status": done, "attempts": attempts, "wake_at": None})
            try:
                await self._engine.store.commit([Update(record, stored.etag)], save_id=self._engine.new_id())
            except Conflict:
                continue
            fields = {"job_id": record.job_id, "event_id": record.event_id, "http_status": attempt.http_status}
            log.info("delivery.tried", extra={**fields, "ms": attempt.duration_ms, "error": attempt.error})
            return
        raise Conflict(f"delivery {delivery_id} keeps changing")

    async def sweep(self) -> int:
        """Queue again what was announced but never tried; answers how many."""
        now = self._engine.now()
        shards = shard_names(Desk.NOTIFIER)
        found = await self._engine.store.due(Delivery, shards=shards, before=now, limit=_sweep_page)
        for stored in found:
            # Saved before it is published, so that a crash costs one round.
            later = stored.record.model_copy(update={"wake_at": now + self._lost_after})
            try:
                await self._engine.store.commit([Update(later, stored.etag)], save_id=self._engine.new_id())
            except Conflict:
                continue
            await self._engine.bus.publish(Topic.DELIVERY_DUE, DeliveryDue(delivery_id=stored.record.key))
        return len(found)

    async def _post(self, delivery: Delivery, job: Job) -> DeliveryAttempt:
        now = self._engine.now()
        payload = body(job, delivery.event, delivery.created_at, self._settings)
        signed = headers(owner_secret(self._master, delivery.owner), delivery.event_id, payload, now)
        http_status, error = None, None
        try:
            async with asyncio.timeout(self._settings.webhook_timeout_s):
                # Only the status line counts; the answer's body is never read.
                async with self._client.stream("POST", delivery.url, content=payload, headers=dict(signed)) as answer:
                    http_status = answer.status_code
            if not 200 <= http_status < 300:
                error = f"the endpoint answered {http_status}; any 2xx counts as received"
        except TimeoutError:
            error = f"no answer within {self._settings.webhook_timeout_s:.0f} s"
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as exc:
            error = f"no connection: {type(exc).__name__}"
        duration_ms = round((self._engine.now() - now).total_seconds() * 1000)
        return DeliveryAttempt(at=now, http_status=http_status, duration_ms=duration_ms, error=error)
