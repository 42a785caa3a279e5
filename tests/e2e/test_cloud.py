"""The five services as processes of their own on Google's emulators, from the signed PUT to the webhook."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from common.messages import Topic
from local.run import stand_in
from tests.e2e.cluster import ORIGIN, Cluster, cluster_running
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
from tests.world import jpeg


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

    async def until_called(self) -> None:
        """Wait until a call has come to the model."""
        async with asyncio.timeout(END_S):
            while not await self.calls():  # noqa: ASYNC110
                # What another process does can only be looked at again.
                await asyncio.sleep(0.05)

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
        await here.until_called()
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


async def test_a_web_page_may_use_both_public_apps_and_the_buckets_from_its_own_origin(
    emulators: Emulators, fakes: Fakes, tmp_path: Path
) -> None:
    async with scene(emulators, fakes, tmp_path, processes=1) as here:
        page = {"origin": ORIGIN}
        created = await here.api.post("/v1/jobs", json={"kind": "portrait"}, headers=page)
        assert created.headers["access-control-allow-origin"] == ORIGIN
        job = created.json()
        upload, links = job["upload"], job["links"]
        assert links["self"] == created.headers["location"] == f"{here.cluster.api_url}/v1/jobs/{job['id']}"
        assert links["events"] == f"{here.cluster.events_url}/v1/jobs/{job['id']}/events"
        for url, method in ((links["cancel"], "POST"), (links["events"], "GET"), (upload["url"], "PUT")):
            asked = {**page, "access-control-request-method": method, "access-control-request-headers": "content-type"}
            preflight = await here.api.options(url, headers=asked)
            assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, ORIGIN)
            foreign = await here.api.options(url, headers={**asked, "origin": "https://evil.example.com"})
            assert "access-control-allow-origin" not in foreign.headers
        async with here.api.stream("GET", links["events"], headers=page) as stream:
            assert stream.headers["access-control-allow-origin"] == ORIGIN
            put = await here.api.put(upload["url"], headers={**upload["headers"], **page}, content=jpeg())
            assert (put.status_code, put.headers["access-control-allow-origin"]) == (200, ORIGIN)
            states = [json.loads(line[5:]) async for line in stream.aiter_lines() if line.startswith("data: {")]
        revisions = [state["revision"] for state in states]
        assert revisions == sorted(set(revisions))
        assert states[-1]["status"] == "completed"
        picture = await here.api.get(states[-1]["images"][0]["url"], headers=page)
        assert (picture.status_code, picture.headers["access-control-allow-origin"]) == (200, ORIGIN)


@pytest.mark.soak
async def test_a_thousand_jobs_of_which_a_tenth_is_delivered_twice_make_a_thousand_results(
    emulators: Emulators, fakes: Fakes, tmp_path: Path
) -> None:
    async with scene(emulators, fakes, tmp_path) as here:
        here.cluster.mischief.duplicate_rate = 0.1
        room = asyncio.Semaphore(8)

        async def order(number: int) -> None:
            wishes = {"kind": "portrait"} if number % 4 == 0 else {"kind": "image", "prompt": f"fox number {number}"}
            async with room:
                await here.customer.submit(here.api, **wishes)

        await asyncio.gather(*map(order, range(1000)))
        await here.customer.upload(here.api)
        await here.hooks.wait_for(set(here.customer.accepted), seconds=1200)
        jobs = await here.settle_and_check()
        assert len(jobs) == 1000
        assert {job["status"] for job in jobs.values()} == {"completed"}
        pictures = [image["name"] for job in jobs.values() for image in job["images"]]
        assert len(set(pictures)) == len(pictures) == await here.calls() == 1000
        paid = [attempt for job in jobs.values() for attempt in job["attempts"] if attempt["billed"] != "no"]
        assert len(paid) == 1000
        assert here.cluster.pushes > 4000
