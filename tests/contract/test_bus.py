"""What an EventBus promises, on every engine: at least once, to the topic's route, until it is acknowledged."""

import asyncio
from datetime import datetime

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from common.auth import Pushes
from common.job import Status
from common.messages import DeliveryDue, JobChanged, JobQueued, Topic
from common.pubsub import push_route
from common.request_id import RequestIds
from common.telemetry import traceparent
from tests.bench import PUSH_PATH, Bench
from tests.contract.subscriber import Subscriber

QUEUED = Topic.JOB_QUEUED
FACT = JobQueued(job_id="0" * 32, fence=3)


async def test_published_fact_is_pushed_once_to_its_route(bench: Bench) -> None:
    subscriber = Subscriber(bench, QUEUED)
    await bench.engine.bus.publish(QUEUED, FACT)
    assert await subscriber.read(JobQueued) == [FACT]
    await bench.later(bench.backoff_s_max)
    assert await subscriber.hear() == []


async def test_push_is_a_pub_sub_envelope(bench: Bench) -> None:
    """https://cloud.google.com/pubsub/docs/push#receive_push"""
    subscriber = Subscriber(bench, QUEUED)
    message_id = await bench.engine.bus.publish(QUEUED, FACT, event_id="job.1")
    (push,) = await subscriber.hear()
    assert push.path == PUSH_PATH
    assert push.headers["content-type"] == "application/json"
    assert push.data == FACT.encode()
    assert push.attributes["event_id"] == "job.1"
    assert push.message_id == message_id
    assert datetime.fromisoformat(push.envelope["message"]["publishTime"]).tzinfo is not None
    assert push.envelope["subscription"].startswith("projects/")
    assert push.envelope["deliveryAttempt"] == 1


async def test_push_carries_a_token_that_our_routes_let_in(bench: Bench) -> None:
    heard: list[JobQueued] = []

    async def handle(fact: JobQueued) -> None:
        heard.append(fact)

    pushes = Pushes(bench.settings, bench.engine.push_key, bench.engine.now)
    bench.routes[QUEUED] = Starlette(routes=[push_route(PUSH_PATH, JobQueued, handle, pushes)])
    await bench.engine.bus.publish(QUEUED, FACT)
    await bench.deliver()
    assert heard == [FACT]


async def test_token_is_good_however_long_the_bus_runs(bench: Bench) -> None:
    subscriber = Subscriber(bench, QUEUED, [500])
    tokens = []
    await bench.engine.bus.publish(QUEUED, FACT)
    pushes = Pushes(bench.settings, bench.engine.push_key, bench.engine.now)
    for _ in range(bench.attempts_max):
        (push,) = await subscriber.hear()
        tokens.append(push.headers["authorization"])
        await pushes.check(Request({"type": "http", "headers": [(b"authorization", tokens[-1].encode())]}))
        await bench.later(max(bench.backoff_s_max, 40 * 60))
    assert len(set(tokens)) > 1


@pytest.mark.parametrize("status", [200, 201, 204])
async def test_success_acknowledges(bench: Bench, status: int) -> None:
    subscriber = Subscriber(bench, QUEUED, [status])
    await bench.engine.bus.publish(QUEUED, FACT)
    assert len(await subscriber.hear()) == 1
    await bench.later(bench.backoff_s_max)
    assert await subscriber.hear() == []


@pytest.mark.parametrize("status", [202, 203, 206, 301, 400, 401, 403, 404, 408, 429, 500, 502, 503, 504])
async def test_anything_else_is_pushed_again_after_a_while(bench: Bench, status: int) -> None:
    subscriber = Subscriber(bench, QUEUED, [status, 204])
    await bench.engine.bus.publish(QUEUED, FACT)
    (first,) = await subscriber.hear()
    assert await subscriber.hear() == []
    await bench.later(bench.backoff_s_max)
    (second,) = await subscriber.hear()
    assert (second.data, second.message_id) == (first.data, first.message_id)
    assert second.envelope["deliveryAttempt"] == 2
    await bench.later(bench.backoff_s_max)
    assert await subscriber.hear() == []


class Broken:
    """An app that fails in a way of its own, then behaves."""

    def __init__(self, bench: Bench, way: str) -> None:
        self.way = way
        self.calls = 0
        bench.routes[QUEUED] = self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        if self.way == "raises":
            raise RuntimeError("a bug")
        if self.way == "says nothing":
            return
        if self.way == "stops after the headers":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            return
        if self.way == "is cancelled":
            raise asyncio.CancelledError
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("way", ["raises", "says nothing", "stops after the headers", "is cancelled"])
async def test_app_that_breaks_gets_the_push_again_after_a_while(bench: Bench, way: str) -> None:
    app = Broken(bench, way)
    await bench.engine.bus.publish(QUEUED, FACT)
    async with asyncio.timeout(10):
        await bench.deliver()
    assert app.calls == 1
    app.way = "behaves"
    await bench.later(bench.backoff_s_max)
    await bench.deliver()
    assert app.calls == 2
    await bench.later(bench.backoff_s_max)
    await bench.deliver()
    assert app.calls == 2


async def test_message_is_given_up_after_so_many_attempts_and_kept(bench: Bench) -> None:
    subscriber = Subscriber(bench, QUEUED, [500])
    await bench.engine.bus.publish(QUEUED, FACT)
    for attempt in range(1, bench.attempts_max + 1):
        assert await bench.dead_letters(QUEUED) == []
        (push,) = await subscriber.hear()
        assert push.envelope["deliveryAttempt"] == attempt
        await bench.later(bench.backoff_s_max)
    assert await subscriber.hear() == []
    assert await bench.dead_letters(QUEUED) == [FACT.encode()]


async def test_poison_message_does_not_hold_up_the_others(bench: Bench) -> None:
    subscriber = Subscriber(bench, QUEUED, [500, 204])
    await bench.engine.bus.publish(QUEUED, JobQueued(job_id="poison"))
    await subscriber.hear()
    for number in range(100):
        await bench.engine.bus.publish(QUEUED, JobQueued(job_id=f"{number}"))
    assert len(await subscriber.hear()) == 100


async def test_each_topic_goes_to_its_own_route(bench: Bench) -> None:
    facts = {
        Topic.JOB_QUEUED: FACT,
        Topic.JOB_QUEUED_BATCH: JobQueued(job_id="batch"),
        Topic.JOB_CHANGED: JobChanged(job_id="a", event_id="a.1", status=Status.PENDING),
        Topic.DELIVERY_DUE: DeliveryDue(delivery_id="a.1"),
    }
    subscribers = {topic: Subscriber(bench, topic) for topic in facts}
    for topic, fact in facts.items():
        await bench.engine.bus.publish(topic, fact)
    await bench.deliver()
    for topic, fact in facts.items():
        assert [push.data for push in subscribers[topic].pushes] == [fact.encode()]


async def test_hundred_facts_published_at_once_arrive_all(bench: Bench) -> None:
    subscriber = Subscriber(bench, QUEUED)
    facts = [JobQueued(job_id=f"{number}") for number in range(100)]
    ids = await asyncio.gather(*(bench.engine.bus.publish(QUEUED, fact) for fact in facts))
    heard = await subscriber.hear()
    assert {push.data for push in heard} == {fact.encode() for fact in facts}
    assert {push.message_id for push in heard} == set(ids)
    assert len(set(ids)) == 100


async def test_fact_keeps_every_character(bench: Bench) -> None:
    subscriber = Subscriber(bench, Topic.DELIVERY_DUE)
    fact = DeliveryDue(delivery_id='é é 👩‍🚀 \0 \u2028 "\\ \x7f')
    await bench.engine.bus.publish(Topic.DELIVERY_DUE, fact)
    assert await subscriber.read(DeliveryDue) == [fact]


async def test_published_fact_survives_reopening(bench: Bench) -> None:
    await bench.engine.bus.publish(QUEUED, FACT)
    await bench.reopen()
    assert await Subscriber(bench, QUEUED).read(JobQueued) == [FACT]


async def test_failed_push_survives_reopening(bench: Bench) -> None:
    subscriber = Subscriber(bench, QUEUED, [503, 204])
    await bench.engine.bus.publish(QUEUED, FACT)
    await subscriber.hear()
    await bench.reopen()
    await bench.later(bench.backoff_s_max)
    assert await subscriber.read(JobQueued) == [FACT]


async def test_acknowledged_fact_stays_away_after_reopening(bench: Bench) -> None:
    subscriber = Subscriber(bench, QUEUED)
    await bench.engine.bus.publish(QUEUED, FACT)
    await subscriber.hear()
    await bench.reopen()
    await bench.later(bench.backoff_s_max)
    assert await subscriber.hear() == []


async def test_dead_letter_survives_reopening(bench: Bench) -> None:
    subscriber = Subscriber(bench, QUEUED, [500])
    await bench.engine.bus.publish(QUEUED, FACT)
    for _ in range(bench.attempts_max):
        await subscriber.hear()
        await bench.later(bench.backoff_s_max)
    await bench.reopen()
    assert await bench.dead_letters(QUEUED) == [FACT.encode()]


async def test_handler_may_publish(bench: Bench) -> None:
    second = Subscriber(bench, Topic.JOB_CHANGED)
    news = JobChanged(job_id="a", event_id="a.1", status=Status.PENDING)

    class Forwarder(Subscriber):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await bench.engine.bus.publish(Topic.JOB_CHANGED, news)
            await super().__call__(scope, receive, send)

    first = Forwarder(bench, QUEUED)
    await bench.engine.bus.publish(QUEUED, FACT)
    assert len(await first.hear()) == 1
    assert [push.data for push in second.pushes] == [news.encode()]


async def test_trace_of_a_request_goes_on_with_every_fact_that_comes_of_it(bench: Bench) -> None:
    """https://www.w3.org/TR/trace-context/: the trace id stays, and each hop names itself to the next."""
    hops = ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]

    async def submit(_: Request) -> Response:
        hops.append(traceparent())
        await bench.engine.bus.publish(QUEUED, FACT)
        return Response(status_code=204)

    async def handle(_: JobQueued) -> None:
        hops.append(traceparent())
        news = JobChanged(job_id="a", event_id="a.1", status=Status.PENDING)
        await bench.engine.bus.publish(Topic.JOB_CHANGED, news, event_id="a.1")

    pushes = Pushes(bench.settings, bench.engine.push_key, bench.engine.now)
    bench.routes[QUEUED] = Starlette(routes=[push_route(PUSH_PATH, JobQueued, handle, pushes)])
    api = Starlette(
        routes=[Route("/", submit, methods=["POST"])],
        middleware=[Middleware(RequestIds, new_id=bench.engine.new_id)],
    )
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=api), base_url="http://api") as client:
        await client.post("/", headers={"traceparent": hops[0]})
    (push,) = await Subscriber(bench, Topic.JOB_CHANGED).hear()
    assert push.attributes == {"traceparent": hops[-1], "event_id": "a.1"}
    versions, traces, spans, flags = zip(*(hop.split("-") for hop in hops), strict=True)
    assert (set(versions), set(traces), set(flags)) == ({"00"}, {"0af7651916cd43dd8448eb211c80319c"}, {"01"})
    assert len(set(spans)) == 3
