"""The calculator of benchmarks/scale.py: its counts against the real code, its sums against sums done by hand."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scale, scale_facts
from benchmarks.scale_facts import Operations
from benchmarks.scale_plot import picture
from benchmarks.scale_sums import Load, Service, bill, limits, model_usd, ramp_minutes, share
from common.job import Job
from common.ports import Change, Delete, Engine
from common.records import Delivery, Desk, Work
from tests.world import World, jpeg, open_world

ROOT = Path(__file__).parents[2]
BLOB_METHODS = {
    "put": "puts",
    "download": "downloads",
    "read": "fetches",
    "stat": "stats",
    "delete": "deletes",
    "sign_put": "signatures",
    "sign_get": "signatures",
}


class Counting:
    """A port that tells what goes through it, and does it."""

    def __init__(self, real: Any, tell: Callable[[str, Sequence[Any]], None]) -> None:
        self._real = real
        self._tell = tell

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._tell(name, args)
            return real(*args, **kwargs)

        return call


class Meter(logging.Handler):
    """What was asked of an engine, and logged, since it was last read. What it does not know, it refuses."""

    def __init__(self) -> None:
        super().__init__()
        self._counted: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self._counted["log_lines"] += 1

    def around(self, engine: Engine) -> Engine:
        return replace(
            engine,
            store=Counting(engine.store, self._asked),
            blobs=Counting(engine.blobs, lambda name, _: self._counted.update([BLOB_METHODS[name]])),
            bus=Counting(engine.bus, lambda _, __: self._counted.update(["publishes"])),
        )

    def read(self) -> Operations:
        counted = Operations(**self._counted)
        self._counted.clear()
        return counted

    def _asked(self, name: str, args: Sequence[Any]) -> None:
        if name == "commit":
            self._counted.update(["commits", *map(_written, args[0])])
        else:
            assert name == "get", f"`{name}` of the store is new in a job's way: let the calculator count it"
            self._counted["reads"] += 1


def _written(change: Change) -> str:
    assert not isinstance(change, Delete), "a job's way deletes records now: let the calculator count them"
    match change.record:
        case Job():
            return "job_writes"
        case Delivery():
            return "delivery_writes"
        case Work(wake_at=None):
            return "asleep_work_writes"
        case Work(desk=Desk.INGEST):
            return "ingest_work_writes"
        case Work(desk=Desk.PROCESSOR):
            return "processor_work_writes"
    raise AssertionError(f"{type(change.record).__name__} is new in a job's way: let the calculator count it")


@pytest.fixture
def meter() -> Iterator[Meter]:
    opened = Meter()
    log = logging.getLogger("darkroom")
    level = log.level
    log.addHandler(opened)
    log.setLevel(logging.INFO)
    yield opened
    log.setLevel(level)
    log.removeHandler(opened)


@pytest.fixture
async def world(tmp_path: Path, stand_in_url: str, meter: Meter) -> AsyncIterator[World]:
    async with open_world(tmp_path, stand_in_url, wrap=meter.around) as opened:
        meter.read()
        yield opened


async def test_the_calculator_knows_what_a_portrait_asks_of_the_engines(world: World, meter: Meter) -> None:
    await world.portrait()
    await world.run()
    assert meter.read() == scale_facts.PORTRAIT


async def test_the_calculator_knows_what_a_prompt_asks_of_the_engines(world: World, meter: Meter) -> None:
    await world.create(kind="image", prompt="a pear")
    await world.run()
    assert meter.read() == scale_facts.IMAGE


async def test_the_calculator_knows_what_a_webhook_adds(world: World, meter: Meter) -> None:
    # Nobody listens there: what is written and sent is the same.
    await world.portrait(webhook={"url": "http://127.0.0.1:9/hook"})
    await world.run()
    assert meter.read() == scale_facts.PORTRAIT + scale_facts.WEBHOOK


async def test_the_calculator_knows_what_a_stream_adds(world: World, meter: Meter) -> None:
    job = await world.create()
    stream = asyncio.create_task(world.api.get(job["links"]["events"]))
    answer = await world.upload(job, jpeg())
    assert answer.status_code == 200, answer.text
    await world.run()
    assert '"completed"' in (await stream).text
    assert meter.read() == scale_facts.PORTRAIT + scale_facts.STREAM


async def test_the_calculator_knows_what_showing_a_job_adds(world: World, meter: Meter) -> None:
    job = await world.portrait()
    await world.run()
    meter.read()
    assert (await world.job(job["id"]))["status"] == "completed"
    assert meter.read() == scale_facts.SHOW


def test_a_month_of_a_million_portraits_a_day_is_billed_as_by_hand() -> None:
    lines = {(line.product, line.what): line.quantity for line in bill(Load(1_000_000))}
    images = 30_000_000
    assert lines["Firestore", "documents written"] == 13 * images
    # Five by the services, one when the stream begins, six as it hears of the job.
    assert lines["Firestore", "documents read, also by listening"] == 12 * images
    # Three by us and the photo by the client; a download is two, and the client fetches picture and thumbnail.
    assert lines["Storage", "objects written"] == 4 * images
    assert lines["Storage", "objects read and described"] == 5 * images
    # A create, the bucket's push, the queue's, the news, and the stream.
    assert lines["Cloud Run", "requests"] == 5 * images
    assert model_usd(Load(1_000_000)) == pytest.approx(images * 0.0336)


def test_what_is_free_is_taken_off_a_small_bill() -> None:
    small = Load(100)
    assert sum(line.usd for line in bill(small) if line.product == "Firestore") < 0.01
    assert share(small, with_free=True) < share(small)


def test_a_seldom_asked_instance_bills_each_request_and_a_busy_one_shares_its_time() -> None:
    service = Service("waiting", requests=1, seconds=10, cpu_s=0.001, concurrency=32, memory_gib=1)
    assert service.billed_s(0.001) == pytest.approx(0.01, rel=0.01)
    assert service.billed_s(1000) == pytest.approx(service.instances(1000), rel=0.01)
    assert service.instances(1000) == pytest.approx(1000 * 10 / 32)


def test_cpu_needs_instances_where_places_do_not() -> None:
    service = Service("counting", requests=1, seconds=0.1, cpu_s=0.1, concurrency=80, memory_gib=1)
    assert service.instances(60) == pytest.approx(10)


def test_a_limit_is_reached_by_the_busiest_hour() -> None:
    found = {limit.name: limit for limit in limits(Load(1))}
    # 1,000 signatures a second, three an image, and three times the average at worst.
    assert found["signatures by IAM"].images_per_day == pytest.approx(1000 / 3 / 3 * 86_400)
    assert [limit.images_per_day for limit in limits(Load(1))] == sorted(
        limit.images_per_day for limit in found.values()
    )


def test_firestore_wants_five_minutes_for_each_half_more() -> None:
    assert ramp_minutes(Load(1000)) == 0
    # 10,000 operations a second are 500 times 1.5 to the power of 7.4.
    per_s = 10_000 / (13 + 6)
    assert ramp_minutes(Load(per_s * 86_400 / scale_facts.peak_factor.value)) == 40


def test_every_outside_number_names_its_source() -> None:
    sheet = scale.facts_sheet()
    assert len(sheet.rows) > 40
    assert all(all(cell for cell in row) for row in sheet.rows)


def test_the_page_shows_what_the_calculator_says() -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    missing = [sheet.title for sheet in scale.sheets(scale.RATES)[1:] if sheet.markdown() not in page]
    assert not missing, f"`python -m benchmarks.scale --markdown` says otherwise: {missing}"


def test_the_picture_shows_what_the_calculator_says() -> None:
    drawn = (ROOT / "docs" / "scale.svg").read_text(encoding="utf-8")
    assert drawn == picture(), "draw it again: `python -m benchmarks.scale --plot docs/scale.svg`"
