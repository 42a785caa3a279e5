"""Of claims that race for one job on Firestore, exactly one wins; two clients stand for two instances."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from common.errors import Conflict
from common.google.engine import open_engine
from common.job import Image, Job
from common.ports import Engine
from common.records import Desk, Lease, Work
from common.saving import Task, create, load, save
from common.settings import Settings
from tests.contract.samples import NOON, job
from tests.google.emulators import Emulators

runs, claims = 20, 50


@pytest.fixture
async def instances(emulators: Emulators) -> AsyncIterator[tuple[Engine, Engine]]:
    settings = Settings(google_cloud_project=f"races-{secrets.token_hex(4)}")
    async with AsyncExitStack() as stack:
        engines = (open_engine(settings), open_engine(settings))
        for engine in engines:
            stack.push_async_callback(engine.aclose)
        yield engines


async def claim(engine: Engine, task: Task, number: int) -> Task:
    """What a worker does: a lease in the Work, and the job on its way, in one commit."""
    lease = Lease(token=f"worker-{number}", fence=1, expires_at=NOON + timedelta(seconds=150))
    sent = task.job.record.send((Image(index=0),), (), NOON)
    return await save(engine, task, sent, task.work.record.model_copy(update={"lease": lease, "fence": 1}))


async def race(instances: tuple[Engine, Engine], number: int) -> list[type]:
    """How fifty claims ended that had all read the same versions; what is there afterwards is the winner's."""
    task = await create(instances[0], job(number), work_of(job(number)))
    ended = await asyncio.gather(
        *(claim(instances[n % 2], task, n) for n in range(claims)),
        return_exceptions=True,
    )
    (won,) = (end for end in ended if isinstance(end, Task))
    after = await load(instances[1], task.job.record.id)
    assert (after.job.etag, after.work.etag) == (won.job.etag, won.work.etag)
    assert after.work.record == won.work.record
    return sorted((type(end) for end in ended), key=lambda kind: kind.__name__)


async def test_of_fifty_racing_claims_exactly_one_wins_every_time(instances: tuple[Engine, Engine]) -> None:
    """Twenty races, because who wins one is a matter of luck."""
    ended = [await race(instances, number) for number in range(runs)]
    assert ended == [[Conflict] * (claims - 1) + [Task]] * runs


def work_of(claimed: Job) -> Work:
    return Work(
        job_id=claimed.id,
        owner=claimed.owner,
        desk=Desk.PROCESSOR,
        wake_at=NOON,
        deadline_at=claimed.deadline_at,
        unqueued=True,
    )
