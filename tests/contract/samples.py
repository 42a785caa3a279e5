"""Records that contract tests store: one with every feature and free-form content, and a small job."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import ClassVar

from pydantic import JsonValue

from common.job import Image, Job, Kind, Status
from common.ledger import Cost
from common.records import Desk, Record

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
ANN, BEN = "test:ann", "test:ben"


class Note(Record):
    """Listed, due and free-form: whatever a record may be."""

    collection: ClassVar[str] = "notes"

    id: str
    owner: str = ANN
    created_at: datetime = NOON
    changed_at: datetime | None = None
    desk: Desk = Desk.INGEST
    wake_at: datetime | None = None
    text: str = ""
    number: int = 0
    extra: JsonValue = None

    @property
    def key(self) -> str:
        return self.id


class LaterNote(Record):
    """A note as a later version might write it, where `number` has become something else."""

    collection: ClassVar[str] = Note.collection

    id: str
    owner: str = ANN
    created_at: datetime = NOON
    changed_at: datetime | None = None
    desk: Desk = Desk.INGEST
    wake_at: datetime | None = None
    number: str = "a dozen"

    @property
    def key(self) -> str:
        return self.id


class Secret(Record):
    """Neither listed nor due, though it has an owner."""

    collection: ClassVar[str] = "secrets"

    id: str
    owner: str = ANN
    text: str = ""

    @property
    def key(self) -> str:
        return self.id


def job(number: int = 1, *, owner: str = ANN) -> Job:
    """A prompt that has just been queued."""
    return Job(
        id=f"{number:032x}",
        owner=owner,
        kind=Kind.IMAGE,
        style="photo",
        prompt="a red fox in the snow",
        negative_prompt=None,
        aspect_ratio="1:1",
        size="1K",
        model="gemini-nano-banana-2.1",
        status=Status.PENDING,
        stage=None,
        num_images=1,
        images=(Image(index=0),),
        cost=Cost(quoted_usd=Decimal("0.0336")),
        reached={Status.PENDING: 1},
        created_at=NOON,
        deadline_at=NOON + timedelta(minutes=30),
        delete_at=NOON + timedelta(days=30),
    )
