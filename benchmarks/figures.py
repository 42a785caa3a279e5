"""What was measured, as plain values, and the arithmetic on them. Nothing is measured or printed here."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.bare import Bare
from benchmarks.load import Done
from benchmarks.programs import Usage

MB = 1_000_000
SUBJECTS = ("darkroom", "async", "threads")


@dataclass(frozen=True, slots=True)
class PerJob:
    """CPU milliseconds for one job: of the process that serves, and of the processes it started."""

    own_ms: float
    children_ms: float

    @property
    def all_ms(self) -> float:
        return self.own_ms + self.children_ms


@dataclass(frozen=True, slots=True)
class Round:
    """One subject's turn: as many jobs as it can take with some in flight, then a steady few a second."""

    capacity_per_s: float
    capacity_cpu: PerJob
    health_ms: list[float]
    client_cpu_ms: float
    steady: list[Done]
    steady_cpu: PerJob
    rss: int
    lost: list[str]


@dataclass(frozen=True, slots=True)
class Creates:
    """`POST /v1/jobs` alone: a second, milliseconds each, and how busy (share of a core) server and clients were."""

    per_s: float
    each_ms: list[float]
    pinned: bool
    server_share: float
    client_share: float
    server_cpu_ms: float


@dataclass(frozen=True, slots=True)
class Uploads:
    """Many clients uploading at once: health meanwhile, how long it took, and the jobs that did not complete.

    `bytes_per_s` is each client's pace, None where they send as fast as the server takes it.
    """

    bytes_per_s: float | None
    clients: int
    photos: int
    seconds: float
    health_ms: list[float]
    lost: int


@dataclass(frozen=True, slots=True)
class Endurance:
    """Many jobs in a row: memory of the process tree after so many of them, and the jobs lost."""

    wanted: int
    done: int
    lost: list[str]
    per_s: float
    rss: dict[int, Usage]
    photo: str

    @property
    def cpu(self) -> PerJob:
        """CPU of one of these jobs, whose small photo hides what receiving a large one costs."""
        last = max(self.rss)
        return per_job(self.rss[0], self.rss[last], last)

    @property
    def growth(self) -> int:
        """Bytes by which the tree grew from the first sample to the last."""
        samples = [self.rss[number].rss for number in sorted(self.rss)]
        return samples[-1] - samples[0]


@dataclass(slots=True)
class Findings:
    """All of one run of the benchmark."""

    machine: dict[str, str]
    setup: dict[str, str]
    quick: bool
    rounds: dict[str, list[Round]] = field(default_factory=lambda: {name: [] for name in SUBJECTS})
    idle_ms_per_s: float = 0.0
    bare: Bare | None = None
    creates: Creates | None = None
    uploads: Uploads | None = None
    paced_uploads: Uploads | None = None
    endurance: Endurance | None = None
    seconds: float = 0.0

    def steady(self, subject: str) -> list[Done]:
        """The jobs of all its steady turns."""
        return [done for turn in self.rounds[subject] for done in turn.steady]

    def lost(self, subject: str) -> list[str]:
        """Why jobs of its turns were lost."""
        return [why for turn in self.rounds[subject] for why in turn.lost]

    def health_ms(self, subject: str) -> list[float]:
        """Health checks of all its turns at capacity."""
        return [each for turn in self.rounds[subject] for each in turn.health_ms]

    def capacity_per_s(self, subject: str) -> float:
        """The median of its turns."""
        return median(turn.capacity_per_s for turn in self.rounds[subject])

    def cpu(self, subject: str, *, steady: bool) -> PerJob:
        """The median of its turns."""
        turns = [turn.steady_cpu if steady else turn.capacity_cpu for turn in self.rounds[subject]]
        return PerJob(median(turn.own_ms for turn in turns), median(turn.children_ms for turn in turns))

    def rss(self, subject: str) -> int:
        """The largest of its turns."""
        return max(turn.rss for turn in self.rounds[subject])

    def ratio(self, subject: str, of: str = "darkroom") -> float:
        """Capacity of one against another: the median of the ratios of turns that followed each other."""
        pairs = zip(self.rounds[of], self.rounds[subject], strict=False)
        return median(ours.capacity_per_s / max(theirs.capacity_per_s, 1e-9) for ours, theirs in pairs)

    def own_ms(self, *, steady: bool) -> float | None:
        """CPU milliseconds of our own code for one job: without image work, and without the model's client."""
        if self.bare is None:
            return None
        return self.cpu("darkroom", steady=steady).own_ms - self.bare.client_async_ms


def per_job(before: Usage, after: Usage, jobs: int) -> PerJob:
    """CPU used between two moments, shared by the jobs between them."""
    share = 1000 / max(jobs, 1)
    return PerJob((after.own_cpu_s - before.own_cpu_s) * share, (after.children_cpu_s - before.children_cpu_s) * share)


def median(values: Iterable[float]) -> float:
    """The median; NaN of nothing."""
    found = list(values)
    return statistics.median(found) if found else math.nan


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed (nearest rank), so p99 of fewer than 100 is their largest."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
