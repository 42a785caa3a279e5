"""The feed's one stream to Firestore: cut, refused, shared by many, and closed when nobody watches."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from common.errors import Unavailable
from common.google import feed as feed_module
from common.google.documents import to_fields
from common.google.feed import FirestoreFeed
from common.google.store import FirestoreStore
from common.job import Job, Status
from common.ports import Change, Create, Delete, Stored, Update
from tests.contract.samples import ANN, NOON, job
from tests.google.emulators import Emulators
from tests.google.tcp_proxy import TcpProxy, tcp_proxy

DEADLINE_S = 15
MANY = 200


@dataclass
class Scene:
    """A store with a straight way to the emulator, and a feed whose way leads through the proxy."""

    store: FirestoreStore
    feed: FirestoreFeed
    proxy: TcpProxy
    emulators: Emulators
    project: str

    async def commit(self, changes: Sequence[Change]) -> list[Stored[Job]]:
        """Commit for certain: the emulator refuses commits whose change it cannot tell to a listener just cut off."""
        save_id = secrets.token_hex(16)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    return cast(list[Stored[Job]], list(await self.store.commit(changes, save_id=save_id)))
                except Unavailable:
                    continue

    async def create(self, *numbers: int) -> list[Stored[Job]]:
        return await self.commit([Create(job(number)) for number in numbers])

    async def advance(self, *jobs: Stored[Job]) -> list[Stored[Job]]:
        """The next state of each, in one commit."""
        return await self.commit([Update(it.record.send(it.record.images, (), NOON), it.etag) for it in jobs])

    async def erase(self, number: int) -> None:
        await self.commit([Delete(Job, job(number).id)])

    async def write(self, number: int, **changed: Any) -> None:
        """Write a job's document past the store, with some fields as no store would write them."""
        from google.cloud.firestore_v1 import AsyncClient

        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("FIRESTORE_EMULATOR_HOST", self.emulators.firestore_host)
            client = AsyncClient(project=self.project)
            fields = {**to_fields(job(number), "save"), "changed_at": datetime.now(UTC), **changed}
            await client.document("jobs", job(number).id).set(fields, retry=None, timeout=DEADLINE_S)
            await client._firestore_api.transport.close()


@pytest.fixture
async def scene(emulators: Emulators, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    project = f"test-{secrets.token_hex(4)}"
    store = FirestoreStore(project, "(default)")
    await store.get(Job, job().id)
    async with tcp_proxy(emulators.firestore_host) as proxy:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", proxy.host)
        feed = FirestoreFeed(project, "(default)")
        yield Scene(store, feed, proxy, emulators, project)
        await feed.aclose()
    await store.aclose()


async def following(states: AsyncIterator[Job]) -> Job:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(states)


async def until_revision(states: AsyncIterator[Job], revision: int) -> Job:
    """Read on to that revision, which must come without anything newer before it."""
    state = await following(states)
    while state.revision < revision:
        state = await following(states)
    assert state.revision == revision
    return state


async def rest(states: AsyncIterator[Job]) -> list[Job]:
    async with asyncio.timeout(DEADLINE_S):
        return [state async for state in states]


async def all_end(tasks: set[asyncio.Task[Any]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*tasks, return_exceptions=True)


def cut_off(proxy: TcpProxy) -> None:
    """Break what there is, and let nobody in."""
    proxy.refusing = True
    proxy.cut()


async def test_watcher_sees_the_newest_state_after_its_connection_was_cut(scene: Scene) -> None:
    (stored,) = await scene.create(1)
    async with scene.feed.watch_job(job().id) as states:
        await following(states)
        cut_off(scene.proxy)
        for _ in range(3):
            (stored,) = await scene.advance(stored)
        scene.proxy.refusing = False
        assert (await until_revision(states, 4)) == stored.record


async def test_changes_go_on_while_the_connection_is_cut_again_and_again(scene: Scene) -> None:
    (stored,) = await scene.create(1)
    async with scene.feed.watch_job(job().id) as states:
        await following(states)
        for revision in (2, 3, 4):
            scene.proxy.cut()
            (stored,) = await scene.advance(stored)
            await until_revision(states, revision)
        assert scene.proxy.accepted == 4


async def test_watch_ends_when_the_job_was_erased_while_the_connection_was_cut(scene: Scene) -> None:
    (stored,) = await scene.create(1)
    async with scene.feed.watch_job(job().id) as states:
        await following(states)
        cut_off(scene.proxy)
        await scene.advance(stored)
        await scene.erase(1)
        scene.proxy.refusing = False
        assert await rest(states) == []


async def test_owner_hears_of_what_changed_while_the_connection_was_cut(scene: Scene) -> None:
    stored, erased = await scene.create(1, 2)
    async with scene.feed.watch_owner(ANN) as states:
        cut_off(scene.proxy)
        await scene.advance(stored)
        await scene.erase(2)
        await scene.create(3)
        scene.proxy.refusing = False
        heard = [await following(states), await following(states)]
        assert {(state.id, state.revision) for state in heard} == {(job(1).id, 2), (job(3).id, 1)}
        assert erased.record.id not in {state.id for state in heard}


async def test_watch_outlasts_refused_connections(scene: Scene) -> None:
    (stored,) = await scene.create(1)
    async with scene.feed.watch_job(job().id) as states:
        await following(states)
        cut_off(scene.proxy)
        await scene.advance(stored)
        await scene.proxy.until(lambda: scene.proxy.refused >= 3)
        scene.proxy.refusing = False
        await until_revision(states, 2)


async def test_watch_that_cannot_begin_is_unavailable_and_leaves_nothing_open(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "ready_s_max", 0.5)
    tasks = asyncio.all_tasks()
    scene.proxy.refusing = True
    for watch in (scene.feed.watch_job(job().id), scene.feed.watch_owner(ANN)):
        with pytest.raises(Unavailable):
            async with watch:
                pass
    await all_end(asyncio.all_tasks() - tasks)


async def test_many_jobs_are_watched_on_one_connection(scene: Scene) -> None:
    numbers = range(1, MANY + 1)
    stored = await scene.create(*numbers)
    async with AsyncExitStack() as stack:
        watches = [scene.feed.watch_job(job(number).id) for number in numbers]
        watched = await asyncio.gather(*(stack.enter_async_context(watch) for watch in watches))
        await scene.advance(*stored)
        seen = await asyncio.gather(*(until_revision(states, 2) for states in watched))
        assert [state.id for state in seen] == [job(number).id for number in numbers]
        assert scene.proxy.accepted == 1
    await scene.proxy.until(lambda: scene.proxy.connections == 0)


async def test_connection_opens_with_the_first_watcher_and_closes_after_the_last(scene: Scene) -> None:
    await scene.create(1, 2)
    for opened in (1, 2):
        async with scene.feed.watch_job(job(1).id):
            async with scene.feed.watch_job(job(2).id), scene.feed.watch_owner(ANN):
                pass
            assert scene.proxy.connections == 1
        await scene.proxy.until(lambda: scene.proxy.connections == 0)
        assert scene.proxy.accepted == opened


async def test_watcher_cancelled_at_any_moment_leaves_nothing_open(scene: Scene) -> None:
    await scene.create(1)
    tasks = asyncio.all_tasks()

    async def watch() -> None:
        async with scene.feed.watch_job(job().id) as states:
            await rest(states)

    for turns in range(0, 60, 3):
        watching = asyncio.create_task(watch())
        for _ in range(turns):
            await asyncio.sleep(0)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    await scene.proxy.until(lambda: scene.proxy.connections == 0)
    await all_end(asyncio.all_tasks() - tasks)


@pytest.mark.parametrize("owner", [True, False])
async def test_feed_closed_at_any_moment_tells_whose_watch_begins_and_leaves_nothing_open(
    scene: Scene, owner: bool
) -> None:
    await scene.create(1)
    tasks = asyncio.all_tasks()

    async def watch(feed: FirestoreFeed) -> None:
        async with feed.watch_owner(ANN) if owner else feed.watch_job(job().id) as states:
            await rest(states)

    for turns in range(0, 90, 3):
        feed = FirestoreFeed(scene.project, "(default)")
        watching = asyncio.create_task(watch(feed))
        for _ in range(turns):
            await asyncio.sleep(0)
        await feed.aclose()
        with pytest.raises(Unavailable):
            await watching
    await scene.proxy.until(lambda: scene.proxy.connections == 0)
    await all_end(asyncio.all_tasks() - tasks)


async def test_who_joins_after_the_end_ends_too(scene: Scene) -> None:
    await scene.create(1)
    async with scene.feed.watch_job(job().id) as first:
        await following(first)
        await scene.erase(1)
        assert await rest(first) == []
        async with scene.feed.watch_job(job().id) as second:
            assert await rest(second) == []


async def test_who_joins_an_owners_watchers_hears_nothing_older(scene: Scene) -> None:
    async with scene.feed.watch_owner(ANN) as first:
        await scene.create(1)
        await following(first)
        async with scene.feed.watch_owner(ANN) as second:
            await scene.create(2)
            assert (await following(second)).id == job(2).id


async def test_owner_hears_of_a_commit_that_firestore_received_before_the_watch_began(scene: Scene) -> None:
    async with scene.feed.watch_owner(ANN) as states:
        await scene.write(1, changed_at=datetime.now(UTC) - timedelta(seconds=3))
        assert (await following(states)).id == job(1).id


async def test_document_that_cannot_be_read_is_logged_and_skipped(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene.feed.watch_owner(ANN) as states:
        await scene.write(1, status="dreaming")
        await scene.create(2)
        assert (await following(states)).id == job(2).id
    assert "feed.unreadable" in caplog.messages
    assert "dreaming" not in caplog.text


async def test_closing_the_feed_tells_who_still_watches(scene: Scene) -> None:
    await scene.create(1)
    async with scene.feed.watch_job(job().id) as states:
        assert (await following(states)).status is Status.PENDING
        waiting = asyncio.ensure_future(following(states))
        await scene.feed.aclose()
        with pytest.raises(Unavailable):
            await waiting
    with pytest.raises(Unavailable):
        async with scene.feed.watch_job(job().id):
            pass
    await scene.proxy.until(lambda: scene.proxy.connections == 0)
