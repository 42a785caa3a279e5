"""kill -9 of a real server again and again while jobs flow through it: nothing is lost, nothing is paid for twice.

What holds is read from outside: by the API, by the webhooks, by the model's own count, and from the folder it left.
"""

import asyncio
import hashlib
import os
import signal
import sqlite3
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.records import Work
from local.run import CannotServe, bind, on_loopback, stand_in
from tests.e2e.server import POINTS
from tests.world import jpeg

ROOT = Path(__file__).parents[2]
ENDS = {"completed", "failed", "cancelled", "expired"}
PAID_CALLS_MAX = 2
# Short, so that what a dead worker held is free again after seconds; all other settings are the real ones.
PATIENCE = {"LEASE_S": "4", "MODEL_DEADLINE_S": "2", "RETELL_S": "1", "WEBHOOK_TIMEOUT_S": "2", "IMAGE_WORKERS": "1"}
START_S, END_S = 30, 60
JOBS_A_LIFE = 4

Json = dict[str, Any]
Kill = tuple[str, int]


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

    async def wait_for(self, job_ids: set[str]) -> None:
        """Until the end of every one of these jobs was told."""
        async with asyncio.timeout(END_S), self._news:
            await self._news.wait_for(lambda: job_ids <= {body["data"]["id"] for body in self.bodies()})

    def bodies(self) -> list[Json]:
        return [body for bodies in self.received.values() for body in bodies]


@asynccontextmanager
async def hooks_open() -> AsyncIterator[Hooks]:
    hooks = Hooks()
    async with on_loopback(Starlette(routes=[Route("/hook", hooks.take, methods=["POST"])])) as url:
        hooks.url = f"{url}/hook"
        yield hooks


class Server:
    """One life of the server on a folder; `client` speaks to it."""

    def __init__(self, folder: Path, port: int, environment: dict[str, str], kill: Kill | None) -> None:
        self._folder = folder
        self._port = port
        self._environment = environment
        self._kill = kill

    async def __aenter__(self) -> Self:
        death = [] if self._kill is None else [self._kill[0], str(self._kill[1])]
        with (self._folder / "server.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.e2e.server", str(self._folder / "data"), str(self._port), *death,
                stdout=asyncio.subprocess.PIPE, stderr=log, cwd=ROOT, env=self._environment,
            )  # fmt: skip
        self.client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=END_S, trust_env=False)
        assert self.process.stdout is not None
        async with asyncio.timeout(START_S):
            await self.process.stdout.readline()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        await self.end(signal.SIGKILL)

    async def end(self, how: signal.Signals) -> int:
        """End it if it still runs; answers its exit code."""
        if self.process.returncode is None:
            # Not `send_signal`: it reaps a process that has just died, and asyncio then never learns how.
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, how)
        async with asyncio.timeout(END_S):
            return await self.process.wait()


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
        for number in range(JOBS_A_LIFE // 2):
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


def free_port() -> int:
    """A port that stays free while the server is down: below those the system hands out (32768 on Linux) by itself."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with suppress(CannotServe):
            bind("127.0.0.1", port).close()
            return port
    raise RuntimeError("no port between 20000 and 32000 is free")


async def live_through(kills: Sequence[Kill], folder: Path, *, paid_calls_max: int = PAID_CALLS_MAX) -> None:
    """Let the server die at each point with jobs under way; then let it finish in peace and look at what is there."""
    (folder / "tmp").mkdir()
    port = free_port()
    async with hooks_open() as hooks, stand_in("--canned", "auto", "--delay-ms", "20") as model_url:
        environment = {
            **os.environ,
            **PATIENCE,
            "PAID_CALLS_MAX": str(paid_calls_max),
            "GEMINI_API_KEY": "x",
            "GEMINI_BASE_URL": model_url,
            "NO_PROXY": "127.0.0.1",
            "TMPDIR": str(folder / "tmp"),
        }
        customer = Customer(hooks)
        deaths = 0
        for kill in kills:
            async with Server(folder, port, environment, kill) as server:
                try:
                    await customer.order(server.client)
                    await customer.see_all_end(server.client)
                except httpx2.TransportError:
                    assert await server.end(signal.SIGKILL) == -signal.SIGKILL
                deaths += 1
        async with Server(folder, port, environment, None) as server:
            await customer.order(server.client)
            await customer.see_all_end(server.client)
            await hooks.wait_for(set(customer.accepted))
            await settled(folder / "data")
            jobs = await every_job(server.client)
            stored = await every_picture(server.client, jobs)
            calls = (await server.client.get(f"{model_url}/standin/stats")).json()["calls"]
            assert await server.end(signal.SIGTERM) in {0, -signal.SIGTERM}
    assert deaths == len(kills)
    check_ends(customer, jobs, hooks)
    check_ledger(jobs, calls, paid_calls_max)
    assert all(jobs[job_id]["status"] == "completed" for job_id in list(customer.accepted)[-JOBS_A_LIFE:])
    check_folder(folder / "data", jobs, stored)


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


async def settled(data: Path) -> None:
    """Wait until nothing is owed any more: no message under way, no job waiting for anybody but its owner."""
    async with asyncio.timeout(END_S):
        while owed(data):  # noqa: ASYNC110
            # The folder of another process can only be looked at again.
            await asyncio.sleep(0.1)


def rows(data: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{data / 'darkroom.sqlite3'}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def owed(data: Path) -> list[object]:
    """Messages, leases, marks and alarms that are still there."""
    work = [Work.model_validate_json(row[0]) for row in rows(data, "SELECT data FROM records WHERE collection='work'")]
    # Whose 201 was lost with the server, and so its signed URL, waits for a photo that never comes.
    abandoned = {row[0] for row in rows(data, _AWAITING)}
    marks = [w for w in work if w.job_id not in abandoned and (w.lease or w.wake_at or w.untold or w.unqueued)]
    return [*rows(data, "SELECT topic, data, attempts, last_error FROM messages"), *marks]


_AWAITING = "SELECT key FROM records WHERE collection='jobs' AND json_extract(data, '$.status') = 'awaiting_upload'"


def check_folder(data: Path, jobs: dict[str, Json], stored: set[str]) -> None:
    """I3, I6: pictures of completed jobs and nothing else, no file without an object, nothing owed to anybody."""
    objects = rows(data, "SELECT bucket, name, file FROM objects")
    assert {path.name for path in (data / "objects").iterdir()} == {file for _, _, file in objects}
    assert list((data / "scratch").iterdir()) == []
    by_bucket: dict[str, set[str]] = defaultdict(set)
    for bucket, name, _ in objects:
        by_bucket[bucket].add(name)
    assert by_bucket["uploads"] == set()
    assert by_bucket["results"] == stored
    assert {name.split("/")[1].removesuffix(".jpg") for name in by_bucket["inputs"]} <= set(jobs)


# Spread over a job's way; each life ends at its own point, the n-th time the server gets there.
TEN_KILLS: tuple[Kill, ...] = (
    ("before commit", 5),
    ("after commit", 9),
    ("object written", 2),
    ("after commit", 21),
    ("before the call", 2),
    ("after the call", 1),
    ("picture kept", 1),
    ("webhook sent", 2),
    ("before commit", 33),
    ("object written", 6),
)


async def test_ten_kills_lose_nothing_and_pay_nothing_twice(tmp_path: Path) -> None:
    await live_through(TEN_KILLS, tmp_path)


@pytest.mark.soak
async def test_sixty_kills_lose_nothing_and_pay_nothing_twice(tmp_path: Path) -> None:
    fine = [("before commit", n) for n in range(1, 60, 3)] + [("after commit", n) for n in range(2, 60, 3)]
    coarse = [(point, n) for point in POINTS if "commit" not in point for n in range(1, 5)]
    kills = [*fine, *coarse]
    # Neighbours in the list die in different places, so that a job meets different deaths. Two calls an image would
    # be used up before most jobs have met more than two.
    await live_through([kills[(7 * n) % len(kills)] for n in range(len(kills))], tmp_path, paid_calls_max=6)
