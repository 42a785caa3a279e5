"""One owner's jobs that end twenty times a second for two minutes: whatever they share must not be contended for.

Nobody listens to the owner meanwhile: the emulator sends such a listener everything again at every change.
"""

import asyncio
import secrets
import time
from contextlib import AsyncExitStack

import pytest

from common.google.engine import open_engine
from common.job import Image, Job, Stage
from common.ports import Engine
from common.saving import create, ending, save, save_work
from common.settings import Settings
from tests.contract.samples import ANN, NOON, job
from tests.google.emulators import Emulators
from tests.google.test_races import claim, work_of

per_s, seconds = 20, 120


@pytest.mark.soak
async def test_an_owner_whose_jobs_end_twenty_times_a_second_meets_no_contention(emulators: Emulators) -> None:
    settings = Settings(google_cloud_project=f"owner-{secrets.token_hex(4)}")
    async with AsyncExitStack() as stack:
        engines = (open_engine(settings), open_engine(settings))
        for engine in engines:
            stack.push_async_callback(engine.aclose)
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(per_s * seconds):
                await asyncio.sleep(started + number / per_s - time.monotonic())
                # Whatever goes wrong in one of them, a conflict above all, ends the test.
                group.create_task(whole_life(engines[number % 2], job(number)))
        assert await ended(engines[0]) == per_s * seconds


async def whole_life(engine: Engine, begun: Job) -> None:
    """The commits of a prompt's job: opened, claimed, settled, ended, told."""
    task = await create(engine, begun, work_of(begun))
    task = await claim(engine, task, 1)
    settled = task.job.record.settle((Image(index=0),), (), Stage.STORING, 20)
    task = await save(engine, task, settled, task.work.record)
    kept = settled.images[0].model_copy(update={"status": "completed", "name": f"a/{begun.id}/0"})
    over = ending(task.work.record, NOON, retell_s=60)
    task = await save(engine, task, settled.finish((kept,), (), NOON), over)
    await save_work(engine, task, over.model_copy(update={"untold": (), "wake_at": None}))


async def ended(engine: Engine) -> int:
    """How many of the owner's jobs have ended, page by page."""
    found, token = 0, None
    while True:
        page = await engine.store.page(Job, owner=ANN, limit=100, token=token)
        found += sum(item.record.done for item in page.items)
        token = page.next_token
        if token is None:
            return found
