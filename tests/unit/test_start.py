"""A service behind its open port: alive at once, itself as soon as it is built, gone with a reason if it cannot be."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from common.google.start import BehindPort
from common.version import VERSION

ROOT = Path(__file__).parents[2]
DEADLINE_S = 10


class Service:
    """An app that is built when `go` is set, and says what became of its lifespan."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.told: list[str] = []

    def build(self) -> Starlette:
        assert self.go.wait(DEADLINE_S)

        async def hello(_: Request) -> Response:
            return PlainTextResponse("hello")

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            self.told.append("begun")
            yield
            self.told.append("ended")

        return Starlette(routes=[Route("/hello", hello), Route("/health/live", hello)], lifespan=lifespan)


@asynccontextmanager
async def serving(app: BehindPort) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the app while its lifespan runs."""
    events: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    answers: asyncio.Queue[str] = asyncio.Queue()

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        await answers.put(message["type"])

    life = asyncio.create_task(app({"type": "lifespan"}, events.get, send))
    async with asyncio.timeout(DEADLINE_S):
        await events.put({"type": "lifespan.startup"})
        assert await answers.get() == "lifespan.startup.complete"
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://service") as client:
            yield client
        await events.put({"type": "lifespan.shutdown"})
        assert await answers.get() == "lifespan.shutdown.complete"
        await life


async def test_alive_before_it_is_built_and_itself_afterwards() -> None:
    service = Service()
    async with serving(BehindPort(service.build)) as client:
        alive = await client.get("/health/live")
        assert alive.json() == {"status": "ok", "version": VERSION}
        waiting = [asyncio.ensure_future(client.get("/hello")) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(request.done() for request in waiting)
        service.go.set()
        assert [answer.text for answer in await asyncio.gather(*waiting)] == ["hello"] * 3
        assert (await client.get("/health/live")).text == "hello"
        assert service.told == ["begun"]
    assert service.told == ["begun", "ended"]


async def test_caller_that_gives_up_leaves_the_others_waiting() -> None:
    service = Service()
    async with serving(BehindPort(service.build)) as client:
        leaving, staying = (asyncio.ensure_future(client.get("/hello")) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        service.go.set()
        assert (await staying).text == "hello"


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_wrong_configuration_ends_the_process_with_what_to_mend(loop: str) -> None:
    serve = ["-m", "uvicorn", "--factory", "ingest.start:api", "--port", "0"]
    environment = {"PATH": os.environ["PATH"], "LEASE_S": "soon"}
    done = subprocess.run(
        [sys.executable, *serve, "--loop", loop], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "LEASE_S" in done.stderr
    assert "Traceback" not in done.stderr
    assert "lifespan" not in done.stderr


def test_every_service_has_a_start_that_imports_next_to_nothing() -> None:
    program = (
        "import ingest.start as i, processor.start as p, notifier.start as n, sys\n"
        "i.api, i.push, p.push, n.api, n.push\n"
        "print(*[name for name in ('pydantic', 'starlette', 'google') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("", "")
