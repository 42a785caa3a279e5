"""kill -9 of a real server again and again while jobs flow through it: nothing is lost, nothing is paid for twice.

What holds is read from outside: by the API, by the webhooks, by the model's own count, and from the folder it left.
"""

import asyncio
import os
import signal
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest

from common.records import Work
from local.run import CannotServe, bind, stand_in
from tests.e2e.outside import (
    END_S,
    JOBS_A_ROUND,
    PAID_CALLS_MAX,
    Customer,
    Json,
    check_ends,
    check_ledger,
    every_job,
    every_picture,
    hooks_open,
)
from tests.e2e.server import POINTS

ROOT = Path(__file__).parents[2]
ENDS = {"completed", "failed", "cancelled", "expired"}
# Short, so that what a dead worker held is free again after seconds; all other settings are the real ones.
PATIENCE = {"LEASE_S": "4", "MODEL_DEADLINE_S": "2", "RETELL_S": "1", "WEBHOOK_TIMEOUT_S": "2", "IMAGE_WORKERS": "1"}
START_S = 30

Kill = tuple[str, int]


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
    assert all(jobs[job_id]["status"] == "completed" for job_id in list(customer.accepted)[-JOBS_A_ROUND:])
    check_folder(folder / "data", jobs, stored)


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
