"""Faults that tests plan by the number of a call, and ports that meet them; the cloud engine's are in tests/google/."""

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from common.errors import Conflict, Unavailable
from common.ports import Engine


class Fault(StrEnum):
    """What happens to a call."""

    LOST_ANSWER = "applied, but its answer is lost"
    ABORTED = "aborted by another's, not applied"
    UNAVAILABLE = "refused, not applied"
    BUSY = "refused as one too many, not applied"
    SLOW = "applied, but long after it was asked"
    CUT = "answered in half"
    DAMAGED = "answered with a wrong byte"


@dataclass
class Plan:
    """Call number `at` (from 1) of `method`, and the `times - 1` after it, meet the fault; `seen` counts calls."""

    method: str = ""
    at: int = 0
    fault: Fault = Fault.UNAVAILABLE
    times: int = 1
    seen: Counter[str] = field(default_factory=Counter)
    met: int = 0

    def meets(self, method: str) -> Fault | None:
        """The fault that this call meets, if any; counts it."""
        self.seen[method] += 1
        if method != self.method or not self.at <= self.seen[method] < self.at + self.times:
            return None
        self.met += 1
        return self.fault

    def __str__(self) -> str:
        return f"{self.method} {self.at}: {self.fault}"


@dataclass
class Breaking:
    """A port whose methods meet a plan's faults."""

    real: Any
    plan: Plan
    methods: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.real, name)
        if name not in self.methods:
            return real

        async def call(*args: Any, **kwargs: Any) -> Any:
            match self.plan.meets(name):
                case None:
                    return await real(*args, **kwargs)
                case Fault.ABORTED:
                    raise Conflict("a fault of the test")
                case Fault.UNAVAILABLE:
                    raise Unavailable("a fault of the test")
                case Fault.LOST_ANSWER:
                    await real(*args, **kwargs)
                    raise Unavailable("a fault of the test")
                case fault:
                    raise NotImplementedError(f"no port meets {fault}")

        return call


def breaking(engine: Engine, plan: Plan) -> Engine:
    """The engine with a plan's faults in the calls that change something, and in downloads."""
    return replace(
        engine,
        store=Breaking(engine.store, plan, ("commit",)),
        bus=Breaking(engine.bus, plan, ("publish",)),
        blobs=Breaking(engine.blobs, plan, ("put", "download", "read")),
    )
