"""A request becomes a job: wishes are checked against style, model and limits. Nothing is stored here."""

from datetime import datetime, timedelta
from decimal import Decimal
from urllib.parse import urlsplit

from common import catalogue, styles
from common.errors import Rejected
from common.job import Image, Job, Kind, Stage, Status, Webhook
from common.ledger import Cost
from common.loopback import LOOPBACK
from common.settings import Settings
from ingest.schemas import JobRequest, prompt_chars_max


def new_job(job_id: str, owner: str, request: JobRequest, now: datetime, settings: Settings) -> Job:
    """The job that a request asks for. Raises Rejected with the code of the first wish that cannot be met."""
    style = styles.get(request.style or styles.DEFAULTS[request.kind], request.kind)
    model = catalogue.load().model(request.model or settings.model)
    ratio, size = request.aspect_ratio or style.default_ratio, request.size or style.default_size
    model.check(ratio, size)
    portrait = request.kind is Kind.PORTRAIT
    prompt = _prompt(request.prompt, required=not portrait)
    window = timedelta(seconds=settings.upload_window_s)
    limit = timedelta(seconds=settings.job_limit_s)
    status = Status.AWAITING_UPLOAD if portrait else Status.PENDING
    return Job(
        id=job_id,
        owner=owner,
        kind=request.kind,
        style=style.name,
        prompt=prompt,
        negative_prompt=_prompt(request.negative_prompt, required=False),
        aspect_ratio=ratio,
        size=size,
        num_images=request.num_images,
        model=model.name,
        status=status,
        stage=None if portrait else Stage.QUEUED,
        stand_in=settings.stand_in,
        images=tuple(Image(index=index) for index in range(request.num_images)),
        cost=Cost(quoted_usd=Decimal(0) if settings.stand_in else model.price_usd(size) * request.num_images),
        reached={status: 1},
        created_at=now,
        queued_at=None if portrait else now,
        upload_expires_at=now + window if portrait else None,
        deadline_at=now + limit + (window + timedelta(seconds=settings.upload_grace_s) if portrait else timedelta()),
        delete_at=now + timedelta(days=settings.results_days),
        metadata=dict(request.metadata),
        webhook=_webhook(request, settings),
    )


def _prompt(text: str | None, *, required: bool) -> str | None:
    if not text:
        if required:
            raise Rejected("prompt_empty")
        return None
    if len(text) > prompt_chars_max:
        raise Rejected("prompt_too_long", f"a prompt has {len(text):,} characters; {prompt_chars_max:,} are allowed")
    return text


def _webhook(request: JobRequest, settings: Settings) -> Webhook | None:
    if request.webhook is None:
        return None
    url = request.webhook.url
    local = settings.webhook_loopback and urlsplit(url).hostname in LOOPBACK
    if not url.startswith("https://") and not local:
        raise Rejected("invalid_request", "webhook.url: must start with https://")
    if request.kind is Kind.IMAGE and Status.PENDING in request.webhook.events:
        raise Rejected("invalid_request", "webhook.events: an image begins as pending, so leave that out")
    return Webhook(url=url, events=tuple(dict.fromkeys(request.webhook.events)))
