"""What a Feed promises, on every engine: the present state, then newer ones only, and never a missed last one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import cast

import pytest

from common.errors import Conflict
from common.job import Job, Status
from common.ports import Create, Delete, Engine, Stored, Update
from tests.contract.samples import ANN, BEN, NOON, job

DEADLINE_S = 10


async def save(engine: Engine, saved: Job, etag: str | None = None) -> Stored[Job]:
    """Create the job, or replace the version `etag`."""
    change = Create(saved) if etag is None else Update(saved, etag)
    (stored,) = await engine.store.commit([change], save_id=engine.new_id())
    return cast(Stored[Job], stored)


async def advance(engine: Engine, stored: Stored[Job]) -> Stored[Job]:
    """The next state of a job that is being worked on, saved."""
    return await save(engine, stored.record.send(stored.record.images, (), NOON), stored.etag)


async def following(states: AsyncIterator[Job]) -> Job:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(states)


async def rest(states: AsyncIterator[Job]) -> list[Job]:
    """All states until the end."""
    async with asyncio.timeout(DEADLINE_S):
        return [state async for state in states]


async def erase(engine: Engine, number: int = 1) -> None:
    await engine.store.commit([Delete(Job, job(number).id)], save_id=engine.new_id())


async def test_first_comes_the_present_state(engine: Engine) -> None:
    stored = await advance(engine, await save(engine, job()))
    async with engine.feed.watch_job(job().id) as states:
        assert await following(states) == stored.record


async def test_then_comes_each_change(engine: Engine) -> None:
    stored = await save(engine, job())
    async with engine.feed.watch_job(job().id) as states:
        assert (await following(states)).revision == 1
        for revision in (2, 3, 4):
            stored = await advance(engine, stored)
            assert (await following(states)).revision == revision


async def test_change_wakes_a_watcher_that_already_waits(engine: Engine) -> None:
    stored = await save(engine, job())
    async with engine.feed.watch_job(job().id) as states:
        await following(states)
        waiting = asyncio.ensure_future(following(states))
        await asyncio.sleep(0)
        await advance(engine, stored)
        assert (await waiting).status is Status.PROCESSING


async def test_change_right_after_subscribing_is_not_missed(engine: Engine) -> None:
    stored = await save(engine, job())
    async with engine.feed.watch_job(job().id) as states:
        await advance(engine, stored)
        seen = [await following(states)]
        while seen[-1].revision < 2:
            seen.append(await following(states))
        assert [state.revision for state in seen] in ([1, 2], [2])


async def test_change_that_races_with_subscribing_is_not_missed(engine: Engine) -> None:
    stored = await save(engine, job())
    for revision in range(2, 22):
        change = asyncio.ensure_future(advance(engine, stored))
        async with engine.feed.watch_job(job().id) as states:
            while (await following(states)).revision < revision:
                continue
        stored = await change


async def test_slow_reader_gets_the_newest_and_nothing_older(engine: Engine) -> None:
    stored = await save(engine, job())
    async with engine.feed.watch_job(job().id) as states:
        for _ in range(50):
            stored = await advance(engine, stored)
        seen = [await following(states)]
        while seen[-1].revision < 51:
            seen.append(await following(states))
        revisions = [state.revision for state in seen]
        assert revisions == sorted(set(revisions))
        assert seen[-1] == stored.record


async def test_revision_that_was_given_does_not_come_again(engine: Engine) -> None:
    stored = await save(engine, job())
    async with engine.feed.watch_job(job().id) as states:
        await following(states)
        silent = await save(engine, stored.record.settle_silently(()), stored.etag)
        await advance(engine, silent)
        assert (await following(states)).revision == 2


async def test_watch_ends_when_the_job_is_erased(engine: Engine) -> None:
    await save(engine, job())
    async with engine.feed.watch_job(job().id) as states:
        await following(states)
        await erase(engine)
        assert await rest(states) == []


async def test_last_state_comes_before_the_end(engine: Engine) -> None:
    stored = await save(engine, job())
    async with engine.feed.watch_job(job().id) as states:
        await following(states)
        await save(engine, stored.record.cancel(NOON), stored.etag)
        assert (await following(states)).status is Status.CANCELLED
        await erase(engine)
        assert await rest(states) == []


async def test_watch_of_a_job_that_is_not_there_ends_at_once(engine: Engine) -> None:
    async with engine.feed.watch_job(job().id) as states:
        assert await rest(states) == []


async def test_every_watcher_gets_every_job_it_asked_for(engine: Engine) -> None:
    stored = await save(engine, job(1))
    other = await save(engine, job(2))
    feed = engine.feed
    async with feed.watch_job(job(1).id) as one, feed.watch_job(job(1).id) as two, feed.watch_job(job(2).id) as three:
        for states in (one, two, three):
            await following(states)
        await advance(engine, stored)
        assert (await following(one)).revision == (await following(two)).revision == 2
        await advance(engine, other)
        assert (await following(three)).id == job(2).id


async def test_watcher_that_left_disturbs_nobody(engine: Engine) -> None:
    stored = await save(engine, job())
    async with engine.feed.watch_job(job().id) as staying:
        await following(staying)
        async with engine.feed.watch_job(job().id) as leaving:
            await following(leaving)
        await advance(engine, stored)
        assert (await following(staying)).revision == 2


async def test_other_jobs_and_refused_changes_are_silent(engine: Engine) -> None:
    stored = await save(engine, job())
    async with engine.feed.watch_job(job().id) as states:
        await following(states)
        await save(engine, job(2))
        await advance(engine, stored)
        with pytest.raises(Exception, match="changed"):
            await save(engine, stored.record.cancel(NOON), stored.etag)
        assert (await following(states)).status is Status.PROCESSING
        await erase(engine)
        assert await rest(states) == []


async def test_commit_is_told_though_its_caller_went_away(engine: Engine) -> None:
    stored = await save(engine, job())
    for _ in range(20):
        async with engine.feed.watch_job(job().id) as states:
            await following(states)
            leaving = asyncio.ensure_future(advance(engine, stored))
            for _ in range(2):
                await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            # Another commit on the same version decides it: one of the two is there now, and the other never will be.
            with suppress(Conflict):
                await advance(engine, stored)
            read = await engine.store.get(Job, job().id)
            assert read is not None
            assert (await following(states)).revision == read.record.revision == stored.record.revision + 1
            stored = read


async def test_owner_hears_of_changes_of_all_their_jobs_from_now_on(engine: Engine) -> None:
    old = await save(engine, job(1))
    async with engine.feed.watch_owner(ANN) as states:
        await save(engine, job(2))
        assert (await following(states)).id == job(2).id
        await advance(engine, old)
        changed = await following(states)
        assert (changed.id, changed.revision) == (job(1).id, 2)


async def test_owner_hears_of_nobody_elses_jobs(engine: Engine) -> None:
    async with engine.feed.watch_owner(ANN) as states:
        await save(engine, job(1, owner=BEN))
        await save(engine, job(2, owner=f"{ANN}a"))
        await save(engine, job(3))
        assert (await following(states)).id == job(3).id


async def test_slow_owner_gets_the_newest_of_each_job(engine: Engine) -> None:
    async with engine.feed.watch_owner(ANN) as states:
        for number in (1, 2, 3):
            stored = await save(engine, job(number))
            for _ in range(5):
                stored = await advance(engine, stored)
        newest: dict[str, int] = {}
        while set(newest.values()) != {6} or len(newest) < 3:
            state = await following(states)
            assert state.revision > newest.get(state.id, 0)
            newest[state.id] = state.revision


async def test_erased_job_does_not_end_the_owners_watch(engine: Engine) -> None:
    await save(engine, job(1))
    async with engine.feed.watch_owner(ANN) as states:
        await erase(engine, 1)
        await save(engine, job(2))
        assert (await following(states)).id == job(2).id
