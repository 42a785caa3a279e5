"""The Pub/Sub bus beyond the port: what it says when Pub/Sub is not as it should be."""

import secrets

import pytest

from common.errors import Unavailable
from common.google import calls
from common.google.bus import PubSubBus
from common.messages import JobQueued, Topic

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
