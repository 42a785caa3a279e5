"""The embedded bus beyond the port: its backoff, its dead letters and their replay, and its deliberate mischief."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.errors import NotFound
from common.messages import JobQueued, Topic
from common.settings import Settings
from local.engine.dispatcher import PushPolicy, Route
from local.engine.engine import EmbeddedEngine, open_engine
from tests.bench import Clock

QUEUED = Topic.JOB_QUEUED
FACT = JobQueued(job_id="0" * 32)


class App:
    """Counts its calls; answers what it is told."""

    def __init__(self, status: int = 204, text: str = "") -> None:
        self.calls = 0
        self.status = status
        self.text = text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        await Response(self.text, self.status)(scope, receive, send)


class Bus:
    """An engine on a folder, with a dispatcher to one app under a clock and a policy."""

    def __init__(
        self, embedded: EmbeddedEngine, app: Callable[..., object], policy: PushPolicy, clock: Clock, window: int
    ) -> None:
        self.embedded = embedded
        self.clock = clock
        self.dispatcher = embedded.dispatcher({QUEUED: Route(app, "/push", window)}, policy)  # type: ignore[arg-type]

    async def publish(self) -> int:
        return int(await self.embedded.engine.bus.publish(QUEUED, FACT))

    async def push(self) -> int:
        return await self.dispatcher.drain()


@asynccontextmanager
async def a_bus(
    folder: Path,
    app: Callable[..., object],
    *,
    clock: Clock | None = None,
    reorder_s: float = 0,
    window: int = 64,
    **policy: float,
) -> AsyncIterator[Bus]:
    clock = clock or Clock()
    embedded = await open_engine(folder, Settings(), now=clock, random=Random(3), reorder_s=reorder_s)
    bus = Bus(embedded, app, PushPolicy(**policy), clock, window)  # type: ignore[arg-type]
    try:
        yield bus
    finally:
        await bus.dispatcher.aclose()
        await embedded.engine.aclose()


async def test_backoff_doubles_within_its_bounds(tmp_path: Path) -> None:
    app = App(500)
    async with a_bus(tmp_path, app, backoff_min_s=10, backoff_max_s=100) as bus:
        await bus.publish()
        for ceiling in (20, 40, 80, 100, 100, 100):
            await bus.push()
            bus.clock.advance(9.9)
            assert await bus.push() == 0
            bus.clock.advance(ceiling - 9.9)
            before = app.calls
            await bus.push()
            assert app.calls == before + 1
            # The push just made failed too; wait it out, so that the next round starts afresh.
            bus.clock.advance(-1)
            app.calls = before + 1
            bus.clock.advance(101)


async def test_neighbours_that_failed_together_come_back_apart(tmp_path: Path) -> None:
    app = App(500)
    async with a_bus(tmp_path, app) as bus:
        for _ in range(20):
            await bus.publish()
        await bus.push()
        bus.clock.advance(14)
        assert 0 < await bus.push() < 20


async def test_dead_letter_keeps_the_last_error(tmp_path: Path) -> None:
    app = App(503, "the store does not answer " + "x" * 5000)
    async with a_bus(tmp_path, app, attempts_max=2) as bus:
        number = await bus.publish()
        await bus.push()
        bus.clock.advance(600)
        await bus.push()
        (letter,) = await bus.embedded.bus.dead_letters()
    assert (letter.id, letter.topic, letter.data, letter.attempts) == (number, QUEUED, FACT.encode(), 2)
    assert letter.last_error.startswith("503 the store does not answer")
    assert len(letter.last_error) < 600


async def test_replayed_dead_letter_is_pushed_at_once_with_fresh_attempts(tmp_path: Path) -> None:
    app = App(500)
    async with a_bus(tmp_path, app, attempts_max=2) as bus:
        number = await bus.publish()
        for _ in range(2):
            await bus.push()
            bus.clock.advance(600)
        await bus.embedded.bus.replay(number)
        assert await bus.embedded.bus.dead_letters() == ()
        assert await bus.push() == 1
        assert await bus.embedded.bus.dead_letters() == ()
        app.status = 204
        bus.clock.advance(600)
        assert await bus.push() == 1
        assert await bus.push() == 0
        assert await bus.embedded.bus.dead_letters() == ()


async def test_only_a_dead_letter_can_be_replayed(tmp_path: Path) -> None:
    async with a_bus(tmp_path, App()) as bus:
        number = await bus.publish()
        for absent in (number, number + 1):
            with pytest.raises(NotFound):
                await bus.embedded.bus.replay(absent)
        assert await bus.push() == 1


async def test_dead_letters_are_listed_newest_first(tmp_path: Path) -> None:
    async with a_bus(tmp_path, App(500), attempts_max=1) as bus:
        numbers = []
        for _ in range(3):
            numbers.append(await bus.publish())
            await bus.push()
        assert [letter.id for letter in await bus.embedded.bus.dead_letters()] == numbers[::-1]
        assert [letter.id for letter in await bus.embedded.bus.dead_letters(limit=1)] == numbers[-1:]


async def test_at_duplicate_rate_one_every_message_is_pushed_twice(tmp_path: Path) -> None:
    app = App()
    async with a_bus(tmp_path, app, duplicate_rate=1) as bus:
        for _ in range(10):
            await bus.publish()
        await bus.push()
        assert app.calls == 20
        assert await bus.push() == 0


async def test_message_of_which_one_copy_failed_is_pushed_again(tmp_path: Path) -> None:
    class Half(App):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            self.status = 204 if self.calls % 2 else 500
            await super().__call__(scope, receive, send)

    app = Half()
    async with a_bus(tmp_path, app, duplicate_rate=1) as bus:
        await bus.publish()
        await bus.push()
        assert app.calls == 2
        bus.clock.advance(600)
        assert await bus.push() == 1


async def test_reordering_delays_messages_by_different_times(tmp_path: Path) -> None:
    app = App()
    async with a_bus(tmp_path, app, reorder_s=10) as bus:
        for _ in range(20):
            await bus.publish()
        bus.clock.advance(5)
        assert 0 < await bus.push() < 20
        bus.clock.advance(10)
        await bus.push()
        assert app.calls == 20


async def test_app_that_never_answers_is_left_after_the_ack_deadline(tmp_path: Path) -> None:
    async def hang(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async with a_bus(tmp_path, hang, ack_deadline_s=0.01, attempts_max=1) as bus:
        await bus.publish()
        assert await bus.push() == 1
        (letter,) = await bus.embedded.bus.dead_letters()
    assert letter.last_error.startswith("no answer within")


async def test_no_more_than_a_window_of_a_topic_is_in_flight(tmp_path: Path) -> None:
    class Crowd(App):
        now = most = 0

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            for _ in range(3):
                await asyncio.sleep(0)
            self.now -= 1
            await super().__call__(scope, receive, send)

    app = Crowd()
    async with a_bus(tmp_path, app, window=3) as bus:
        for _ in range(20):
            await bus.publish()
        await bus.push()
        assert app.calls == 20
        assert app.most <= 3


async def test_push_cut_off_by_the_end_is_repeated_without_counting(tmp_path: Path) -> None:
    entered = asyncio.Event()

    async def hang(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        await asyncio.Event().wait()

    clock = Clock()
    async with a_bus(tmp_path, hang, clock=clock) as bus:
        await bus.publish()
        pushing = asyncio.create_task(bus.dispatcher.run())
        await entered.wait()
        pushing.cancel()
        await asyncio.wait([pushing])
    async with a_bus(tmp_path, App(), clock=clock) as bus:
        (envelope,), _ = await bus.embedded.bus.due({QUEUED: 1}, frozenset())
        assert envelope.attempt == 1
        assert await bus.push() == 1


async def test_running_dispatcher_hears_of_what_is_published(tmp_path: Path) -> None:
    heard = asyncio.Event()

    async def hear(scope: Scope, receive: Receive, send: Send) -> None:
        heard.set()
        await Response(status_code=204)(scope, receive, send)

    async with a_bus(tmp_path, hear, poll_s=3600) as bus:
        pushing = asyncio.create_task(bus.dispatcher.run())
        for _ in range(3):
            async with asyncio.timeout(10):
                await bus.publish()
                await heard.wait()
            heard.clear()
        pushing.cancel()
        await asyncio.wait([pushing])


async def test_token_is_minted_anew_when_the_clock_was_set_back(tmp_path: Path) -> None:
    async with a_bus(tmp_path, App()) as bus:
        ahead = bus.embedded.tokens.mint()
        assert bus.embedded.tokens.mint() == ahead
        bus.clock.advance(-600)
        assert bus.embedded.tokens.mint() != ahead


async def test_key_and_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    async with a_bus(tmp_path, App()):
        files = [path for path in (tmp_path / "keys").iterdir() if path.is_file()]
        assert files
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
