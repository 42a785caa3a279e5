"""The paid-call ledger of a job: its lines, and what they say together. When a line is written, processor/ decides."""

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Literal

from common.records import Model

Billed = Literal["yes", "no", "maybe"]


class Attempt(Model):
    """One line of the paid-call ledger: written `sent` before the call leaves, settled after it.

    `unknown` is a call whose outcome nobody saw; it counts against the cap as if it were paid. `cost_usd` is the
    catalogue's price of a picture that came; what a refusal's input tokens cost is not priced.
    """

    image: int
    fence: int
    model: str
    state: Literal["sent", "settled", "unknown"]
    sent_at: datetime
    settled_at: datetime | None = None
    outcome: str | None = None
    billed: Billed = "maybe"
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: Decimal = Decimal(0)

    @property
    def counts(self) -> bool:
        """Whether it uses up one of the image's paid calls: all do but those known to be free."""
        return not (self.state == "settled" and self.billed == "no")


def billed(attempts: Iterable[Attempt]) -> Billed:
    """What the ledger says of these calls together: `yes` if one was paid for, `maybe` if one may have been."""
    lines = tuple(attempts)
    if any(line.state == "settled" and line.billed == "yes" for line in lines):
        return "yes"
    return "maybe" if any(line.counts for line in lines) else "no"


class Cost(Model):
    """US dollars: what the job may cost by the catalogue, and what its ledger says it did cost."""

    quoted_usd: Decimal
    settled_usd: Decimal = Decimal(0)
