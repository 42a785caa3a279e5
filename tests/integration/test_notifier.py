"""Webhooks: signed, once for every end, under one id; a failing endpoint harms nobody."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from standardwebhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.job import Status
from common.messages import JobChanged, Topic
from common.records import Delivery
from local.run import on_loopback
from tests.world import World


@dataclass
class Receiver:
    """An endpoint on loopback that remembers what it got and answers `status`."""

    url: str = ""
    status: int = 204
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()

    async def hook(request: Request) -> Response:
        receiver.got.append((dict(request.headers), await request.body()))
        return Response(status_code=receiver.status, headers={"location": "http://127.0.0.1:1/"})

    async with on_loopback(Starlette(routes=[Route("/hook", hook, methods=["POST"])])) as url:
        receiver.url = f"{url}/hook"
        yield receiver


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as opened:
        yield opened


async def finished(world: World, url: str, **wishes: object) -> str:
    job = await world.create(kind="image", prompt="a pear", webhook={"url": url, **wishes})
    await world.run()
    identifier: str = job["id"]
    return identifier


async def test_the_end_of_a_job_is_delivered_signed_and_under_the_events_id(world: World, receiver: Receiver) -> None:
    job = await finished(world, receiver.url)
    ((headers, body),) = receiver.got
    state = await world.job(job)
    secret = (await world.api.get("/v1/webhook-secret")).json()["secret"]
    event = Webhook(secret).verify(body, headers)
    assert (event["type"], event["data"]["id"], event["data"]["status"]) == ("job.completed", job, "completed")
    assert headers["webhook-id"] == f"{job}.{state['reached']['completed']}"
    assert event["data"]["links"] == state["links"]
    assert len(body) < 20_000
    assert "X-Goog-Signature" not in body.decode()


async def test_a_webhook_hears_of_the_statuses_it_asked_for(world: World, receiver: Receiver) -> None:
    await finished(world, receiver.url, events=["processing", "completed"])
    types = sorted(json.loads(body)["type"] for _, body in receiver.got)
    assert types == ["job.completed", "job.processing"]


async def test_a_cancelled_job_is_announced_too(world: World, receiver: Receiver) -> None:
    job = await world.create(webhook={"url": receiver.url})
    await world.api.post(job["links"]["cancel"])
    await world.run()
    assert [json.loads(body)["type"] for _, body in receiver.got] == ["job.cancelled"]


async def test_repeated_news_is_delivered_once(world: World, receiver: Receiver) -> None:
    job = await finished(world, receiver.url)
    event_id = receiver.got[0][0]["webhook-id"]
    for _ in range(5):
        fact = JobChanged(job_id=job, event_id=event_id, status=Status.COMPLETED)
        await world.engine.bus.publish(Topic.JOB_CHANGED, fact)
    await world.run()
    assert len(receiver.got) == 1


@pytest.mark.parametrize("status", [500, 404, 302])
async def test_an_answer_that_is_not_2xx_is_recorded_and_not_followed(
    world: World, receiver: Receiver, status: int
) -> None:
    receiver.status = status
    job = await finished(world, receiver.url)
    event_id = receiver.got[0][0]["webhook-id"]
    stored = await world.engine.store.get(Delivery, event_id)
    assert stored is not None
    assert (stored.record.status, stored.record.attempts[0].http_status) == ("failed", status)
    assert len(receiver.got) == 1
    assert (await world.job(job))["status"] == "completed"


async def test_an_endpoint_that_is_not_there_leaves_the_job_completed_and_no_dead_letter(world: World) -> None:
    job = await finished(world, "http://127.0.0.1:9/hook")
    assert (await world.job(job))["status"] == "completed"
    assert await world.embedded.bus.dead_letters() == ()


async def test_a_delivery_whose_message_was_lost_is_sent_by_the_sweep(world: World, receiver: Receiver) -> None:
    job = await world.create(webhook={"url": receiver.url})
    await world.api.post(job["links"]["cancel"])
    # The announcement is handled by hand, and `delivery-due` dropped before the bus may push it.
    envelopes, _ = await world.embedded.bus.due({Topic.JOB_CHANGED: 9}, frozenset())
    assert len(envelopes) == 1
    fact = JobChanged.model_validate_json(envelopes[0].data)
    await world.run_only(Topic.JOB_CHANGED)
    due, _ = await world.embedded.bus.due({Topic.DELIVERY_DUE: 9}, frozenset())
    await world.embedded.bus.acknowledge(due[0].id)
    await world.run()
    assert receiver.got == []
    await world.later(46)
    assert [headers["webhook-id"] for headers, _ in receiver.got] == [fact.event_id]
