"""A queued job's way to its end: every outcome of the model, races, waits, crashes, limits."""

import asyncio
from pathlib import Path

import pytest

from common import names
from common.job import Status
from common.messages import JobQueued, Topic
from common.ports import Update
from tests.world import World, open_world


async def image(world: World, **wishes: object) -> str:
    job = await world.create(kind="image", prompt="a lighthouse", **wishes)
    identifier: str = job["id"]
    return identifier


async def test_four_images_are_four_calls_and_four_lines_in_the_ledger(world: World) -> None:
    before = world.asked()
    job = await world.job(await image(world, num_images=4))
    await world.run()
    done = await world.job(job["id"])
    assert [i["status"] for i in done["images"]] == ["completed"] * 4
    assert [(a["image"], a["state"], a["billed"]) for a in done["attempts"]] == [
        (i, "settled", "yes") for i in range(4)
    ]
    assert world.asked() - before == 4


@pytest.mark.parametrize(
    ("mood", "code", "billed", "calls"),
    [
        ("refuse_input", "content_blocked_input", "yes", 1),
        ("refuse_output", "content_blocked_output", "yes", 1),
        ("http_400", "invalid_input", "no", 1),
        ("http_404", "model_retired", "no", 1),
        ("text_only", "no_image", "yes", 2),
        ("garbage_image", "bad_output", "yes", 2),
        ("reset", "timeout", "maybe", 2),
        ("http_429_day", "quota_exhausted", "no", 1),
    ],
)
async def test_a_refusal_or_failure_ends_the_job_with_its_code(
    world: World, mood: str, code: str, billed: str, calls: int
) -> None:
    world.mood(mood)
    before = world.asked()
    job = await image(world)
    await world.run()
    done = await world.job(job)
    assert (done["status"], done["error"]["code"], done["error"]["billed"]) == ("failed", code, billed)
    assert (len(done["attempts"]), world.asked() - before) == (calls, calls)
    assert done["images"][0]["error"]["advice"]


@pytest.mark.parametrize("mood", ["http_429", "http_500", "http_503", "http_403"])
async def test_a_passing_failure_waits_and_then_succeeds_without_counting_as_paid(world: World, mood: str) -> None:
    world.mood(mood, count=1)
    job = await image(world)
    await world.run()
    waiting = await world.job(job)
    assert (waiting["status"], waiting["stage"], waiting["attempts"][0]["billed"]) == ("processing", "queued", "no")
    await world.later(400)
    done = await world.job(job)
    assert (done["status"], len(done["attempts"])) == ("completed", 2)


async def test_a_model_that_never_recovers_ends_the_job_at_its_limit_with_the_reason(world: World) -> None:
    world.mood("http_503")
    job = await image(world)
    for _ in range(10):
        await world.later(301)
    done = await world.job(job)
    assert (done["status"], done["error"]["code"], done["error"]["billed"]) == ("failed", "upstream_unavailable", "no")
    assert (await world.work(job)).wake_at is None


async def test_a_duplicate_message_during_a_wait_does_not_call_early(world: World) -> None:
    world.mood("http_503", count=1)
    job = await image(world)
    await world.run()
    before = world.asked()
    await world.engine.bus.publish(Topic.JOB_QUEUED, JobQueued(job_id=job))
    await world.run()
    assert world.asked() == before


async def test_some_images_refused_make_a_partial_job(world: World) -> None:
    world.mood("refuse_output", count=1)
    job = await image(world, num_images=3)
    await world.run()
    done = await world.job(job)
    assert (done["status"], done["partial"]) == ("completed", True)
    assert sorted(i["status"] for i in done["images"]) == ["completed", "completed", "failed"]


async def test_fifty_copies_of_one_message_make_one_call(world: World) -> None:
    before = world.asked()
    job = await image(world)
    for _ in range(50):
        await world.engine.bus.publish(Topic.JOB_QUEUED, JobQueued(job_id=job))
    await world.run()
    done = await world.job(job)
    assert (done["status"], len(done["attempts"]), world.asked() - before) == ("completed", 1, 1)


async def test_a_message_after_the_end_changes_nothing(world: World) -> None:
    job = await image(world)
    await world.run()
    before = await world.stored(job)
    await world.engine.bus.publish(Topic.JOB_QUEUED, JobQueued(job_id=job))
    await world.run()
    assert (await world.stored(job)).etag == before.etag


async def status_is(world: World, job: str, status: Status) -> None:
    async with asyncio.timeout(10), world.engine.feed.watch_job(job) as states:
        async for state in states:
            if state.status is status:
                return


async def abandon(world: World, job: str, *, calls: int) -> None:
    """Leave the job as a worker leaves it that was killed during its call: claimed, the ledger line `sent`."""
    working = asyncio.create_task(world.sweep())
    async with asyncio.timeout(10), world.engine.feed.watch_job(job) as states:
        async for state in states:
            if len(state.attempts) == calls:
                break
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_a_worker_killed_during_its_call_leaves_an_unknown_attempt_and_the_next_one_finishes(
    tmp_path: Path, stand_in_url: str
) -> None:
    async with open_world(tmp_path, stand_in_url) as world:
        world.mood("hang")
        job = await image(world)
        await abandon(world, job, calls=1)
    async with open_world(tmp_path, stand_in_url, clock=world.clock) as world:
        world.mood("ok")
        await world.run()
        assert (await world.job(job))["status"] == "processing", "the lease of the dead worker still holds"
        await world.later(151)
        done = await world.job(job)
    assert done["status"] == "completed"
    assert [(a["fence"], a["state"], a["billed"]) for a in done["attempts"]] == [
        (1, "unknown", "maybe"),
        (2, "settled", "yes"),
    ]


async def test_two_lost_calls_reach_the_cap_and_no_third_is_made(tmp_path: Path, stand_in_url: str) -> None:
    async with open_world(tmp_path, stand_in_url) as world:
        world.mood("hang")
        job = await image(world)
        await abandon(world, job, calls=1)
    world.clock.advance(151)
    async with open_world(tmp_path, stand_in_url, clock=world.clock) as world:
        await abandon(world, job, calls=2)
    async with open_world(tmp_path, stand_in_url, clock=world.clock) as world:
        before = world.asked()
        world.mood("ok")
        await world.later(151)
        done = await world.job(job)
        assert world.asked() == before
    assert (done["status"], done["error"]["code"], done["error"]["billed"]) == ("failed", "timeout", "maybe")


async def test_a_picture_stored_before_the_crash_is_adopted_and_settles_the_ledger(world: World) -> None:
    job = await image(world)
    await world.run()
    finished = await world.stored(job)
    work = await world.engine.store.get(type(await world.work(job)), job)
    assert work is not None
    # Turn the clock back to the moment between the object and the job's commit.
    sent = finished.record.attempts[0].model_copy(
        update={"state": "sent", "settled_at": None, "outcome": None, "billed": "maybe", "output_tokens": None}
    )
    blank = finished.record.images[0].model_copy(update={"status": "pending", "name": None, "thumbnail_name": None})
    before = finished.record.model_copy(
        update={"status": Status.PROCESSING, "attempts": (sent,), "images": (blank,), "finished_at": None}
    )
    owed = work.record.model_copy(update={"wake_at": world.clock(), "unqueued": True})
    await world.engine.store.commit([Update(before, finished.etag), Update(owed, work.etag)], save_id="back")
    asked = world.asked()
    await world.sweep()
    done = await world.job(job)
    assert (done["status"], world.asked()) == ("completed", asked)
    assert (done["attempts"][0]["state"], done["attempts"][0]["billed"]) == ("settled", "yes")
    assert done["images"][0]["sha256"] == finished.record.images[0].sha256


async def test_a_job_cancelled_during_its_call_stays_cancelled_and_says_what_became_of_the_call(
    tmp_path: Path, stand_in_url: str
) -> None:
    async with open_world(tmp_path, stand_in_url, model_deadline_s=0.5) as world:
        world.mood("hang", count=1)
        job = await image(world)
        running = asyncio.create_task(world.run())
        await status_is(world, job, Status.PROCESSING)
        answer = await world.api.post(f"/v1/jobs/{job}/cancel")
        assert (answer.status_code, answer.json()["attempts"][0]["state"]) == (200, "sent")
        await running
        done = await world.job(job)
        assert (done["status"], done["attempts"][0]["state"]) == ("cancelled", "unknown")
        assert await world.engine.blobs.stat("results", names.result_name("local:me", job, 0)) is None
