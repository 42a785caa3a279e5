"""What so many pictures a day ask of Google Cloud, what that costs, and which limit comes first: arithmetic alone.

The numbers it starts from are in scale_facts.py; scale.py prints what comes out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal

from benchmarks import scale_facts as facts
from benchmarks.scale_facts import GIB, Fact, Operations
from common import catalogue
from common.records import SHARDS

goal_share = 0.01
"""What everything but the model may cost, of the model's price."""
days = 30
_day_s = 86_400
_soft_deleted_days = 7
_cpu_target = 0.6
"""Cloud Run adds instances to keep CPU at this share: https://cloud.google.com/run/docs/about-instance-autoscaling."""


@dataclass(frozen=True, slots=True)
class Load:
    """Portraits of one picture, evenly over the day but for a busiest hour; each is told, and its picture fetched once.

    `watched`: by server-sent events; else by a webhook. `egress`: the picture leaves Google. `soft_delete`: the bucket
    of uploads keeps what was deleted for its usual 7 days.
    """

    images_per_day: float
    watched: bool = True
    egress: bool = True
    soft_delete: bool = True
    model: str = catalogue.load().default

    @property
    def per_s(self) -> float:
        """Images a second over the day."""
        return self.images_per_day / _day_s

    @property
    def peak_per_s(self) -> float:
        """Images a second in the busiest hour."""
        return self.per_s * facts.peak_factor.value

    @property
    def operations(self) -> Operations:
        """What one image asks of the engines, by our own counts."""
        return facts.PORTRAIT + (facts.STREAM if self.watched else facts.WEBHOOK)


@dataclass(frozen=True, slots=True)
class Service:
    """One Cloud Run service: requests an image, seconds of clock and CPU a request, and its settings."""

    name: str
    requests: float
    seconds: float
    cpu_s: float
    concurrency: int
    memory_gib: float

    def instances(self, per_s: float) -> float:
        """Instances of one vCPU that are busy at this rate of images, in parts of one."""
        by_places = self.requests * per_s * self.seconds / self.concurrency
        by_cpu = self.requests * per_s * self.cpu_s / _cpu_target
        return max(by_places, by_cpu)

    def billed_s(self, per_s: float) -> float:
        """Instance-seconds billed a second: an instance costs while it has a request, however many it has.

        Requests come at random, so the fewer there are, the less they share an instance's time.
        """
        instances = max(1.0, self.instances(per_s))
        in_flight = self.requests * per_s * self.seconds / instances
        return instances * (1 - math.exp(-in_flight))


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a month's bill; `free` of the quantity costs nothing."""

    product: str
    what: str
    quantity: float
    unit_usd: float
    free: float = 0.0

    @property
    def usd(self) -> float:
        """Dollars a month at list price, the free part left out."""
        return max(0.0, self.quantity - self.free) * self.unit_usd

    @property
    def full_usd(self) -> float:
        """The same if nothing were free."""
        return self.quantity * self.unit_usd


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that ends: how much of it there is a second, how much an image takes, and what to do about it."""

    name: str
    per_s: float
    per_image: float
    remedy: str

    @property
    def images_per_day(self) -> float:
        """The day's images at which its busiest hour reaches the limit."""
        return self.per_s / self.per_image / facts.peak_factor.value * _day_s


def services(load: Load) -> tuple[Service, ...]:
    """The five services; concurrency as the design sets it, memory as docs/cloud.md does."""
    network, intake, generation = facts.network_s.value, facts.intake_cpu_s.value, facts.generation_cpu_s.value
    watched = float(load.watched)
    news = 1 if load.watched else 2
    return (
        Service("ingest-api", 1, network, facts.create_cpu_s.value, 80, 0.5),
        Service("ingest-push", 1, 2 * network + intake, intake, 2, 2),
        Service("processor-push", 1, facts.model_s.value + 2 * network + generation, generation, 32, 2),
        Service("notifier-push", news, network, facts.news_cpu_s.value, 80, 0.5),
        Service("notifier-api", watched, facts.watched_s.value, facts.stream_cpu_s.value, 800, 0.5),
    )


def bill(load: Load) -> tuple[Line, ...]:
    """A month of it, without the model."""
    images, done = load.images_per_day * days, load.operations
    # A stream that begins with the job reads it once, and again with each change after that.
    heard = done.job_writes if load.watched else 0
    requests = images * sum(service.requests for service in services(load))
    busy_s = {service: service.billed_s(load.per_s) * _day_s * days for service in services(load)}
    messages = 2 * done.publishes * facts.pubsub_bytes_min.value + 2 * facts.notification_bytes.value
    logged = done.log_lines * facts.log_line_bytes.value
    logged += requests / images * facts.request_log_bytes.value
    stored = facts.picture_bytes.value + facts.thumbnail_bytes.value
    kept = stored + facts.input_bytes.value
    photo = facts.photo_bytes.value * _soft_deleted_days / days if load.soft_delete else 0.0
    sent = images * stored / 1e9 if load.egress else 0.0
    first, rest = min(sent, 10_000.0), max(0.0, sent - 10_000.0)
    free = {name: fact.value for name, fact in facts.FREE.items()}
    return (
        Line("Firestore", "documents written", images * done.writes, facts.firestore_write_usd.value,
             free["Firestore writes"]),
        Line("Firestore", "documents read, also by listening", images * (done.reads + heard),
             facts.firestore_read_usd.value, free["Firestore reads"]),
        Line("Firestore", "documents expired", images * 2, facts.firestore_delete_usd.value,
             free["Firestore deletes"]),
        Line("Firestore", "GiB kept 30 days", images * facts.documents_bytes.value / GIB,
             facts.firestore_gib_usd.value),
        Line("Pub/Sub", "bytes published and pushed", images * messages, facts.pubsub_usd.value, free["Pub/Sub bytes"]),
        Line("Storage", "objects written", images * (done.puts + 1), facts.storage_class_a_usd.value),
        Line("Storage", "objects read and described", images * (2 * done.downloads + done.fetches + done.stats + 2),
             facts.storage_class_b_usd.value),
        Line("Storage", "GB of results and inputs kept 30 days", images * kept / 1e9, facts.storage_gb_usd.value),
        Line("Storage", "GB of deleted photos kept 7 days", images * photo / 1e9, facts.storage_gb_usd.value),
        Line("egress", "GB to the internet", first, facts.egress_gb_usd.value),
        Line("egress", "GB to the internet, beyond 10 TB", rest, facts.egress_gb_usd_large.value),
        Line("Cloud Run", "vCPU-seconds", sum(busy_s.values()), facts.run_cpu_usd.value, free["Cloud Run CPU"]),
        Line("Cloud Run", "GiB-seconds", sum(s * service.memory_gib for service, s in busy_s.items()),
             facts.run_memory_usd.value, free["Cloud Run memory"]),
        Line("Cloud Run", "requests", requests, facts.run_request_usd.value, free["Cloud Run requests"]),
        Line("logs", "bytes", images * logged, facts.logging_usd.value, free["logs"]),
    )  # fmt: skip


def model_usd(load: Load) -> float:
    """The model's month: one picture a job at 1K, none paid twice."""
    price: Decimal = catalogue.load().model(load.model).price_usd("1K")
    return float(price) * load.images_per_day * days


def share(load: Load, *, with_free: bool = False) -> float:
    """What everything but the model costs, of the model's price."""
    return sum(line.usd if with_free else line.full_usd for line in bill(load)) / model_usd(load)


def holds_from(load: Load) -> float | None:
    """Images a day from which everything but the model costs no more than the goal; None if it never does."""
    low, high = 1.0, 1e9
    if share(replace(load, images_per_day=high)) > goal_share:
        return None
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        if share(replace(load, images_per_day=middle)) > goal_share:
            low = middle
        else:
            high = middle
    return high


def limits(load: Load) -> list[Limit]:
    """What ends first stands first."""
    done = load.operations
    index, bucket = facts.index_writes_per_s.value, facts.bucket_writes_per_s.value
    vcpus = sum(service.instances(1.0) for service in services(load))
    pushed = done.publishes * facts.pubsub_bytes_min.value + facts.notification_bytes.value
    found = [
        Limit("Gemini, one project's quota", facts.model_per_minute.value / 60, 1,
              "Vertex AI (shared quota, none of one's own), then provisioned throughput; peaks wait in the queue"),
        Limit("one owner's jobs, index (owner, changed_at)", index, done.job_writes,
              "split such a customer into several owners"),
        Limit("all jobs, if changed_at alone is indexed", index, done.job_writes,
              "exempt the field (docs/cloud.md)"),
        Limit("signatures by IAM", facts.sign_per_minute.value / 60, done.signatures,
              "ask for more, or serve results through a CDN with its own keys"),
        Limit("bucket of uploads as it begins", bucket, 1 + done.deletes, "grow no faster than twice in 20 minutes"),
        Limit("Cloud Run, vCPUs of a new project in a region", facts.run_vcpus.value, vcpus,
              "ask for more; a second region"),
        Limit("sweep index of the processor's desk", index * SHARDS, done.processor_work_writes, "more shards"),
        Limit("bytes pushed by Pub/Sub", facts.push_bytes_per_s.value, pushed, "ask for more"),
    ]  # fmt: skip
    return sorted(found, key=lambda limit: limit.images_per_day)


def ramp_minutes(load: Load) -> float:
    """How long Firestore wants for the way from nothing to the busiest hour, by 500/50/5."""
    done = load.operations
    wanted = load.peak_per_s * (done.writes + done.reads)
    steps = math.log(max(1.0, wanted / facts.ramp_start_per_s.value), facts.ramp_growth.value)
    return 5.0 * math.ceil(steps)


def every_fact() -> Iterator[tuple[str, Fact]]:
    """All facts by name."""
    for name, value in vars(facts).items():
        if isinstance(value, Fact):
            yield name, value
    yield from facts.FREE.items()
