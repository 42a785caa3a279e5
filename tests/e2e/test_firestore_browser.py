"""The Firebase web SDK in a real browser listens to jobs that FirestoreStore writes, under our rules.

The page asks POST /v1/firestore-token for its token, from another origin. What is not shown here, for want of an
emulator, is how Firebase Auth exchanges that token: the page takes uid and claims from it by itself.
"""

import asyncio
import logging
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from playwright.async_api import Browser, Page
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from common.google.engine import open_engine
from common.job import Image, Job, Stage
from common.ports import Create, Delete, Store, Stored, Update
from common.settings import Settings
from ingest.api import create_app
from local.run import on_loopback
from tests.contract.samples import job
from tests.e2e.browser import bundle, chromium
from tests.google.emulators import Emulators
from tests.google.fakes import Fakes

ACME, OTHER = "key:acme", "key:other"
hear_s_max = 20
COMMITS = 50
Json = dict[str, Any]
log = logging.getLogger(__name__)


class Tab:
    """One page of an app: what its listeners heard, in order, until a test asks for it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._news: dict[str, asyncio.Queue[Json]] = {}

    async def open(self, url: str) -> None:
        await self._page.expose_function("told", self._told)
        await self._page.goto(url)

    async def run(self, function: str, *arguments: object) -> object:
        """Call one of the page's functions; answers what it does."""
        answer: object = await self._page.evaluate(f"(given) => {function}(...given)", list(arguments))
        return answer

    async def next(self, listener: str) -> Json:
        """The listener's next news. Raises TimeoutError."""
        async with asyncio.timeout(hear_s_max):
            return await self._queue(listener).get()

    def _told(self, listener: str, news: Json) -> None:
        self._queue(listener).put_nowait(news)

    def _queue(self, listener: str) -> "asyncio.Queue[Json]":
        return self._news.setdefault(listener, asyncio.Queue())


@dataclass
class Shop:
    """A project under our rules, its store, and a tab that has signed in for one owner."""

    store: Store
    tab: Tab

    async def create(self, record: Job) -> Stored[Job]:
        return await self._commit(Create(record))

    async def save(self, stored: Stored[Job], record: Job) -> Stored[Job]:
        return await self._commit(Update(record, stored.etag))

    async def _commit(self, change: Create | Update) -> Stored[Job]:
        (written,) = await self.store.commit([change], save_id=secrets.token_hex(8))
        return cast(Stored[Job], written)


@pytest.fixture(scope="module")
async def browser(emulators: Emulators) -> AsyncIterator[Browser]:
    async with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
async def page_url() -> AsyncIterator[str]:
    """The app's page on an origin of its own."""
    script = bundle(Path(__file__).parent / "web")

    async def page(_: Request) -> Response:
        return HTMLResponse('<!doctype html><meta charset="utf-8"><script src="page.js"></script>')

    async def code(_: Request) -> Response:
        return Response(script, media_type="text/javascript")

    async with on_loopback(Starlette(routes=[Route("/", page), Route("/page.js", code)])) as url:
        yield url


@pytest.fixture
async def shop(browser: Browser, page_url: str, emulators: Emulators, fakes: Fakes) -> AsyncIterator[Shop]:
    """The cloud engine in a project of its own, the public API on it, and a tab that has asked that for a token."""
    project = f"browser-{secrets.token_hex(4)}"
    emulators.put_rules(project)
    settings = Settings(
        google_cloud_project=project,
        iam_credentials_url=fakes.settings["iam_credentials_url"],
        local_owner=ACME,
        cors_origins=(page_url,),
    )
    engine = open_engine(settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.aclose)
        api_url = await stack.enter_async_context(on_loopback(create_app(engine, settings)))
        context = await stack.enter_async_context(await browser.new_context())
        tab = Tab(await context.new_page())
        await tab.open(page_url)
        host, _, port = emulators.firestore_host.partition(":")
        assert await tab.run("signIn", api_url, host, int(port)) == ACME
        yield Shop(engine.store, tab)


def now() -> datetime:
    return datetime.now(UTC)


def life(new: Job) -> Sequence[Job]:
    """Every version of a job from its claim to its end."""
    sent = new.send(new.images, (), now())
    storing = sent.settle(sent.images, (), Stage.STORING, 843)
    done = storing.finish((Image(index=0, status="completed", name="x/0"),), (), now())
    return sent, storing, done


async def test_a_page_sees_a_job_to_its_end_with_revisions_only_rising(shop: Shop) -> None:
    new = job(1, owner=ACME)
    stored = await shop.create(new)
    await shop.tab.run("watchJob", new.id)
    heard = [(await shop.tab.next(new.id))["heard"]]
    for version in life(new):
        stored = await shop.save(stored, version)
    while not heard[-1]["done"]:
        heard.append((await shop.tab.next(new.id))["heard"])
    assert heard[0] == {"id": new.id, "status": "pending", "done": False, "revision": 1, "owner": ACME}
    assert heard[-1] == {"id": new.id, "status": "completed", "done": True, "revision": 4, "owner": ACME}
    revisions = [state["revision"] for state in heard]
    assert revisions == sorted(set(revisions))


async def test_a_page_sees_all_its_owners_jobs_come_and_end_and_nobody_elses(shop: Shop) -> None:
    first, second, foreign = job(1, owner=ACME), job(2, owner=ACME), job(3, owner=OTHER)
    await shop.create(first)
    await shop.create(foreign)
    await shop.tab.run("watchOwner", ACME)
    heard = (await shop.tab.next(ACME))["heard"]
    assert [state["id"] for state in heard] == [first.id]
    stored = await shop.create(second)
    for version in life(second):
        stored = await shop.save(stored, version)
    seen: dict[str, list[int]] = {}
    while not any(state["done"] for state in heard):
        heard = (await shop.tab.next(ACME))["heard"]
        for state in heard:
            seen.setdefault(state["id"], []).append(state["revision"])
    assert set(seen) == {first.id, second.id}
    assert all(revisions == sorted(revisions) for revisions in seen.values())


async def test_a_page_is_refused_what_is_anothers(shop: Shop) -> None:
    foreign, absent = job(3, owner=OTHER), job(4)
    await shop.create(foreign)
    for listener, function, *arguments in (
        (foreign.id, "watchJob", foreign.id),
        (absent.id, "watchJob", absent.id),
        (OTHER, "watchOwner", OTHER),
        ("everything", "watchEverything"),
    ):
        await shop.tab.run(function, *arguments)
        assert await shop.tab.next(listener) == {"refused": "permission-denied"}


async def test_an_erased_job_leaves_the_list_and_is_then_refused_like_one_that_never_was(shop: Shop) -> None:
    new = job(1, owner=ACME)
    await shop.create(new)
    await shop.tab.run("watchOwner", ACME)
    await shop.tab.run("watchJob", new.id)
    assert len((await shop.tab.next(ACME))["heard"]) == 1
    assert (await shop.tab.next(new.id))["heard"]["id"] == new.id
    await shop.store.commit([Delete(Job, new.id)], save_id="erased")
    assert (await shop.tab.next(ACME))["heard"] == []
    assert await shop.tab.next(new.id) == {"refused": "permission-denied"}


async def test_a_page_hears_of_a_commit_within_a_blink(shop: Shop) -> None:
    new = job(1, owner=ACME)
    stored = await shop.create(new)
    await shop.tab.run("watchJob", new.id)
    await shop.tab.next(new.id)
    version = new.send(new.images, (), now())
    delays_ms = []
    for _ in range(COMMITS):
        version = version.settle(version.images, (), Stage.GENERATING, None)
        sent_at = time.time()
        stored = await shop.save(stored, version)
        news = await shop.tab.next(new.id)
        assert news["heard"]["revision"] == version.revision
        delays_ms.append(news["at"] - sent_at * 1000)
    p50 = statistics.median(delays_ms)
    log.info("commit to browser: p50 %.0f ms, worst %.0f ms of %d", p50, max(delays_ms), COMMITS)
    assert p50 < 500
