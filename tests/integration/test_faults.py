"""One job's life with each of its calls to the outside broken in turn: its owner sees no difference, on any engine."""

import asyncio
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest

import notifier.delivery
from tests.faults import Fault, Plan
from tests.google.emulators import Emulators
from tests.google.fakes import Fakes
from tests.google.lives import Ground, cloud_life, ground
from tests.lives import Life, embedded_life

at_once = 8
# More tries than any call of ours makes within its 5 s.
for_good = 12
Begin = Callable[[Path, Plan], AbstractAsyncContextManager[Life]]


@pytest.fixture(autouse=True)
def _quick_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook whose first message was lost waits half a minute for the sweep, beside its own timeout."""
    assert notifier.delivery._grace_s > 0
    monkeypatch.setattr(notifier.delivery, "_grace_s", 2)


async def lead_all(folder: Path, begin: Begin, plans: list[Plan]) -> None:
    """Lead a life with each plan, some at once. Raises AssertionError with what went wrong in which."""
    room = asyncio.Semaphore(at_once)

    async def lead(number: int, plan: Plan) -> str | None:
        own = folder / f"{plan.method}-{number}"
        own.mkdir()
        try:
            async with room, begin(own, plan) as life:
                await life.check(await life.lead())
            assert plan.met > 0 or not plan.method, "the fault was never met"
        except (AssertionError, TimeoutError):
            return f"{plan}\n{traceback.format_exc()}"
        return None

    wrong = await asyncio.gather(*(lead(number, plan) for number, plan in enumerate(plans)))
    told = [text for text in wrong if text is not None]
    assert not told, "\n".join(told)


async def whole_life(folder: Path, begin: Begin) -> Plan:
    """A life without faults; answers the count of its calls."""
    whole = Plan()
    await lead_all(folder, begin, [whole])
    return whole


def embedded(stand_in_url: str, folder: Path, plan: Plan) -> AbstractAsyncContextManager[Life]:
    return embedded_life(folder, stand_in_url, plan)


def google(shared: Ground, folder: Path, plan: Plan) -> AbstractAsyncContextManager[Life]:
    return cloud_life(folder, shared, plan)


async def test_no_single_fault_of_the_embedded_engine_changes_what_a_job_comes_to(
    tmp_path: Path, stand_in_url: str
) -> None:
    begin = partial(embedded, stand_in_url)
    whole = await whole_life(tmp_path, begin)
    plans = [
        Plan(method, at, fault)
        for method, count in whole.seen.items()
        for at in range(1, count + 1)
        for fault in (Fault.LOST_ANSWER, Fault.UNAVAILABLE)
    ]
    await lead_all(tmp_path, begin, plans)


async def test_no_single_fault_of_the_cloud_changes_what_a_job_comes_to(
    tmp_path: Path, stand_in_url: str, emulators: Emulators, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ground(emulators, fakes, stand_in_url, monkeypatch) as shared:
        begin = partial(google, shared)
        whole = await whole_life(tmp_path, begin)
        commits, publishes = (range(1, whole.seen[method] + 1) for method in ("Commit", "Publish"))
        others = cycle([Fault.ABORTED, Fault.UNAVAILABLE, Fault.SLOW])
        plans = [
            *(Plan("Publish", at, Fault.BUSY, for_good) for at in publishes),
            *(Plan("Commit", at, Fault.LOST_ANSWER) for at in commits),
            *(Plan("Commit", at, fault) for at, fault in zip(commits, others, strict=False)),
            *(Plan("download", 1, fault) for fault in (Fault.CUT, Fault.DAMAGED)),
            Plan("upload", 1, Fault.LOST_ANSWER),
        ]
        await lead_all(tmp_path, begin, plans)


@pytest.mark.soak
async def test_no_fault_of_the_cloud_however_stubborn_changes_what_a_job_comes_to(
    tmp_path: Path, stand_in_url: str, emulators: Emulators, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ground(emulators, fakes, stand_in_url, monkeypatch) as shared:
        begin = partial(google, shared)
        whole = await whole_life(tmp_path, begin)
        plans = [
            Plan(method, at, fault, times)
            for method in ("Commit", "Publish")
            for at in range(1, whole.seen[method] + 1)
            for fault in (Fault.LOST_ANSWER, Fault.UNAVAILABLE, Fault.ABORTED, Fault.BUSY, Fault.SLOW)
            for times in (1, for_good)
            if times == 1 or fault is not Fault.SLOW
        ]
        await lead_all(tmp_path, begin, plans)
