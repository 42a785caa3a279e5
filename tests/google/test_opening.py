"""How clients are opened: once for all who wait, each in its time, and never again once closed."""

import asyncio

import pytest

from common.errors import Unavailable
from common.google.opening import Opening, Shared


class Door:
    """What an Opening opens: it can be held up, and tells what became of its clients."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.prepared = 0
        self.told: list[str] = []
        self.failing: Exception | None = None
        self.opening = Opening("the door", self.prepare, self.make, self.close)

    async def prepare(self) -> int:
        self.prepared += 1
        await self.go.wait()
        if self.failing is not None:
            raise self.failing
        return self.prepared

    def make(self, number: int) -> str:
        self.told.append(f"made {number}")
        return f"client {number}"

    async def close(self, client: str) -> None:
        self.told.append(f"closed {client}")


@pytest.fixture
async def door() -> Door:
    return Door()


async def begun(tasks: int) -> None:
    """Let tasks that were made begin, and what these make."""
    for _ in range(3 * tasks):
        await asyncio.sleep(0)


async def test_all_who_come_while_it_opens_get_the_same_client(door: Door) -> None:
    calls = [asyncio.create_task(door.opening.client()) for _ in range(10)]
    await begun(10)
    door.go.set()
    assert await asyncio.gather(*calls) == ["client 1"] * 10
    assert await door.opening.client() == "client 1"
    assert door.told == ["made 1"]


async def test_each_waits_its_own_time_together_with_the_others_and_the_work_goes_on(door: Door) -> None:
    """Behind a lock the tenth would wait ten times as long, for ten failures."""
    shared = Shared(door.prepare)
    async with asyncio.timeout(1):
        ends = await asyncio.gather(*(shared.result(0.05) for _ in range(10)), return_exceptions=True)
    assert {type(end) for end in ends} == {TimeoutError}
    late = asyncio.create_task(shared.result())
    await begun(1)
    door.go.set()
    assert await late == 1
    assert door.prepared == 1


async def test_who_leaves_takes_nobody_along(door: Door) -> None:
    leaving, staying = (asyncio.create_task(door.opening.client()) for _ in range(2))
    await begun(2)
    leaving.cancel()
    door.go.set()
    assert await staying == "client 1"
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_opening_that_failed_is_tried_again_by_the_next(door: Door) -> None:
    door.failing = OSError("not there")
    door.go.set()
    with pytest.raises(Unavailable):
        await door.opening.client()
    door.failing = None
    assert await door.opening.client() == "client 2"


async def test_nothing_is_made_after_the_end(door: Door) -> None:
    call = asyncio.create_task(door.opening.client())
    await begun(1)
    await door.opening.aclose()
    door.go.set()
    with pytest.raises(Unavailable, match="the door"):
        await call
    with pytest.raises(Unavailable, match="the door is closed"):
        await door.opening.client()
    assert door.told == []


async def test_end_closes_what_is_open_once(door: Door) -> None:
    door.go.set()
    await door.opening.client()
    await door.opening.aclose()
    await door.opening.aclose()
    assert door.told == ["made 1", "closed client 1"]


@pytest.mark.parametrize("failing", [asyncio.CancelledError(), RuntimeError("cannot schedule new futures")])
async def test_call_that_the_end_breaks_is_unavailable(door: Door, failing: BaseException) -> None:
    door.go.set()

    async def broken() -> None:
        async with door.opening.call("look"):
            await door.opening.aclose()
            raise failing

    with pytest.raises(Unavailable):
        await broken()


async def test_bug_and_cancelled_caller_stay_what_they_are(door: Door) -> None:
    door.go.set()

    async def mistaken() -> None:
        async with door.opening.call("look"):
            raise LookupError

    with pytest.raises(LookupError):
        await mistaken()

    async def waiting() -> None:
        async with door.opening.call("look"):
            await door.opening.aclose()
            await asyncio.Event().wait()

    call = asyncio.create_task(waiting())
    await begun(3)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
