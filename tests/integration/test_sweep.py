"""The sweep beside workers: it takes nothing from one that still works, and nothing keeps it from the others."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from common.errors import Unavailable
from common.job import Job
from common.ports import Delete, Engine, Update
from common.records import Desk, Work
from common.saving import sweep_each
from local import gemini as stand_in
from tests.integration.test_outages import Flaky
from tests.world import World, jpeg, open_world

call_ms = 300
DEADLINE_S = 20


@pytest.fixture(scope="module")
def slow_model() -> Iterator[str]:
    """A model that takes long enough for something else to happen meanwhile."""
    with stand_in.running(delay_ms=call_ms, canned=jpeg()) as url:
        yield url


@asynccontextmanager
async def drawing(world: World, *jobs: str) -> AsyncIterator[None]:
    """While the model draws for these jobs; afterwards they have come as far as they go."""
    running = asyncio.create_task(world.run())
    async with asyncio.timeout(DEADLINE_S):
        while {(await world.stored(job)).record.status for job in jobs} != {"processing"}:  # noqa: ASYNC110
            await asyncio.sleep(0)
        yield
        await running


async def image(world: World, **wishes: Any) -> str:
    job = await world.create(kind="image", prompt="a lighthouse", **wishes)
    identifier: str = job["id"]
    return identifier


async def test_an_answer_that_takes_longer_than_the_sweeps_patience_is_kept_and_paid_for_once(
    tmp_path: Path, slow_model: str
) -> None:
    async with open_world(tmp_path, slow_model) as world:
        before = world.asked()
        job = await image(world)
        async with drawing(world, job):
            world.clock.advance(65)
            await world.sweep_only()
        await world.sweep()
        done = await world.job(job)
        assert (done["status"], world.asked() - before) == ("completed", 1)
        assert [(a["state"], a["billed"]) for a in done["attempts"]] == [("settled", "yes")]
        assert (await world.work(job)).wake_at is None


async def test_a_refusal_that_takes_longer_than_the_sweeps_patience_is_handed_back_as_it_was(
    tmp_path: Path, slow_model: str
) -> None:
    async with open_world(tmp_path, slow_model) as world:
        job = await image(world, num_images=2)
        world.mood("http_503", count=1)
        async with drawing(world, job):
            world.clock.advance(65)
            await world.sweep_only()
        waiting = await world.job(job)
        assert sorted(a["billed"] for a in waiting["attempts"]) == ["no", "yes"]
        await world.later(301)
        done = await world.job(job)
        assert (done["status"], done["partial"]) == ("completed", False)
        assert "unknown" not in {a["state"] for a in done["attempts"]}


async def test_a_job_that_another_worker_has_taken_over_is_left_to_him(tmp_path: Path, slow_model: str) -> None:
    async with open_world(tmp_path, slow_model) as world:
        job = await image(world)
        async with drawing(world, job):
            stored, work = await world.stored(job), await world.engine.store.get(Work, job)
            assert work is not None
            assert work.record.lease is not None
            other = work.record.lease.model_copy(update={"token": "another", "fence": 2})
            taken = work.record.model_copy(update={"lease": other, "fence": 2})
            await world.engine.store.commit([Update(taken, work.etag)], save_id="another")
        assert (await world.stored(job)).etag == stored.etag
        assert (await world.work(job)).lease == other


async def test_the_wait_for_room_is_no_part_of_the_lease(tmp_path: Path, slow_model: str) -> None:
    async with open_world(tmp_path, slow_model, calls_in_flight_max=1) as world:
        first, second = await image(world), await image(world)
        running = asyncio.create_task(world.run())
        async with asyncio.timeout(DEADLINE_S):
            while (await world.stored(first)).record.status != "processing":  # noqa: ASYNC110
                await asyncio.sleep(0)
            world.clock.advance(100)
            arrived = world.clock()
            await running
        (attempt,) = (await world.stored(second)).record.attempts
        assert attempt.sent_at >= arrived
        assert (await world.job(second))["status"] == "completed"


async def test_a_bug_while_telling_costs_no_paid_call(tmp_path: Path, slow_model: str) -> None:
    class Broken:
        def __init__(self, real: Any) -> None:
            self.real, self.left = real, 1

        async def publish(self, topic: Any, message: Any, *, event_id: str | None = None) -> Any:
            if event_id is not None and self.left:
                self.left -= 1
                raise ZeroDivisionError("a bug")
            return await self.real.publish(topic, message, event_id=event_id)

    async with open_world(tmp_path, slow_model, wrap=lambda engine: replace(engine, bus=Broken(engine.bus))) as world:
        job = await image(world, webhook={"url": "http://127.0.0.1:9/", "events": ["processing", "completed"]})
        await world.run()
        done = await world.job(job)
        assert (done["status"], [a["state"] for a in done["attempts"]]) == ("completed", ["settled"])


async def test_what_cannot_be_looked_after_is_put_off_and_the_others_are_not(world: World) -> None:
    jobs = [await image(world) for _ in range(40)]
    poison, seen = jobs[0], []
    world.clock.advance(61)

    async def look_after(task: Any) -> None:
        if task.job.record.id == poison:
            raise ZeroDivisionError("a bug")
        seen.append(task.job.record.id)

    assert await sweep_each(world.engine, Desk.PROCESSOR, look_after) == 40
    assert sorted(seen) == sorted(jobs[1:])
    work = await world.work(poison)
    assert work.wake_at is not None
    assert work.wake_at > world.clock() + timedelta(minutes=4)


async def test_a_store_that_is_away_stops_no_sweep(tmp_path: Path, stand_in_url: str) -> None:
    def wrap(engine: Engine) -> Engine:
        return replace(engine, store=Flaky(engine.store, "commit", lambda *_, **__: True, times=3))

    async with open_world(tmp_path, stand_in_url) as world:
        for _ in range(3):
            await image(world)
        world.clock.advance(61)

        async def look_after(task: Any) -> None:
            raise Unavailable("the bucket is away")

        assert await sweep_each(wrap(world.engine), Desk.PROCESSOR, look_after) == 3


async def test_the_work_of_an_erased_job_is_removed(world: World) -> None:
    job = await image(world)
    await world.engine.store.commit([Delete(Job, job)], save_id="erased")
    world.clock.advance(61)
    await world.sweep_only()
    assert await world.engine.store.get(Work, job) is None
