"""The numbers that scale.py reckons with, each with its source, its day, and how far to trust it; no arithmetic here.

`measured`: by us, on two cores and loopback. `documented`: on Google's page, read in a stored copy of it or quoted from
it by others; the day is that of the copy or, where it bears none, of the look-up. `assumed`: by nobody's word but ours.
Prices are list prices of us-central1 in US dollars.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from types import MappingProxyType
from typing import Literal

GIB = 1024**3
TIB = 1024**4
MB = 10**6


@dataclass(frozen=True, slots=True)
class Fact:
    """One number; `unit` says of what."""

    value: float
    unit: str
    basis: Literal["measured", "documented", "assumed"]
    as_of: date
    source: str


@dataclass(frozen=True, slots=True)
class Operations:
    """What one thing that happens asks of the engines; `tests/integration/test_scale.py` counts it on the real code.

    `reads` and the writes are documents: those of jobs are what watchers hear of, those of Work are split by the desk
    whose shards index them, `asleep` where none does. `downloads` asks for description and bytes, `fetches` for bytes.
    """

    reads: int = 0
    job_writes: int = 0
    ingest_work_writes: int = 0
    processor_work_writes: int = 0
    asleep_work_writes: int = 0
    delivery_writes: int = 0
    commits: int = 0
    publishes: int = 0
    signatures: int = 0
    puts: int = 0
    downloads: int = 0
    fetches: int = 0
    stats: int = 0
    deletes: int = 0
    log_lines: int = 0

    @property
    def writes(self) -> int:
        """Documents written, whatever they are."""
        return self.job_writes + self.work_writes + self.delivery_writes

    @property
    def work_writes(self) -> int:
        """Documents of Work written, of whichever desk."""
        return self.ingest_work_writes + self.processor_work_writes + self.asleep_work_writes

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


PORTRAIT = Operations(
    reads=5, job_writes=6, ingest_work_writes=2, processor_work_writes=4, asleep_work_writes=1, commits=7, publishes=2,
    signatures=1, puts=3, downloads=1, fetches=1, deletes=1, log_lines=6,
)  # fmt: skip
"""From `POST /v1/jobs` to the end, told; the photo's upload and its notification are the client's and the bucket's."""
IMAGE = Operations(
    reads=3, job_writes=4, processor_work_writes=4, asleep_work_writes=1, commits=5, publishes=2, puts=2, log_lines=5
)
"""The same for a prompt; further pictures of the same job add two puts each and nothing else."""
WEBHOOK = Operations(reads=3, delivery_writes=2, commits=2, publishes=1, log_lines=1)
"""What one webhook adds to a job."""
STREAM = Operations(reads=1, signatures=2)
"""What watching a job of one picture by server-sent events adds; on Firestore each change it hears is a read too."""
SHOW = Operations(reads=1, signatures=2)
"""One `GET /v1/jobs/{id}` of a finished job of one picture."""

_MEASURED = _LOOKED_UP = date(2026, 11, 23)


def _measured(value: float, unit: str, how: str) -> Fact:
    return Fact(value, unit, "measured", _MEASURED, how)


def _documented(value: float, unit: str, source: str, as_of: date = _LOOKED_UP) -> Fact:
    return Fact(value, unit, "documented", as_of, source)


def _assumed(value: float, unit: str, why: str) -> Fact:
    return Fact(value, unit, "assumed", _LOOKED_UP, why)


_PUBSUB = "https://cloud.google.com/pubsub/pricing"
_FIRESTORE = "https://cloud.google.com/firestore/pricing, Standard edition"
_STORAGE = "https://cloud.google.com/storage/pricing-examples"
_RUN = "https://cloud.google.com/run/pricing, request-based billing, tier 1"
_PRACTICES = "https://firebase.google.com/docs/firestore/best-practices"
_LOGGING = "https://cloud.google.com/stackdriver/pricing"
_CLUSTER = "the five services on the emulators (tests/e2e/cluster.py), 60 portraits of 3.9 MB, 4 in flight"
_BENCH = "docs/benchmarks.md, `make bench`"

# Prices.
firestore_write_usd = _documented(0.09 / 100_000, "USD a document", _FIRESTORE, date(2026, 8, 18))
firestore_read_usd = _documented(0.03 / 100_000, "USD a document", _FIRESTORE, date(2026, 8, 18))
firestore_delete_usd = _documented(0.01 / 100_000, "USD a document, TTL included", _FIRESTORE, date(2026, 8, 18))
firestore_gib_usd = _documented(0.15, "USD a GiB and month", _FIRESTORE, date(2026, 8, 18))
pubsub_usd = _documented(40 / TIB, "USD a byte, in and out", _PUBSUB, date(2026, 9, 20))
pubsub_bytes_min = _documented(1000, "bytes a request", _PUBSUB, date(2026, 9, 20))
storage_gb_usd = _documented(0.020, "USD a GB and month, Standard", _STORAGE)
storage_class_a_usd = _documented(0.005 / 1000, "USD an object written", _STORAGE)
storage_class_b_usd = _documented(0.0004 / 1000, "USD an object read or described", _STORAGE)
egress_gb_usd = _documented(0.12, "USD a GB to the internet, first TB of a month", _STORAGE)
egress_gb_usd_large = _assumed(0.08, "USD a GB beyond 10 TB a month", "an old price page; the present one was not seen")
run_cpu_usd = _documented(0.000024, "USD a vCPU-second", _RUN)
run_memory_usd = _documented(0.0000025, "USD a GiB-second", _RUN)
run_request_usd = _documented(0.40 / 10**6, "USD a request", _RUN)
logging_usd = _documented(0.50 / GIB, "USD a byte", _LOGGING)

# What a month costs nothing for (the daily ones times 30).
FREE: Mapping[str, Fact] = MappingProxyType(
    {
        "Firestore writes": _documented(20_000 * 30, "documents", "https://cloud.google.com/firestore/quotas"),
        "Firestore reads": _documented(50_000 * 30, "documents", "https://cloud.google.com/firestore/quotas"),
        "Firestore deletes": _documented(20_000 * 30, "documents", "https://cloud.google.com/firestore/quotas"),
        "Pub/Sub bytes": _documented(10 * GIB, "bytes", _PUBSUB, date(2026, 9, 20)),
        "Cloud Run CPU": _documented(180_000, "vCPU-seconds", _RUN),
        "Cloud Run memory": _documented(360_000, "GiB-seconds", _RUN),
        "Cloud Run requests": _documented(2 * 10**6, "requests", _RUN),
        "logs": _documented(50 * GIB, "bytes", _LOGGING),
    }
)

# Sizes, in bytes.
photo_bytes = _measured(3.9 * MB, "bytes", f"the benchmark's 12 MP JPEG, {_BENCH}")
input_bytes = _measured(0.04 * MB, "bytes", "that photo in 512 px")
picture_bytes = _assumed(1.5 * MB, "bytes", "a 1K PNG; a JPEG is a quarter of it")
thumbnail_bytes = _assumed(0.03 * MB, "bytes", "a WebP of 256 px")
documents_bytes = _measured(
    4_000, "bytes", "1,894 bytes of JSON of a finished job and its Work, twice for names and indexes"
)
notification_bytes = _assumed(1_500, "bytes", "Cloud Storage's JSON_API_V1 of an object")
log_line_bytes = _measured(270, "bytes", "1,574 bytes in 6 lines of one portrait")
request_log_bytes = _assumed(1_000, "bytes", "Cloud Run's own line for a request")

# Time of one job, in seconds of clock and CPU.
model_s = _assumed(12.0, "s", "what Gemini takes for a picture; nothing here could ask it")
watched_s = _assumed(16.0, "s", "a stream from the upload to the end")
network_s = _assumed(0.15, "s", "Firestore, Cloud Storage and IAM, a few calls in one region")
create_cpu_s = _measured(0.006, "s", _CLUSTER)
intake_cpu_s = _measured(0.077, "s, 0.049 of it in the worker that opens the photo", _CLUSTER)
generation_cpu_s = _measured(0.055, "s, 0.023 of it in the worker that checks the picture", _CLUSTER)
news_cpu_s = _measured(0.003, "s", _CLUSTER)
stream_cpu_s = _measured(0.016, "s", _CLUSTER)

# Limits.
peak_factor = _assumed(3, "times the day's average", "the busiest hour of a day")
sign_per_minute = _documented(60_000, "signatures a minute and project", "https://cloud.google.com/iam/quotas")
index_writes_per_s = _documented(500, "writes a second into a rising index range", _PRACTICES)
ramp_start_per_s = _documented(500, "operations a second on a new collection", _PRACTICES)
ramp_growth = _documented(1.5, "times, every 5 minutes", _PRACTICES)
bucket_writes_per_s = _documented(
    1000, "writes a second a bucket begins with", "https://cloud.google.com/storage/docs/request-rate"
)
run_vcpus = _documented(
    1000, "vCPU a region, as a project begins", "https://cloud.google.com/run/docs/configuring/max-instances-limits"
)
push_bytes_per_s = _documented(
    20 * MB, "bytes a second pushed in a large region", "an older copy of https://cloud.google.com/pubsub/quotas"
)
model_per_minute = _assumed(
    300, "pictures a minute", "third parties of 2026 name 5 to 300 for paid tiers; Google shows a project its own only"
)
