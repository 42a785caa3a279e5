"""A portrait's life from POST to webhook on either engine, and what must be true afterwards, seen from outside."""

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx2

from common import names
from common.ports import Engine
from common.saving import load
from tests.e2e.outside import Hooks, Json, hooks_open
from tests.faults import Plan, breaking
from tests.world import World, jpeg, open_world

END_S = 60


class Life(ABC):
    """One engine with every app on it, alone for one job; `engine` is whole, the apps' meets the plan's faults."""

    engine: Engine
    api: httpx2.AsyncClient
    hooks: Hooks
    plan: Plan

    @abstractmethod
    async def go_on(self) -> None:
        """Let what is due happen, and time pass for what waits."""

    async def job(self, job_id: str) -> Json:
        """The job as its owner sees it."""
        answer = await self.api.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job: Json = answer.json()
        return job

    async def lead(self) -> Json:
        """Order a portrait, upload its photo, and let all happen until nothing is owed any more; answers the job."""
        job = await self._order()
        upload = job["upload"]
        answer = await self.api.put(upload["url"], headers=upload["headers"], content=jpeg())
        assert answer.status_code == 200, answer.text
        async with asyncio.timeout(END_S):
            while await self._is_owed(job["id"]):
                await self.go_on()
        return await self.job(job["id"])

    async def _order(self) -> Json:
        """A job; asked for again where the answer says that asking again may help."""
        while True:
            answer = await self.api.post("/v1/jobs", json={"kind": "portrait", "webhook": {"url": self.hooks.url}})
            if answer.status_code == 201:
                job: Json = answer.json()
                return job
            assert answer.json()["retryable"], answer.text

    async def _is_owed(self, job_id: str) -> bool:
        task = await load(self.engine, job_id)
        work = task.work.record
        told = any(body["data"]["id"] == job_id for body in self.hooks.bodies())
        # A portrait's Work may sleep until its upload can be tidied up; nobody waits for that.
        owes = work.lease is not None or work.unqueued or bool(work.untold)
        if owes or not (task.job.record.done and told):
            return True
        return await self.engine.blobs.stat("uploads", names.upload_name("local:me", job_id)) is not None

    async def check(self, job: Json) -> None:
        """One end, one picture, one paid call, one piece of news, and nothing left behind."""
        assert job["status"] == "completed", job
        (image,) = job["images"]
        picture = (await self.api.get(image["url"])).content
        assert hashlib.sha256(picture).hexdigest() == image["sha256"]
        assert (await self.api.get(image["thumbnail_url"])).status_code == 200
        assert [(attempt["state"], attempt["billed"]) for attempt in job["attempts"]] == [("settled", "yes")], job[
            "attempts"
        ]
        told = {event: bodies for event, bodies in self.hooks.received.items() if bodies[0]["data"]["id"] == job["id"]}
        assert list(told) == [f"{job['id']}.{job['reached']['completed']}"]
        assert {body["type"] for bodies in told.values() for body in bodies} == {"job.completed"}


class EmbeddedLife(Life):
    """On the embedded engine, under a clock that jumps to the next sweep."""

    def __init__(self, world: World, hooks: Hooks, plan: Plan) -> None:
        # The apps' engine meets the faults; what looks at the end must not.
        self.engine = world.embedded.engine
        self.api = world.api
        self.hooks = hooks
        self.plan = plan
        self._world = world

    async def go_on(self) -> None:
        await self._world.run()
        await self._world.later(61)


@asynccontextmanager
async def embedded_life(folder: Path, stand_in_url: str, plan: Plan) -> AsyncIterator[Life]:
    """A data folder of its own, and faults in its ports."""
    async with (
        hooks_open() as hooks,
        open_world(folder, stand_in_url, wrap=partial(breaking, plan=plan)) as world,
    ):
        yield EmbeddedLife(world, hooks, plan)
