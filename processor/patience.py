"""How long a worker insists on saving what was paid for. What is saved is its caller's business."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from common.errors import Conflict, Retryable
from common.telemetry import logger

log = logger(__name__)

T = TypeVar("T")
_first_wait_s = 0.05
_longest_wait_s = 5.0
# The lease must not end under an attempt that still runs.
_margin_s = 10.0


@dataclass(frozen=True, slots=True)
class Patience:
    """The time until a lease ends: `since` by the event loop's clock, `lease_s` long."""

    since: float
    lease_s: float

    @property
    def held_s(self) -> float:
        """How long ago the lease began."""
        return asyncio.get_running_loop().time() - self.since

    async def insist(self, action: Callable[[], Awaitable[T]]) -> T:
        """Repeat `action`, which must be safe to repeat, while our own store or bucket fails and the lease lasts.

        A paid answer is in hand, and the bus could only bring the job back after the lease: for a second call.
        Raises Conflict at once, and the last Retryable when time is up.
        """
        wait_s = _first_wait_s
        while True:
            try:
                return await action()
            except Conflict:
                raise
            except Retryable as exc:
                if self.held_s + wait_s > self.lease_s - _margin_s:
                    raise
                log.warning("job.insisted", extra={"code": exc.code, "detail": exc.detail, "wait_s": wait_s})
            await asyncio.sleep(wait_s)
            wait_s = min(_longest_wait_s, wait_s * 2)
