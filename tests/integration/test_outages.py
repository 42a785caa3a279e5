"""What happens when a part of ours fails, dies or comes late: nothing is lost, paid twice, or left behind."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from common import names
from common.errors import Unavailable
from common.job import Image, Job, Status
from common.ledger import Attempt
from common.messages import Topic, UploadFinalized
from common.ports import Change, Engine, Stored, Update
from common.records import Delivery, Lease, Record, Work
from local.server import release_leases
from tests.world import World, jpeg, open_world


@dataclass
class Flaky:
    """A port that fails before it reaches the real one, or after: then the work is done and the answer lost."""

    real: Any
    method: str
    fails: Callable[..., bool]
    times: int
    late: bool = False
    failed: int = field(default=0)

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.real, name)
        if name != self.method:
            return real

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.failed >= self.times or not self.fails(*args, **kwargs):
                return await real(*args, **kwargs)
            self.failed += 1
            if self.late:
                await real(*args, **kwargs)
            raise Unavailable("broken on purpose")

        return call


def settles(changes: Sequence[Change], **_: object) -> bool:
    """Whether a commit writes down what a call came to."""
    job = changes[0].record if isinstance(changes[0], Update) else None
    return isinstance(job, Job) and any(attempt.state == "settled" for attempt in job.attempts)


async def image(world: World, **wishes: object) -> str:
    job = await world.create(kind="image", prompt="a lighthouse", **wishes)
    identifier: str = job["id"]
    return identifier


@pytest.mark.parametrize("late", [False, True], ids=["refused", "answer lost"])
async def test_a_store_that_fails_after_the_call_costs_no_second_call(
    tmp_path: Path, stand_in_url: str, late: bool
) -> None:
    def wrap(engine: Engine) -> Engine:
        return replace(engine, store=Flaky(engine.store, "commit", settles, times=2, late=late))

    async with open_world(tmp_path, stand_in_url, wrap=wrap) as world:
        before = world.asked()
        job = await image(world)
        await world.run()
        done = await world.job(job)
        assert (done["status"], len(done["attempts"]), world.asked() - before) == ("completed", 1, 1)


async def test_a_bucket_that_fails_while_a_picture_is_kept_costs_no_second_call(
    tmp_path: Path, stand_in_url: str
) -> None:
    def wrap(engine: Engine) -> Engine:
        return replace(engine, blobs=Flaky(engine.blobs, "put", lambda bucket, *_, **__: bucket == "results", times=3))

    async with open_world(tmp_path, stand_in_url, wrap=wrap) as world:
        before = world.asked()
        job = await image(world)
        await world.run()
        done = await world.job(job)
        assert (done["status"], world.asked() - before) == ("completed", 1)
        assert (await world.api.get(done["images"][0]["thumbnail_url"])).status_code == 200


async def test_a_bucket_that_never_takes_the_picture_ends_the_job_and_says_it_was_paid(
    tmp_path: Path, stand_in_url: str
) -> None:
    def wrap(engine: Engine) -> Engine:
        return replace(engine, blobs=Flaky(engine.blobs, "put", lambda bucket, *_, **__: bucket == "results", times=99))

    async with open_world(tmp_path, stand_in_url, wrap=wrap, lease_s=11, model_deadline_s=10) as world:
        job = await image(world)
        await world.run()
        done = await world.job(job)
    assert (done["status"], done["error"]["code"], done["error"]["billed"]) == ("failed", "not_kept", "yes")
    assert len(done["attempts"]) == 2


async def test_a_photo_that_cannot_be_read_for_the_moment_costs_a_minute_not_the_job(
    tmp_path: Path, stand_in_url: str
) -> None:
    def wrap(engine: Engine) -> Engine:
        return replace(engine, blobs=Flaky(engine.blobs, "read", lambda *_, **__: True, times=1))

    async with open_world(tmp_path, stand_in_url, wrap=wrap) as world:
        job = await world.portrait()
        await world.run()
        assert (await world.job(job["id"]))["status"] == "pending"
        await world.later(60)
        done = await world.job(job["id"])
    assert (done["status"], len(done["attempts"])) == ("completed", 1)


async def test_a_checked_photo_that_is_gone_ends_the_job_unbilled(world: World) -> None:
    job = await world.portrait()
    await world.run_only(Topic.UPLOAD_FINALIZED)
    await world.engine.blobs.delete("inputs", names.input_name("local:me", job["id"]))
    await world.run()
    done = await world.job(job["id"])
    assert (done["status"], done["error"]["code"], done["attempts"]) == ("failed", "internal", [])


async def test_a_picture_that_is_there_is_not_thrown_away_because_its_sibling_must_wait(world: World) -> None:
    world.mood("http_429_day", count=1)
    job = await image(world, num_images=2)
    await world.run()
    done = await world.job(job)
    assert (done["status"], done["partial"]) == ("completed", True)
    assert sorted(i["status"] for i in done["images"]) == ["completed", "failed"]
    failed = next(i for i in done["images"] if i["status"] == "failed")
    assert (failed["error"]["code"], failed["error"]["billed"]) == ("quota_exhausted", "yes")


async def test_at_the_time_limit_the_pictures_that_are_there_are_kept(world: World) -> None:
    world.mood("http_503", count=1)
    job = await image(world, num_images=2)
    await world.run()
    world.mood("http_503")
    for _ in range(10):
        await world.later(301)
    done = await world.job(job)
    assert (done["status"], done["partial"]) == ("completed", True)


async def test_a_model_that_says_come_back_at_once_is_not_asked_without_pause(world: World) -> None:
    detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0s"}
    body = '{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "", "details": [%s]}}'
    world.mood("raw", status=429, body=body % str(detail).replace("'", '"'))
    job = await image(world)
    for _ in range(60):
        await world.later(1)
    assert 2 <= len((await world.job(job))["attempts"]) <= 8


async def test_one_record_that_cannot_be_read_does_not_keep_the_sweep_from_the_others(world: World) -> None:
    jobs = [await image(world) for _ in range(4)]
    for number in range(1, 5):
        await world.embedded.bus.acknowledge(number)

    def spoil(connection: Any) -> None:
        connection.execute("UPDATE records SET data = '{}' WHERE collection = 'jobs' AND key = ?", (jobs[0],))
        connection.execute("UPDATE records SET data = '{}' WHERE collection = 'work' AND key = ?", (jobs[1],))

    with closing(sqlite3.connect(world.folder / "darkroom.sqlite3", isolation_level=None)) as connection:
        spoil(connection)
    await world.later(61)
    assert [(await world.job(job))["status"] for job in jobs[2:]] == ["completed", "completed"]


async def claimed(world: World, job: str, **changes: object) -> None:
    """The job as a worker leaves it that dies right after its claim."""
    stored = await world.stored(job)
    work = await world.engine.store.get(Work, job)
    assert work is not None
    lease = Lease(token="t", fence=1, expires_at=world.clock() + timedelta(seconds=150))
    line = Attempt(image=0, fence=1, model=stored.record.model, state="sent", sent_at=world.clock())
    sent = stored.record.send(stored.record.images, (line,), world.clock())
    wake_at = min(lease.expires_at, stored.record.deadline_at)
    held = work.record.model_copy(
        update={"lease": lease, "fence": 1, "untold": ("processing",), "unqueued": False, "wake_at": wake_at, **changes}
    )
    await world.engine.store.commit([Update(sent, stored.etag), Update(held, work.etag)], save_id="claim")


async def test_news_that_a_dead_worker_did_not_tell_is_told_even_if_another_claims_first(world: World) -> None:
    job = await image(world, webhook={"url": "http://127.0.0.1:9/", "events": ["processing", "completed"]})
    await claimed(world, job)
    await world.run()
    world.clock.advance(151)
    await world.run()
    await world.sweep()
    state = await world.job(job)
    assert state["status"] == "completed"
    for status in ("processing", "completed"):
        delivery = await world.engine.store.get(Delivery, f"{job}.{state['reached'][status]}")
        assert delivery is not None, status


async def test_a_job_whose_worker_died_ends_at_its_limit_and_not_at_the_end_of_the_lease(
    tmp_path: Path, stand_in_url: str
) -> None:
    async with open_world(tmp_path, stand_in_url, job_limit_s=30) as world:
        job = await image(world)
        await claimed(world, job)
        await world.run()
        await world.later(31)
        done = await world.job(job)
        assert (done["status"], done["error"]["billed"], done["attempts"][0]["state"]) == ("failed", "maybe", "sent")
        await world.later(61)
        await world.later(151)
        done = await world.job(job)
        assert (done["attempts"][0]["state"], done["attempts"][0]["settled_at"] is None) == ("unknown", False)
        assert (await world.work(job)).wake_at is None


async def test_a_cancelled_job_whose_worker_died_is_left_without_open_lines_and_objects(world: World) -> None:
    job = await image(world)
    await claimed(world, job)
    await world.api.post(f"/v1/jobs/{job}/cancel")
    name = names.result_name("local:me", job, 0)
    await world.engine.blobs.put("results", name, jpeg(), content_type="image/jpeg", metadata={})
    await world.later(151)
    await world.later(2)
    done = await world.job(job)
    assert (done["status"], done["attempts"][0]["state"]) == ("cancelled", "unknown")
    assert await world.engine.blobs.stat("results", name) is None
    assert (await world.work(job)).wake_at is None


async def test_photos_of_a_job_that_ended_before_they_were_taken_in_are_removed(world: World) -> None:
    job = await world.portrait()
    await world.embedded.bus.acknowledge(1)
    half = names.input_name("local:me", job["id"])
    await world.engine.blobs.put("inputs", half, jpeg(), content_type="image/jpeg", metadata={})
    await world.api.post(f"/v1/jobs/{job['id']}/cancel")
    await world.run()
    await world.later(56 * 60)
    assert await world.engine.blobs.stat("inputs", half) is None
    assert await world.engine.blobs.stat("uploads", names.upload_name("local:me", job["id"])) is None
    assert (await world.work(job["id"])).wake_at is None


async def test_a_stale_event_does_not_end_a_job_whose_photo_was_uploaded_again(world: World) -> None:
    job = await world.create()
    name = names.upload_name("local:me", job["id"])
    stale = UploadFinalized(bucket="uploads", name=name, generation=1, size=9, time_created=world.clock())
    await world.upload(job, jpeg())
    await world.embedded.bus.acknowledge(1)
    await world.engine.bus.publish(Topic.UPLOAD_FINALIZED, stale)
    await world.run()
    assert (await world.job(job["id"]))["status"] == "awaiting_upload"
    await world.later(61)
    assert (await world.job(job["id"]))["status"] == "completed"


async def test_a_picture_and_its_thumbnail_are_always_of_the_same_call(world: World) -> None:
    job = await image(world)
    name = names.thumbnail_name("local:me", job, 0)
    await world.run()
    finished = await world.stored(job)
    work: Stored[Record] | None = await world.engine.store.get(Work, job)
    assert work is not None
    await world.engine.blobs.delete("results", name)
    blank = Image(index=0)
    before = finished.record.model_copy(
        update={"status": Status.PROCESSING, "images": (blank,), "finished_at": None, "error": None}
    )
    owed = work.record.model_copy(update={"wake_at": world.clock(), "unqueued": True})
    await world.engine.store.commit([Update(before, finished.etag), Update(owed, work.etag)], save_id="back")
    await world.sweep()
    done = await world.job(job)
    assert done["status"] == "completed"
    assert (await world.api.get(done["images"][0]["thumbnail_url"])).headers["content-type"] == "image/webp"


async def test_jobs_ask_for_no_more_calls_at_once_than_allowed(tmp_path: Path, stand_in_url: str) -> None:
    async with open_world(tmp_path, stand_in_url, calls_in_flight_max=4) as world:
        jobs = [await image(world, num_images=3) for _ in range(4)]
        running = asyncio.create_task(world.run())
        most = 0
        while not running.done():
            states = [(await world.stored(job)).record for job in jobs]
            most = max(most, sum(a.state == "sent" for state in states for a in state.attempts))
            await asyncio.sleep(0)
        await running
        assert most <= 4
        assert [(await world.job(job))["status"] for job in jobs] == ["completed"] * 4


async def test_a_job_whose_process_died_goes_on_at_the_next_start_and_not_after_the_lease(world: World) -> None:
    job = await image(world)
    await claimed(world, job)
    await release_leases(world.engine)
    await world.run()
    await world.sweep()
    done = await world.job(job)
    assert (done["status"], [a["state"] for a in done["attempts"]]) == ("completed", ["unknown", "settled"])
