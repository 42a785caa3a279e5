"""What readers are told while signing, the feed or one record fails, and what their asking again and again costs."""

import asyncio
import json
import logging
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from common.errors import Unavailable
from common.google.blobs import CloudBlobs
from common.google.engine import open_engine
from common.google.identity import Identity
from common.job import Job
from common.links import ResultLinks
from common.messages import Topic
from common.ports import Engine, Feed
from common.settings import Settings
from ingest import api as ingest_api
from tests.faults import Breaking, Fault, Plan
from tests.google.fakes import Fakes
from tests.world import World, open_world


def without(method: str, times: int) -> tuple[Plan, Callable[[Engine], Engine]]:
    """Signing by that method fails so many times."""
    plan = Plan(method, 1, Fault.UNAVAILABLE, times)
    return plan, lambda engine: replace(engine, blobs=Breaking(engine.blobs, plan, (method,)))


@dataclass
class BrokenFeed:
    """A feed that breaks after so many states, or before it begins."""

    real: Feed
    states: int | None = None

    @asynccontextmanager
    async def watch_job(self, job_id: str) -> AsyncIterator[AsyncIterator[Job]]:
        if self.states is None:
            raise Unavailable("broken on purpose")
        async with self.real.watch_job(job_id) as states:
            yield self._some(states, self.states)

    async def _some(self, states: AsyncIterator[Job], count: int) -> AsyncGenerator[Job]:
        for _ in range(count):
            yield await anext(states)
        raise Unavailable("broken on purpose")

    def watch_owner(self, owner: str) -> Any:
        return self.real.watch_owner(owner)


@pytest.fixture(params=[None, 0, 1], ids=["never begun", "begun", "one state told"])
async def cut_off(request: pytest.FixtureRequest, tmp_path: Path, stand_in_url: str) -> AsyncIterator[World]:
    """A world whose feed breaks."""

    def wrap(engine: Engine) -> Engine:
        return replace(engine, feed=BrokenFeed(engine.feed, request.param))

    async with open_world(tmp_path, stand_in_url, wrap=wrap) as world:
        yield world


def events(answer: httpx2.Response) -> list[tuple[str, str]]:
    """Name and data of what a stream told."""
    assert answer.status_code == 200
    found = []
    for block in answer.text.replace("\r\n", "\n").strip().split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.split("\n") if not line.startswith(":"))
        found.append((fields["event"], fields.get("data", "")))
    return found


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.getMessage() == event]


async def finished(world: World, **wishes: object) -> dict[str, Any]:
    job = await world.create(kind="image", prompt="a pear", **wishes)
    await world.run()
    return job


async def test_a_portrait_whose_upload_cannot_be_signed_is_no_job(tmp_path: Path, stand_in_url: str) -> None:
    _, wrap = without("sign_put", 3)
    async with open_world(tmp_path, stand_in_url, wrap=wrap) as world:
        for _ in range(3):
            answer = await world.api.post("/v1/jobs", json={})
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert (await world.api.get("/v1/jobs")).json()["jobs"] == []
        assert (await world.create())["upload"]["url"]


async def test_a_wish_that_cannot_be_met_costs_no_signature(tmp_path: Path, stand_in_url: str) -> None:
    plan, wrap = without("sign_put", 0)
    async with open_world(tmp_path, stand_in_url, wrap=wrap) as world:
        assert (await world.api.post("/v1/jobs", json={"style": "baroque"})).status_code == 422
    assert not plan.seen


async def test_a_finished_job_is_shown_without_links_while_nothing_signs(
    tmp_path: Path, stand_in_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, wrap = without("sign_get", 4)
    async with open_world(tmp_path, stand_in_url, wrap=wrap) as world:
        job = await finished(world, num_images=2)
        with caplog.at_level(logging.WARNING):
            shown = await world.job(job["id"])
        assert shown["status"] == "completed"
        assert [(image["url"], image["thumbnail_url"]) for image in shown["images"]] == [(None, None)] * 2
        (line,) = lines(caplog, "links.unsigned")
        assert (line["job_id"], line["missing"]) == (job["id"], 4)
        assert (await world.api.get(shown["links"]["images"][1])).status_code == 302
        assert (await world.job(job["id"]))["images"][1]["thumbnail_url"]


async def test_a_stream_tells_the_state_without_links_while_nothing_signs(tmp_path: Path, stand_in_url: str) -> None:
    _, wrap = without("sign_get", 99)
    async with open_world(tmp_path, stand_in_url, wrap=wrap) as world:
        job = await finished(world)
        ((name, data),) = events(await world.api.get(job["links"]["events"]))
    shown = json.loads(data)
    assert (name, shown["status"], shown["images"][0]["url"]) == ("job", "completed", None)


async def test_the_document_says_when_a_link_is_missing_and_what_to_do(world: World) -> None:
    image = (await world.api.get("/openapi.json")).json()["components"]["schemas"]["ImageView"]["properties"]
    assert "links.images" in image["url"]["description"]
    assert "links.images" in image["thumbnail_url"]["description"]


async def test_waiting_without_a_feed_answers_with_what_there_is(
    cut_off: World, caplog: pytest.LogCaptureFixture
) -> None:
    job = await cut_off.create()
    with caplog.at_level(logging.WARNING):
        answer = await cut_off.api.get(job["links"]["self"], headers={"prefer": "wait=30"})
    assert (answer.status_code, answer.json()["status"]) == (200, "awaiting_upload")
    assert [line["job_id"] for line in lines(caplog, "wait.broken")] == [job["id"]]


async def test_a_stream_without_a_feed_tells_the_present_and_asks_to_come_back(cut_off: World) -> None:
    job = await cut_off.create()
    answer = await cut_off.api.get(job["links"]["events"])
    (name, data), last = events(answer)
    assert (name, json.loads(data)["id"], last) == ("job", job["id"], ("reconnect", ""))
    assert "retry: 2000" in answer.text.rpartition("reconnect")[2]


async def test_a_stream_without_a_feed_tells_the_end_of_an_ended_job(cut_off: World) -> None:
    job = await finished(cut_off)
    ((name, data),) = events(await cut_off.api.get(job["links"]["events"]))
    assert (name, json.loads(data)["status"]) == ("job", "completed")


def of_a_later_version(world: World, job: str) -> None:
    """Let the stored job have a status that this version does not know."""
    with closing(sqlite3.connect(world.folder / "darkroom.sqlite3", isolation_level=None)) as connection:
        place = "WHERE collection = 'jobs' AND key = ?"
        (data,) = connection.execute(f"SELECT data FROM records {place}", (job,)).fetchone()  # noqa: S608
        later = json.dumps(json.loads(data) | {"status": "archived"}).encode()
        connection.execute(f"UPDATE records SET data = ? {place}", (later, job))  # noqa: S608


async def test_a_job_of_a_later_version_is_unavailable_and_hides_no_other(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = []
    for _ in range(4):
        world.clock.advance(1)
        jobs.append((await world.create(kind="image", prompt="a pear"))["id"])
    for job in jobs[1:3]:
        of_a_later_version(world, job)
    with caplog.at_level(logging.ERROR):
        answer = await world.api.get(f"/v1/jobs/{jobs[1]}")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "errors" not in answer.json()
    assert [line["key"] for line in lines(caplog, "record.unreadable")] == [jobs[1]]
    assert [job["id"] for job in (await world.api.get("/v1/jobs")).json()["jobs"]] == [jobs[3], jobs[0]]
    one_by_one: list[str] = []
    token: str | None = ""
    while token is not None:
        page = (await world.api.get("/v1/jobs", params={"page_size": 1, "page_token": token})).json()
        one_by_one += [job["id"] for job in page["jobs"]]
        token = page["next_page_token"]
    assert one_by_one == [jobs[3], jobs[0]]


async def test_a_push_for_a_job_of_a_later_version_is_pushed_again_and_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    job = (await world.create(kind="image", prompt="a pear"))["id"]
    of_a_later_version(world, job)
    with caplog.at_level(logging.WARNING):
        await world.run_only(Topic.JOB_QUEUED)
    assert [line["code"] for line in lines(caplog, "push.retried")] == ["unavailable"]
    assert [line["key"] for line in lines(caplog, "record.unreadable")] == [job]
    assert await world.embedded.bus.dead_letters() == ()


@asynccontextmanager
async def signing_through_iam(world: World, fakes: Fakes) -> AsyncIterator[httpx2.AsyncClient]:
    """The world's public API, but its links are signed by the service account that IAM knows."""
    settings = world.settings.model_copy(update=fakes.settings)
    identity = Identity(settings, world.clock)
    blobs = CloudBlobs(settings, identity, world.clock)
    app = ingest_api.create_app(replace(world.engine, blobs=blobs), settings)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://127.0.0.1") as client:
        yield client
    await blobs.aclose()
    await identity.aclose()


async def test_looking_at_a_job_again_and_again_costs_the_signatures_of_one_look(world: World, fakes: Fakes) -> None:
    job = await finished(world, num_images=4)
    path = f"/v1/jobs/{job['id']}"
    async with signing_through_iam(world, fakes) as client:
        before = fakes.calls["signBlob"]
        together = await asyncio.gather(*(client.get(path) for _ in range(20)))
        assert fakes.calls["signBlob"] - before == 8
        assert {answer.status_code for answer in together} == {200}
        for number in range(4):
            link = together[0].json()["images"][number]["url"]
            assert (await client.get(f"{path}/images/{number}")).headers["location"] == link
        world.clock.advance(15 * 60 - 1)
        again = (await client.get(path)).json()
        assert fakes.calls["signBlob"] - before == 8
        assert again == together[0].json()
        world.clock.advance(1)
        renewed = (await client.get(path)).json()
    assert fakes.calls["signBlob"] - before == 16
    assert renewed["images"][0]["url"] != again["images"][0]["url"]


async def test_a_kept_link_opens_its_picture_for_three_quarters_of_its_life(world: World) -> None:
    job = (await finished(world))["id"]
    await world.job(job)
    world.clock.advance(15 * 60 - 1)
    url = (await world.job(job))["images"][0]["url"]
    world.clock.advance(45 * 60)
    assert (await world.api.get(url)).status_code == 200
    world.clock.advance(2)
    assert (await world.api.get(url)).status_code == 400


async def test_a_kept_link_to_a_deleted_picture_leads_to_nothing(world: World) -> None:
    job = await world.stored((await finished(world))["id"])
    links = ResultLinks(world.engine, world.settings)
    name = str(job.record.images[0].name)
    url = await links.url(name)
    await world.engine.blobs.delete("results", name)
    assert await links.url(name) == url
    assert (await world.api.get(url)).status_code == 404


async def test_an_owner_who_asks_for_firestore_again_gets_the_same_token_for_ten_minutes(
    world: World, fakes: Fakes
) -> None:
    settings = Settings(google_cloud_project="darkroom-test", local_owner="local:me", **fakes.settings)  # type: ignore[arg-type]
    engine = open_engine(settings, now=world.clock)
    transport = httpx2.ASGITransport(app=ingest_api.create_app(engine, settings))
    before = fakes.calls["signJwt"]
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        first = (await client.post("/v1/firestore-token")).json()
        world.clock.advance(599)
        assert (await client.post("/v1/firestore-token")).json() == first
        world.clock.advance(1)
        assert (await client.post("/v1/firestore-token")).json()["expires_at"] > first["expires_at"]
    assert fakes.calls["signJwt"] - before == 2
    await engine.aclose()
