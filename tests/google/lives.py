"""A job's life on the cloud engine: every app on the emulators, behind proxies that meet a plan's faults."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from common.google.engine import open_engine
from common.messages import Topic
from common.ports import Engine
from common.settings import Settings
from local.emulated import serve_on_emulators
from local.engine.dispatcher import PushPolicy
from local.engine.engine import SCRATCH
from local.run import bind, on_loopback
from local.server import complete
from tests.e2e.outside import Hooks, hooks_open
from tests.faults import Fault, Plan
from tests.google.emulators import Emulators
from tests.google.fakes import Fakes
from tests.google.faults import FaultProxy, fault_proxy
from tests.google.front import Broken, Front, PubSubTopic, storage_front
from tests.lives import Life

# Short, so that what a fault left undone is soon taken up again; but as in life no fault of a call outlasts `retell_s`,
# and the lease is long enough to insist on saving what was paid for.
PATIENCE: dict[str, Any] = {
    "lease_s": 40,
    "model_deadline_s": 5,
    "retell_s": 4,
    "webhook_timeout_s": 2,
    "image_workers": 1,
}
look_again_s = 0.05
_BROKEN = {Fault.LOST_ANSWER: Broken.LOST, Fault.CUT: Broken.CUT, Fault.DAMAGED: Broken.DAMAGED}


@dataclass(frozen=True, slots=True)
class Ground:
    """What all lives of a test share."""

    firestore: FaultProxy
    pubsub: FaultProxy
    fakes: Fakes
    model_url: str
    pubsub_host: str


@asynccontextmanager
async def ground(
    emulators: Emulators, fakes: Fakes, model_url: str, environment: pytest.MonkeyPatch
) -> AsyncIterator[Ground]:
    """Proxies before both emulators, to which Google's clients are led from now on."""
    async with fault_proxy(emulators.firestore_host) as firestore, fault_proxy(emulators.pubsub_host) as pubsub:
        environment.setenv("FIRESTORE_EMULATOR_HOST", firestore.host)
        environment.setenv("PUBSUB_EMULATOR_HOST", pubsub.host)
        yield Ground(firestore, pubsub, fakes, model_url, emulators.pubsub_host)


class CloudLife(Life):
    """In a project of its own; what happens takes real time."""

    def __init__(self, engine: Engine, api: httpx2.AsyncClient, hooks: Hooks, plan: Plan) -> None:
        self.engine = engine
        self.api = api
        self.hooks = hooks
        self.plan = plan

    async def go_on(self) -> None:
        await asyncio.sleep(look_again_s)


@asynccontextmanager
async def cloud_life(folder: Path, shared: Ground, plan: Plan) -> AsyncIterator[Life]:
    """All apps and a storage front, in this process."""
    project = f"life-{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        hooks = await stack.enter_async_context(hooks_open())
        # Cloud Storage's own way to Pub/Sub is not ours to break.
        announce = PubSubTopic(project, Topic.UPLOAD_FINALIZED, shared.pubsub_host).publish
        front = await stack.enter_async_context(storage_front(project, anonymous=False, publish=announce))
        listener = bind("127.0.0.1", 0)
        settings = complete(
            Settings(
                google_cloud_project=project,
                storage_url=front.url,
                public_url=f"http://127.0.0.1:{listener.getsockname()[1]}",
                local_owner="local:me",
                webhook_loopback=True,
                stand_in=True,
                gemini_api_key=SecretStr("stand-in"),
                gemini_base_url=shared.model_url,
                **(PATIENCE | shared.fakes.settings),
            ),
            folder,
        )
        (folder / SCRATCH).mkdir()
        policy = PushPolicy(backoff_min_s=1, backoff_max_s=1)
        app = await stack.enter_async_context(serve_on_emulators(settings, folder, policy=policy))
        url = await stack.enter_async_context(on_loopback(app, listener))
        _arrange(plan, project, shared, front)
        engine = open_engine(settings)
        stack.push_async_callback(engine.aclose)
        api = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False))
        yield CloudLife(engine, api, hooks, plan)
        if plan.method in front.faults:
            plan.met += plan.times - len(front.faults[plan.method])


def _arrange(plan: Plan, project: str, shared: Ground, front: Front) -> None:
    """Have the plan's faults met, from now on."""
    shared.firestore.plans[project] = shared.pubsub.plans[project] = plan
    if plan.method in {"upload", "download"}:
        assert plan.at == 1
        front.faults[plan.method].extend([_BROKEN[plan.fault]] * plan.times)
