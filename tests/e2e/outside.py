"""What a customer sees of Darkroom and what must hold there whatever happens inside: ends, news, pictures, ledgers."""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import httpx2
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from local.run import on_loopback
from tests.world import jpeg

PAID_CALLS_MAX = 2
END_S = 60
JOBS_A_ROUND = 4

Json = dict[str, Any]


class Hooks:
    """A webhook receiver that outlives the server. Keeps every body it got, by its `webhook-id`."""

    def __init__(self) -> None:
        self.url = ""
        self.received: dict[str, list[Json]] = defaultdict(list)
        self._news = asyncio.Condition()

    async def take(self, request: Request) -> Response:
        body = await request.json()
        async with self._news:
            self.received[request.headers["webhook-id"]].append(body)
            self._news.notify_all()
        return Response(status_code=204)

    async def wait_for(self, job_ids: set[str], *, seconds: float = END_S) -> None:
        """Until the end of every one of these jobs was told."""
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: job_ids <= {body["data"]["id"] for body in self.bodies()})

    def bodies(self) -> list[Json]:
        return [body for bodies in self.received.values() for body in bodies]


@asynccontextmanager
async def hooks_open() -> AsyncIterator[Hooks]:
    hooks = Hooks()
    async with on_loopback(Starlette(routes=[Route("/hook", hooks.take, methods=["POST"])])) as url:
        hooks.url = f"{url}/hook"
        yield hooks


class Customer:
    """Submits jobs and uploads photos, and tries again what a dying server left unanswered."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self.accepted: dict[str, Json] = {}
        self.to_upload: list[Json] = []
        self.ends: dict[str, str] = {}

    async def submit(self, client: httpx2.AsyncClient, **wishes: Any) -> None:
        answer = await client.post("/v1/jobs", json={**wishes, "webhook": {"url": self._hooks.url}})
        assert answer.status_code == 201, answer.text
        job: Json = answer.json()
        self.accepted[job["id"]] = job
        if job["upload"] is not None:
            self.to_upload.append(job)

    async def upload(self, client: httpx2.AsyncClient) -> None:
        """Send every photo that is not known to have arrived; 412 says that it had."""
        for job in list(self.to_upload):
            upload = job["upload"]
            answer = await client.put(upload["url"], headers=upload["headers"], content=jpeg(color=f"#{job['id'][:6]}"))
            assert answer.status_code in {200, 412}, answer.text
            self.to_upload.remove(job)

    async def order(self, client: httpx2.AsyncClient) -> None:
        """A handful of jobs, one after the other, with their photos."""
        for number in range(JOBS_A_ROUND // 2):
            await self.submit(client, kind="portrait")
            await self.submit(client, kind="image", prompt="a red fox in the snow", num_images=number + 1)
            await self.upload(client)

    async def see_all_end(self, client: httpx2.AsyncClient) -> None:
        """Wait until every accepted job has ended; the first end that was seen must stay."""
        await self.upload(client)
        waiting = [job_id for job_id in self.accepted if job_id not in self.ends]
        await asyncio.gather(*(self._see_end(client, job_id) for job_id in waiting))

    async def _see_end(self, client: httpx2.AsyncClient, job_id: str) -> None:
        async with asyncio.timeout(END_S):
            while True:
                answer = await client.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=20"})
                assert answer.status_code == 200, answer.text
                if answer.json()["done"]:
                    self.ends[job_id] = answer.json()["status"]
                    return


async def every_job(client: httpx2.AsyncClient) -> dict[str, Json]:
    """Every job there is, also those whose 201 was lost with the server."""
    jobs: list[Json] = []
    token = ""
    while True:
        page = (await client.get("/v1/jobs", params={"page_size": 100, "page_token": token})).json()
        jobs += page["jobs"]
        token = page["next_page_token"]
        if token is None:
            return {job["id"]: job for job in jobs}


async def every_picture(client: httpx2.AsyncClient, jobs: dict[str, Json]) -> set[str]:
    """Download and check every finished picture and thumbnail; answers their names in the bucket."""
    names = set()
    for job in jobs.values():
        if job["status"] != "completed":
            assert all(image["name"] is None for image in job["images"])
            continue
        for image in (await client.get(f"/v1/jobs/{job['id']}")).json()["images"]:
            if image["status"] != "completed":
                continue
            picture = (await client.get(image["url"])).content
            assert hashlib.sha256(picture).hexdigest() == image["sha256"]
            with Image.open(BytesIO(picture)) as decoded:
                decoded.load()
                assert decoded.size == (image["width"], image["height"])
            with Image.open(BytesIO((await client.get(image["thumbnail_url"])).content)) as thumbnail:
                thumbnail.load()
            names |= {image["name"], image["thumbnail_name"]}
    return names


def check_ends(customer: Customer, jobs: dict[str, Json], hooks: Hooks) -> None:
    """I1, I2, I5: one end each, never another, told at least once under one id."""
    assert set(customer.accepted) <= set(jobs)
    for job_id, end in customer.ends.items():
        assert jobs[job_id]["status"] == end
    told: dict[str, set[str]] = defaultdict(set)
    for event_id, bodies in hooks.received.items():
        assert len({(body["data"]["id"], body["type"]) for body in bodies}) == 1
        job_id = bodies[0]["data"]["id"]
        status = bodies[0]["type"].removeprefix("job.")
        assert status == jobs[job_id]["status"]
        assert event_id == f"{job_id}.{jobs[job_id]['reached'][status]}"
        told[job_id].add(event_id)
    assert all(len(told[job_id]) == 1 for job_id in customer.accepted)


def check_ledger(jobs: dict[str, Json], calls: int, paid_calls_max: int) -> None:
    """I4: no image was paid for more often than allowed or given up sooner, and no call is missing in the ledgers."""
    for job in jobs.values():
        for image in job["images"]:
            mine = [attempt for attempt in job["attempts"] if attempt["image"] == image["index"]]
            paid = [attempt for attempt in mine if attempt["billed"] != "no"]
            assert len(paid) <= paid_calls_max
            assert len({attempt["fence"] for attempt in mine}) == len(mine)
            if image["status"] == "failed":
                # Nothing but our kills goes wrong here, so only an image that was hit every time may be given up.
                assert len(paid) == paid_calls_max, job
                assert image["error"]["code"] in {"timeout", "not_kept"}
            if job["done"]:
                assert all(attempt["state"] != "sent" for attempt in mine)
    assert calls <= sum(len(job["attempts"]) for job in jobs.values())
