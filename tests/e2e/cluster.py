"""All five services as processes of their own, as Cloud Run has them, on Google's emulators; for end-to-end tests.

What Google does between them is played by one balancer: it gives each push of the emulator a signed token and one of
the service's processes, calls the sweeps, and may be told to deliver twice, to lose answers, or to be busy.
"""

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.messages import Topic
from local.engine.dispatcher import PushPolicy
from local.run import bind, on_loopback
from local.server import forever, running
from local.subscriptions import subscribe
from tests.google.emulators import Emulators
from tests.google.fakes import Fakes
from tests.google.front import storage_front

ROOT = Path(__file__).parents[2]
AUDIENCE = "darkroom-e2e"
EMAIL = "push@e2e.iam.gserviceaccount.com"
ORIGIN = "https://app.example.com"
start_s_max, end_s_max = 60, 60
# Short, so that what a dead worker held is free again after seconds; all other settings are the real ones.
PATIENCE = {"LEASE_S": "4", "MODEL_DEADLINE_S": "2", "RETELL_S": "1", "WEBHOOK_TIMEOUT_S": "2", "IMAGE_WORKERS": "1"}

ROUTES: Mapping[Topic, tuple[str, str]] = {
    Topic.UPLOAD_FINALIZED: ("ingest.push", "/push/upload-finalized"),
    Topic.JOB_QUEUED: ("processor.push", "/push/job-queued"),
    Topic.JOB_QUEUED_BATCH: ("processor.push", "/push/job-queued"),
    Topic.JOB_CHANGED: ("notifier.push", "/push/job-changed"),
    Topic.DELIVERY_DUE: ("notifier.push", "/push/delivery"),
}
PUBLIC = ("ingest.api", "notifier.api")
PRIVATE = ("ingest.push", "processor.push", "notifier.push")

Json = dict[str, Any]


@dataclass
class Mischief:
    """Shares of pushes that are delivered twice at once, and whose good answer is lost; topics that are busy (429)."""

    duplicate_rate: float = 0.0
    lost_answer_rate: float = 0.0
    busy: set[str] = field(default_factory=set)


@dataclass
class Instance:
    """One process of one service."""

    service: str
    url: str
    process: asyncio.subprocess.Process

    def send(self, number: signal.Signals) -> None:
        """A signal, unless the process is gone."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)


class Cluster:
    """The running services, `api_url` and `events_url` where the two public apps answer, each on a port of its own."""

    def __init__(self, project: str, environment: Mapping[str, str], fakes: Fakes, logs: Path) -> None:
        self.project = project
        self.api_url = self.events_url = ""
        self.instances: list[Instance] = []
        self.mischief = Mischief()
        self.pushes = 0
        self._environment = dict(environment)
        self._fakes = fakes
        self._logs = logs
        self._random = Random(3)
        self._turn = 0
        self._client = httpx2.AsyncClient(timeout=end_s_max, trust_env=False, limits=httpx2.Limits(max_connections=200))

    async def start(self, service: str, listener: socket.socket | None = None) -> Instance:
        """One more process of a service, answering; `listener` is a port that it shares with others."""
        with ExitStack() as stack:
            if listener is None:
                listener = stack.enter_context(bind("127.0.0.1", 0))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            log = stack.enter_context((self._logs / f"{service}-{len(self.instances)}.log").open("wb"))
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.e2e.instance", service.replace(".", ".start:"), str(listener.fileno()),
                cwd=ROOT, env=self._environment, stdout=log, stderr=log, pass_fds=(listener.fileno(),),
            )  # fmt: skip
        instance = Instance(service, url, process)
        self.instances.append(instance)
        await self._wait_until_ready(instance)
        return instance

    async def _wait_until_ready(self, instance: Instance) -> None:
        # Its port takes connections from the start, so the first request simply waits until somebody answers it.
        asked = asyncio.ensure_future(self._client.get(f"{instance.url}/health/ready"))
        gone = asyncio.ensure_future(instance.process.wait())
        await asyncio.wait([asked, gone], timeout=start_s_max, return_when=asyncio.FIRST_COMPLETED)
        ready = asked.done() and asked.exception() is None and asked.result().status_code == 200
        asked.cancel()
        gone.cancel()
        if not ready:
            logs = "\n".join(path.read_text()[-2000:] for path in self._logs.glob(f"{instance.service}-*.log"))
            raise RuntimeError(f"{instance.service} did not start:\n{logs}")

    def of(self, service: str) -> list[Instance]:
        """The service's processes that were not ended."""
        return [i for i in self.instances if i.service == service and i.process.returncode is None]

    async def push(self, request: Request) -> Response:
        """What the emulator pushes, on its way to a process of the topic's service."""
        topic = Topic(request.path_params["topic"])
        self.pushes += 1
        if topic in self.mischief.busy:
            # What Cloud Run answers for a service whose instances are all taken.
            return Response("Rate exceeded.", 429)
        service, path = ROUTES[topic]
        body = await request.body()
        copies = 2 if self._random.random() < self.mischief.duplicate_rate else 1
        answers = await asyncio.gather(*(self._post(service, path, body) for _ in range(copies)))
        if self._random.random() < self.mischief.lost_answer_rate:
            return Response("The answer was lost.", 503)
        return Response(status_code=max(answers))

    async def sweep(self) -> None:
        """One round of every private service's sweep, as Cloud Scheduler calls it."""
        await asyncio.gather(*(self._post(service, "/tasks/sweep", b"") for service in PRIVATE))

    async def _post(self, service: str, path: str, body: bytes) -> int:
        running = self.of(service)
        self._turn += 1
        instance = running[self._turn % len(running)]
        claims = {"aud": AUDIENCE, "email": EMAIL, "email_verified": True}
        headers = {
            "authorization": f"Bearer {self._fakes.mint_push_token(claims)}",
            "content-type": "application/json",
        }
        try:
            answer = await self._client.post(f"{instance.url}{path}", content=body, headers=headers)
        except httpx2.HTTPError:
            return 503
        return answer.status_code

    async def aclose(self) -> None:
        """End what still runs."""
        for instance in self.instances:
            instance.send(signal.SIGCONT)
            instance.send(signal.SIGKILL)
        await asyncio.gather(*(instance.process.wait() for instance in self.instances))
        await self._client.aclose()


@asynccontextmanager
async def cluster_running(
    emulators: Emulators, fakes: Fakes, folder: Path, model_url: str, *, processes: int = 2, **variables: str
) -> AsyncIterator[Cluster]:
    """Every service with so many processes, pushes and sweeps under way; `variables` are settings for all of them."""
    project = f"e2e-{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        api, events = (stack.enter_context(bind("127.0.0.1", 0)) for _ in PUBLIC)
        urls = [f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in (api, events)]
        front = await stack.enter_async_context(storage_front(project, cors_origins=(ORIGIN,)))
        environment = {
            **os.environ,
            **emulators.environment,
            **fakes.environment,
            **PATIENCE,
            "STORAGE_EMULATOR_HOST": front.url,
            "STORAGE_URL": front.url,
            "GOOGLE_CLOUD_PROJECT": project,
            "PUBLIC_URL": urls[0],
            "NOTIFIER_URL": urls[1],
            "CORS_ORIGINS": ORIGIN,
            "LOCAL_OWNER": "local:me",
            "PUSH_AUTH": "oidc",
            "PUSH_AUDIENCE": AUDIENCE,
            "PUSH_EMAIL": EMAIL,
            "WEBHOOK_SECRET": "e" * 40,
            "WEBHOOK_LOOPBACK": "1",
            "GEMINI_API_KEY": "x",
            "GEMINI_BASE_URL": model_url,
            "NO_PROXY": "127.0.0.1",
            "TMPDIR": str(folder),
            **variables,
        }
        cluster = Cluster(project, environment, fakes, folder)
        stack.push_async_callback(cluster.aclose)
        gate = Starlette(routes=[Route("/{topic}", cluster.push, methods=["POST"])])
        gate_url = await stack.enter_async_context(on_loopback(gate))
        starting = [cluster.start(service) for service in PRIVATE for _ in range(processes)]
        shared = zip(PUBLIC, (api, events), strict=True)
        starting += [cluster.start(service, listener) for service, listener in shared for _ in range(processes)]
        await asyncio.gather(*starting)
        policy = PushPolicy(backoff_min_s=1, backoff_max_s=2)
        await subscribe(project, {topic: f"{gate_url}/{topic}" for topic in ROUTES}, policy)
        cluster.api_url, cluster.events_url = urls
        await stack.enter_async_context(running(forever(cluster.sweep, pause_s=1.0)))
        yield cluster
