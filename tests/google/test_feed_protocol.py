"""How the feed on Firestore answers what only the real service says: refusals, old tokens, resets, counts."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.cloud.firestore_v1.types import Target

from common.errors import Unavailable
from common.google import connection as connection_module
from common.google import feed, listen
from common.google.connection import Connection
from common.google.credentials import Loader
from common.google.feed import FirestoreFeed
from common.google.listen import restarts_max
from common.job import Job
from common.telemetry import follow_trace, traceparent
from tests.contract.samples import ANN, job
from tests.google.fakes import Fakes
from tests.google.listen_server import Conversation, ListenServer, listen_server

DEADLINE_S = 10
CROWD = 1000
Watch = AbstractAsyncContextManager[AsyncIterator[Job]]


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ListenServer]:
    async with listen_server() as spoken:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", spoken.host)
        monkeypatch.setattr(connection_module, "first_pause_s", 0.01)
        yield spoken


@pytest.fixture
async def firestore_feed(server: ListenServer) -> AsyncIterator[FirestoreFeed]:
    opened = FirestoreFeed("test", "(default)")
    yield opened
    await opened.aclose()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


def beginning(stack: AsyncExitStack, watch: Watch) -> asyncio.Task[AsyncIterator[Job]]:
    """A watch that the server has still to let begin."""
    return asyncio.create_task(stack.enter_async_context(watch))


async def following(states: AsyncIterator[Job]) -> Job:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(states)


async def rest(states: AsyncIterator[Job]) -> list[Job]:
    async with asyncio.timeout(DEADLINE_S):
        return [state async for state in states]


async def watched(
    server: ListenServer, stack: AsyncExitStack, watched_feed: FirestoreFeed, token: bytes = b""
) -> tuple[Conversation, int, AsyncIterator[Job]]:
    """A stream with one watched job that is told of: the stream, the target's id, the watcher's states."""
    begun = beginning(stack, watched_feed.watch_job(job().id))
    stream = await server.conversation()
    target = (await stream.added()).target_id
    stream.tell(job(), target)
    stream.current(target, token)
    states = await begun
    assert (await following(states)).revision == 1
    return stream, target, states


def newer(revision: int) -> Job:
    return job().model_copy(update={"revision": revision})


async def test_missing_permission_is_told_to_who_begins_and_to_who_watches(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, _, states = await watched(server, stack, firestore_feed)
    begun = beginning(stack, firestore_feed.watch_job(job(2).id))
    await stream.added()
    stream.abort(grpc.StatusCode.PERMISSION_DENIED)
    with pytest.raises(Unavailable):
        await begun
    with pytest.raises(Unavailable):
        await following(states)


async def test_next_watch_after_a_refusal_asks_again(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    refused = beginning(stack, firestore_feed.watch_job(job().id))
    (await server.conversation()).abort(grpc.StatusCode.PERMISSION_DENIED)
    with pytest.raises(Unavailable):
        await refused
    await watched(server, stack, firestore_feed)


async def test_refused_target_fails_alone(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, target, states = await watched(server, stack, firestore_feed)
    begun = beginning(stack, firestore_feed.watch_job(job(2).id))
    stream.remove((await stream.added()).target_id, grpc.StatusCode.PERMISSION_DENIED)
    with pytest.raises(Unavailable):
        await begun
    stream.tell(newer(2), target)
    assert (await following(states)).revision == 2


def since_of(target: Target) -> datetime:
    """From when on an owner's jobs are asked for."""
    _, changed = target.query.structured_query.where.composite_filter.filters
    return datetime.fromisoformat(changed.field_filter.value.timestamp_value.rfc3339())


async def test_refused_stream_ends_every_watch_at_once_and_each_is_left_in_peace(
    server: ListenServer, firestore_feed: FirestoreFeed
) -> None:
    seen: asyncio.Queue[Job] = asyncio.Queue()

    async def watch(number: int) -> None:
        async with firestore_feed.watch_job(job(number).id) as states:
            async for state in states:
                seen.put_nowait(state)

    numbers = (1, 2, 3)
    watching = [asyncio.create_task(watch(number)) for number in numbers]
    stream = await server.conversation()
    async with asyncio.timeout(DEADLINE_S):
        for number in numbers:
            target = (await stream.added()).target_id
            stream.tell(job(number), target)
            stream.current(target)
            await seen.get()
        stream.abort(grpc.StatusCode.PERMISSION_DENIED)
        outcomes = await asyncio.gather(*watching, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3


async def test_who_still_asks_when_the_stream_is_refused_is_told(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, _, _ = await watched(server, stack, firestore_feed)
    server.answering.clear()
    begun = [beginning(stack, watch) for watch in (firestore_feed.watch_owner(ANN), firestore_feed.watch_job(job().id))]
    await server.until_looks(2)
    stream.abort(grpc.StatusCode.PERMISSION_DENIED)
    for watch in begun:
        with pytest.raises(Unavailable):
            await watch


async def test_who_still_asks_when_the_feed_is_closed_is_told(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    server.answering.clear()
    begun = beginning(stack, firestore_feed.watch_owner(ANN))
    await server.until_looks(1)
    await firestore_feed.aclose()
    with pytest.raises(Unavailable):
        await begun


@pytest.mark.parametrize("ended", [True, False])
async def test_exhausted_quota_is_left_alone_for_long_and_nobody_loses_their_place(
    server: ListenServer,
    firestore_feed: FirestoreFeed,
    stack: AsyncExitStack,
    monkeypatch: pytest.MonkeyPatch,
    ended: bool,
) -> None:
    monkeypatch.setattr(connection_module, "quota_pause_s", 0.2)
    stream, target, states = await watched(server, stack, firestore_feed, b"first")
    clock = asyncio.get_running_loop().time
    for _ in range(restarts_max + 2):
        exhausted_at = clock()
        if ended:
            stream.abort(grpc.StatusCode.RESOURCE_EXHAUSTED)
        else:
            stream.remove(target, grpc.StatusCode.RESOURCE_EXHAUSTED)
        again = await server.conversation()
        assert clock() - exhausted_at >= 0.1
        assert stream.asked.empty()
        stream, asked = again, await again.added()
        assert (asked.target_id, asked.resume_token) == (target, b"first")
    stream.tell(newer(2), target)
    stream.current(target)
    assert (await following(states)).revision == 2


async def test_owner_is_listened_to_afresh_from_where_all_was_told_last(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    began = server.now
    begun = beginning(stack, firestore_feed.watch_owner(ANN))
    stream = await server.conversation()
    target = await stream.added()
    assert since_of(target) == began - timedelta(seconds=10)
    stream.current(target.target_id, b"first", began + timedelta(seconds=1))
    states = await begun
    stream.tell(newer(3), target.target_id)
    assert (await following(states)).revision == 3
    stream.consistent(b"second", began + timedelta(hours=1))
    stream.abort(grpc.StatusCode.UNAVAILABLE)
    stream = await server.conversation()
    again = await stream.added()
    assert since_of(again) == began + timedelta(hours=1) - timedelta(seconds=10)
    assert again.resume_token == b""
    stream.tell(newer(3), again.target_id)
    stream.tell(newer(2), again.target_id)
    stream.current(again.target_id)
    stream.tell(newer(4), again.target_id)
    assert (await following(states)).revision == 4


async def test_owner_that_has_not_been_told_all_is_listened_to_from_the_same_time_again(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    began = server.now
    begun = beginning(stack, firestore_feed.watch_owner(ANN))
    stream = await server.conversation()
    target = (await stream.added()).target_id
    stream.current(target, b"first", began)
    await begun
    stream.reset(target)
    stream.consistent(b"second", began + timedelta(hours=1))
    stream.abort(grpc.StatusCode.UNAVAILABLE)
    stream = await server.conversation()
    assert since_of(await stream.added()) == began - timedelta(seconds=10)


async def test_thousand_watchers_of_an_owner_that_leave_at_once_cost_one_request(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "ready_s_max", 60.0)
    stream, _, _ = await watched(server, stack, firestore_feed)
    all_there = asyncio.Barrier(CROWD + 1)

    async def watch() -> None:
        async with firestore_feed.watch_owner(ANN):
            await all_there.wait()

    async with asyncio.timeout(60), asyncio.TaskGroup() as watching:
        for _ in range(CROWD):
            watching.create_task(watch())
        owner = (await stream.added()).target_id
        stream.current(owner)
        await all_there.wait()
    assert await stream.removed() == owner
    assert stream.asked.empty()


async def test_streams_lines_in_the_log_are_not_of_the_first_watchers_trace(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    heard: set[str] = set()

    class Traces(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.add(traceparent().split("-")[1])

    traces = Traces()
    logging.getLogger(listen.log.name).addHandler(traces)
    stack.callback(logging.getLogger(listen.log.name).removeHandler, traces)
    follow_trace()
    stream, _, states = await watched(server, stack, firestore_feed)
    stream.abort(grpc.StatusCode.PERMISSION_DENIED)
    with pytest.raises(Unavailable):
        await following(states)
    assert len(heard) == 1
    assert traceparent().split("-")[1] not in heard


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAUTHENTICATED]
)
async def test_broken_stream_goes_on_from_the_last_token(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack, code: grpc.StatusCode
) -> None:
    stream, _, states = await watched(server, stack, firestore_feed, b"first")
    stream.consistent(b"second")
    stream.abort(code)
    stream = await server.conversation()
    again = await stream.added()
    assert again.resume_token == b"second"
    stream.tell(newer(2), again.target_id)
    stream.current(again.target_id)
    assert (await following(states)).revision == 2


async def test_stream_with_a_garbled_message_is_replaced(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, _, states = await watched(server, stack, firestore_feed, b"first")
    stream.garble()
    stream = await server.conversation()
    again = await stream.added()
    assert again.resume_token == b"first"
    stream.tell(newer(2), again.target_id)
    assert (await following(states)).revision == 2


async def test_token_for_all_is_not_for_a_target_that_is_still_catching_up(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, _, _ = await watched(server, stack, firestore_feed, b"first")
    begun = beginning(stack, firestore_feed.watch_job(job(2).id))
    await stream.added()
    stream.consistent(b"second")
    stream.abort(grpc.StatusCode.UNAVAILABLE)
    stream = await server.conversation()
    asked = [await stream.added(), await stream.added()]
    assert [target.resume_token for target in asked] == [b"second", b""]
    stream.current(asked[1].target_id)
    assert await rest(await begun) == []


async def test_token_that_is_too_old_is_given_up(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, _, states = await watched(server, stack, firestore_feed, b"old")
    stream.abort(grpc.StatusCode.UNAVAILABLE)
    stream = await server.conversation()
    refused = (await stream.added()).target_id
    stream.remove(refused, grpc.StatusCode.INVALID_ARGUMENT)
    again = await stream.added()
    assert again.resume_token == b""
    assert again.target_id != refused
    # What was on its way for the refused one is not heard.
    stream.deleted(job(), refused)
    stream.tell(newer(2), again.target_id)
    stream.current(again.target_id)
    assert (await following(states)).revision == 2


async def test_target_that_is_removed_again_and_again_fails(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, target, states = await watched(server, stack, firestore_feed)
    for _ in range(restarts_max):
        stream.remove(target, grpc.StatusCode.INTERNAL)
        target = (await stream.added()).target_id
    stream.remove(target, grpc.StatusCode.INTERNAL)
    with pytest.raises(Unavailable):
        await following(states)


async def test_reset_target_is_told_anew(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, target, states = await watched(server, stack, firestore_feed, b"first")
    stream.reset(target)
    stream.tell(newer(2), target)
    stream.current(target)
    assert (await following(states)).revision == 2
    stream.reset(target)
    stream.current(target)
    assert await rest(states) == []


async def test_job_that_is_missing_in_the_count_is_looked_for_afresh(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, _, states = await watched(server, stack, firestore_feed, b"first")
    stream.abort(grpc.StatusCode.UNAVAILABLE)
    stream = await server.conversation()
    resumed = (await stream.added()).target_id
    stream.count(resumed, 0)
    assert await stream.removed() == resumed
    again = await stream.added()
    assert again.resume_token == b""
    stream.current(again.target_id)
    assert await rest(states) == []


async def test_job_that_went_out_of_view_is_looked_for_afresh(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, target, states = await watched(server, stack, firestore_feed)
    stream.out_of_view(job(), target)
    assert await stream.removed() == target
    again = (await stream.added()).target_id
    stream.tell(newer(2), again)
    stream.current(again)
    assert (await following(states)).revision == 2


async def test_right_count_changes_nothing(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, target, states = await watched(server, stack, firestore_feed)
    stream.count(target, 1)
    stream.tell(newer(2), target)
    assert (await following(states)).revision == 2
    assert stream.asked.empty()


async def test_last_watcher_of_a_job_removes_its_target(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, target, states = await watched(server, stack, firestore_feed)
    async with AsyncExitStack() as leaving:
        begun = beginning(leaving, firestore_feed.watch_job(job(2).id))
        left = (await stream.added()).target_id
        stream.current(left)
        await begun
    assert await stream.removed() == left
    # What was on its way is not heard.
    stream.deleted(job(2), left)
    stream.tell(newer(2), target, left)
    assert (await following(states)).revision == 2


async def test_id_of_a_target_is_not_used_for_the_next(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack
) -> None:
    stream, target, _ = await watched(server, stack, firestore_feed)
    used = {target}
    for number in (2, 3, 4):
        async with AsyncExitStack() as leaving:
            begun = beginning(leaving, firestore_feed.watch_job(job(number).id))
            added = (await stream.added()).target_id
            assert added not in used
            used.add(added)
            stream.current(added)
            await begun
        assert await stream.removed() == added


async def test_watch_that_gets_no_answer_is_unavailable(
    server: ListenServer, firestore_feed: FirestoreFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "ready_s_max", 0.2)
    with pytest.raises(Unavailable):
        async with firestore_feed.watch_job(job().id):
            pass


async def test_stream_that_owes_an_answer_is_soon_replaced(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "answer_s_max", 0.2)
    begun = beginning(stack, firestore_feed.watch_job(job().id))
    stream = await server.conversation()
    stream.tell(job(), (await stream.added()).target_id)
    stream = await server.conversation()
    again = (await stream.added()).target_id
    stream.tell(newer(2), again)
    stream.current(again)
    stream.consistent(b"token")
    assert (await following(await begun)).revision == 2


async def test_stream_that_does_not_answer_to_one_more_watch_is_soon_replaced(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, _, _ = await watched(server, stack, firestore_feed)
    stream.consistent(b"token")
    monkeypatch.setattr(listen, "answer_s_max", 0.2)
    begun = beginning(stack, firestore_feed.watch_job(job(2).id))
    await stream.added()
    stream = await server.conversation()
    assert (await stream.added()).resume_token == b"token"
    stream.current((await stream.added()).target_id)
    assert await rest(await begun) == []


async def test_stream_that_owes_nothing_may_be_silent_for_long(
    server: ListenServer, firestore_feed: FirestoreFeed, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "answer_s_max", 0.1)
    monkeypatch.setattr(listen, "silence_s_max", 0.8)
    began = asyncio.get_running_loop().time()
    stream, _, states = await watched(server, stack, firestore_feed)
    stream.consistent(b"token")
    stream = await server.conversation()
    assert asyncio.get_running_loop().time() - began >= 0.8
    again = await stream.added()
    assert again.resume_token == b"token"
    stream.tell(newer(2), again.target_id)
    assert (await following(states)).revision == 2


async def test_credentials_that_cannot_be_read_are_unavailable(
    firestore_feed: FirestoreFeed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(Unavailable):
        async with firestore_feed.watch_owner(ANN):
            pass


async def test_connection_to_google_signs_in_with_the_services_own_account(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    fakes.lead(monkeypatch)
    connection = Connection("test", "(default)", Loader())
    await connection.open()
    await connection.aclose()
