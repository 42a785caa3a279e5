"""The five services as processes of their own on Google's emulators, from the signed PUT to the webhook."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from common.messages import Topic
from local.run import stand_in
from tests.e2e.cluster import Cluster, cluster_running
from tests.e2e.outside import (
    END_S,
    Customer,
    Hooks,
    Json,
    check_ends,
    check_ledger,
    every_job,
    every_picture,
    hooks_open,
)
from tests.google.emulators import Emulators
from tests.google.fakes import Fakes


@dataclass
class Scene:
    """A cluster with a model, a customer, and the customer's webhook."""

    cluster: Cluster
    api: httpx2.AsyncClient
    hooks: Hooks
    customer: Customer
    model_url: str

    async def calls(self) -> int:
        """How many calls the model has got."""
        calls: int = (await self.api.get(f"{self.model_url}/standin/stats")).json()["calls"]
        return calls

    async def job(self, job_id: str) -> Json:
        """The job as its owner sees it."""
        job: Json = (await self.api.get(f"/v1/jobs/{job_id}")).json()
        return job

    async def until(self, job_id: str, wanted: Callable[[Json], bool]) -> Json:
        """The job's first state that is as wanted, by its event stream."""
        async with asyncio.timeout(END_S):
            while not wanted(job := await self.job(job_id)):  # noqa: ASYNC110
                # What another process does can only be looked at again.
                await asyncio.sleep(0.05)
        return job

    async def settle_and_check(self) -> dict[str, Json]:
        """Wait for every end and every webhook, then hold all invariants against what is seen from outside."""
        await self.customer.see_all_end(self.api)
        await self.hooks.wait_for(set(self.customer.accepted))
        jobs = await every_job(self.api)
        check_ends(self.customer, jobs, self.hooks)
        check_ledger(jobs, await self.calls(), 2)
        assert set(jobs) == set(self.customer.accepted)
        await every_picture(self.api, jobs)
        return jobs


@asynccontextmanager
async def scene(
    emulators: Emulators, fakes: Fakes, folder: Path, *, processes: int = 2, model_ms: int = 20, **variables: str
) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        model_url = await stack.enter_async_context(stand_in("--canned", "auto", "--delay-ms", str(model_ms)))
        hooks = await stack.enter_async_context(hooks_open())
        running = cluster_running(emulators, fakes, folder, model_url, processes=processes, **variables)
        cluster = await stack.enter_async_context(running)
        api = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=cluster.api_url, timeout=END_S, trust_env=False)
        )
        yield Scene(cluster, api, hooks, Customer(hooks), model_url)


async def test_two_processes_of_every_service_survive_duplicates_lost_answers_and_a_busy_platform(
    emulators: Emulators, fakes: Fakes, tmp_path: Path
) -> None:
    async with scene(emulators, fakes, tmp_path) as here:
        here.cluster.mischief.duplicate_rate = 0.3
        here.cluster.mischief.lost_answer_rate = 0.2
        for _ in range(3):
            await here.customer.order(here.api)
        here.cluster.mischief.busy = {*Topic}
        await here.customer.order(here.api)
        busy = here.cluster.pushes
        async with asyncio.timeout(END_S):
            while here.cluster.pushes < busy + 5:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        here.cluster.mischief.busy = set()
        jobs = await here.settle_and_check()
        assert {job["status"] for job in jobs.values()} == {"completed"}
        # No fault here hides what a call brought, so nothing may be paid for twice.
        assert await here.calls() == sum(len(job["images"]) for job in jobs.values())


async def test_a_worker_that_slept_past_its_lease_changes_nothing_when_it_wakes(
    emulators: Emulators, fakes: Fakes, tmp_path: Path
) -> None:
    async with scene(emulators, fakes, tmp_path, processes=1, model_ms=1000) as here:
        await here.customer.submit(here.api, kind="image", prompt="a red fox in the snow")
        (job_id,) = here.customer.accepted
        await here.until(job_id, lambda job: job["status"] == "processing")
        (zombie,) = here.cluster.of("processor.push")
        zombie.send(signal.SIGSTOP)
        here.cluster.instances.remove(zombie)
        try:
            await here.cluster.start("processor.push")
            await here.customer.see_all_end(here.api)
            before = await here.job(job_id)
            zombie.send(signal.SIGCONT)
            # It writes its late line, or is told that it is too late, and then ends in good order.
            zombie.send(signal.SIGTERM)
            await asyncio.wait_for(zombie.process.wait(), END_S)
        finally:
            zombie.send(signal.SIGKILL)
        after = (await here.settle_and_check())[job_id]
        assert before["status"] == after["status"] == "completed"
        assert [image["sha256"] for image in before["images"]] == [image["sha256"] for image in after["images"]]
        # The late line says what the sleeper's call cost, if it read the answer before it saw that its time was up.
        assert [attempt["fence"] for attempt in after["attempts"]] == [1, 2]
        assert [attempt["billed"] for attempt in after["attempts"]] in (["maybe", "yes"], ["yes", "yes"])
        assert await here.calls() == 2
