"""The Pub/Sub bus beyond the port: what it says when Pub/Sub is not as it should be."""

import asyncio
import secrets

import pytest

from common.errors import Unavailable
from common.google import calls
from common.google.bus import PubSubBus
from common.messages import JobQueued, Topic
from tests.google.fakes import Fakes
from tests.google.silence import grpc_settled, silence

FACT = JobQueued(job_id="0" * 32)


@pytest.mark.usefixtures("emulators")
async def test_missing_topic_is_our_failure_and_no_answer_for_good() -> None:
    """NotFound would be Rejected: the push that wanted to publish would be acknowledged, and the fact lost."""
    bus = PubSubBus(f"test-{secrets.token_hex(4)}")
    with pytest.raises(Unavailable):
        await bus.publish(Topic.JOB_QUEUED, FACT)
    await bus.aclose()


async def test_nobody_listening_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:9")
    monkeypatch.setattr(calls, "call_s_max", calls.try_s_max + 0.1)
    bus = PubSubBus("test-nobody")
    with pytest.raises(Unavailable):
        await bus.publish(Topic.JOB_QUEUED, FACT)
    await bus.aclose()


async def test_closed_bus_is_unavailable() -> None:
    bus = PubSubBus("test-closed")
    await bus.aclose()
    with pytest.raises(Unavailable):
        await bus.publish(Topic.JOB_QUEUED, FACT)


async def test_publish_under_way_at_the_end_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async with silence() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.host)
        bus = PubSubBus("test-silent")
        publishing = asyncio.create_task(bus.publish(Topic.JOB_QUEUED, FACT))
        await server.asked()
        await bus.aclose()
        with pytest.raises(Unavailable):
            await publishing
        await grpc_settled()


async def test_while_nobody_says_who_we_are_all_wait_no_longer_than_one(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("common.google.opening.call_s_max", 0.5)
    bus = PubSubBus("test-nameless")
    fakes.answering.clear()
    try:
        async with asyncio.timeout(2):
            publishing = (bus.publish(Topic.JOB_QUEUED, FACT) for _ in range(10))
            ends = await asyncio.gather(*publishing, return_exceptions=True)
    finally:
        fakes.answering.set()
    assert {type(end) for end in ends} == {Unavailable}
    await bus.aclose()
