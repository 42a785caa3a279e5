"""Answers that are kept: asked for once, for so long, so many; failures and impatience stay with whom they met."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from common.errors import Unavailable
from common.kept import Kept
from tests.world import Clock


class Maker:
    """Makes numbered answers, each when `gate` is open; counts how many it began, finished and gave up."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = 0
        self.given_up = 0
        self.failing = False

    def __call__(self, name: str) -> Callable[[], Awaitable[str]]:
        return lambda: self._make(name)

    async def _make(self, name: str) -> str:
        self.begun += 1
        number = self.begun
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.failing:
            raise Unavailable("on purpose")
        return f"{name} {number}"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(clock: Clock) -> Kept[str]:
    return Kept(clock, keep_s=60, entries_max=3)


@pytest.fixture
async def make() -> Maker:
    return Maker()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_answer_is_given_again_until_it_is_too_old(kept: Kept[str], make: Maker, clock: Clock) -> None:
    assert await kept.get("a", make("a")) == "a 1"
    clock.advance(59)
    assert await kept.get("a", make("a")) == "a 1"
    clock.advance(1)
    assert await kept.get("a", make("a")) == "a 2"


async def test_an_answer_is_as_old_as_its_question(kept: Kept[str], make: Maker, clock: Clock) -> None:
    make.gate.clear()
    asking = asyncio.create_task(kept.get("a", make("a")))
    await settle()
    clock.advance(59)
    make.gate.set()
    await asking
    clock.advance(1)
    assert await kept.get("a", make("a")) == "a 2"


async def test_whoever_asks_at_the_same_time_shares_one_answer(kept: Kept[str], make: Maker) -> None:
    asked = [kept.get(name, make(name)) for name in "abab"]
    assert await asyncio.gather(*asked) == ["a 1", "b 2", "a 1", "b 2"]


async def test_the_longest_unused_makes_room(kept: Kept[str], make: Maker) -> None:
    for name in "abcad":
        await kept.get(name, make(name))
    assert make.begun == 4
    assert [await kept.get(name, make(name)) for name in "acd"] == ["a 1", "c 3", "d 4"]
    assert await kept.get("b", make("b")) == "b 5"


async def test_a_failure_is_shared_and_not_kept(kept: Kept[str], make: Maker) -> None:
    make.failing = True
    ended = await asyncio.gather(*(kept.get("a", make("a")) for _ in range(3)), return_exceptions=True)
    assert [type(end) for end in ended] == [Unavailable] * 3
    assert make.begun == 1
    make.failing = False
    assert await kept.get("a", make("a")) == "a 2"


async def test_who_leaves_early_takes_the_answer_from_nobody(kept: Kept[str], make: Maker) -> None:
    make.gate.clear()
    first, second = (asyncio.create_task(kept.get("a", make("a"))) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    make.gate.set()
    assert await second == "a 1"
    assert first.cancelled()


async def test_what_nobody_waits_for_any_more_is_given_up_and_asked_anew(kept: Kept[str], make: Maker) -> None:
    make.gate.clear()
    asking = asyncio.create_task(kept.get("a", make("a")))
    await settle()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    make.gate.set()
    assert await kept.get("a", make("a")) == "a 2"
    assert make.given_up == 1


async def test_an_answer_is_in_no_repr(kept: Kept[str], make: Maker) -> None:
    await kept.get("a", make("secret"))
    assert "secret" not in repr(kept)
