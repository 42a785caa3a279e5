"""What a webhook carries and how it is signed, by https://www.standardwebhooks.com. Nothing is sent here."""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime

from common.job import Job
from common.settings import Settings, SettingsError
from common.views import job_view

_version = "v1"


def master_secret(settings: Settings) -> str:
    """What owners' secrets are derived from. Raises SettingsError where webhooks could not be signed."""
    if settings.webhook_secret is None:
        raise SettingsError("webhooks could not be signed: set WEBHOOK_SECRET to 32 random bytes or more")
    return settings.webhook_secret.get_secret_value()


def owner_secret(master: str, owner: str) -> str:
    """The owner's signing secret, `whsec_` and 32 bytes in base64; derived, so that none is stored."""
    key = hmac.digest(master.encode(), f"webhook {_version} {owner}".encode(), hashlib.sha256)
    return "whsec_" + base64.b64encode(key).decode()


def body(job: Job, status: str, event_at: datetime, settings: Settings) -> bytes:
    """`{type, timestamp, data}` in JSON; `data` is the job as `GET /v1/jobs/{id}` shows it, without signed URLs."""
    data = job_view(job, settings)
    text = data.__pydantic_serializer__.to_json(data, warnings=False).decode()
    return f'{{"type":"job.{status}","timestamp":"{event_at.isoformat()}","data":{text}}}'.encode()


def headers(secret: str, event_id: str, payload: bytes, now: datetime) -> Mapping[str, str]:
    """The three signature headers and the content type; `now` is the time of this attempt, in whole seconds."""
    from standardwebhooks import Webhook

    signature = Webhook(secret).sign(event_id, now, payload.decode())
    return {
        "content-type": "application/json",
        "user-agent": "Darkroom/1 (+webhooks)",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
