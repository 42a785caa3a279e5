"""What a local server lets in by the address it is bound to, and how it comes to its end."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx2
import pytest
from sse_starlette import ServerSentEvent

from common.job import Job
from common.links import ResultLinks
from common.settings import Settings, SettingsError
from local.run import CannotServe, local_settings
from local.server import complete
from local.serving import server_within
from notifier import api as notifier_api
from notifier import push as notifier_push
from notifier.stream import job_events
from tests.world import World

EVERYWHERE = "0.0.0.0"  # noqa: S104 - this is what the tests are about
SECRET = "s" * 40


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_loopback_webhooks_may_go_to_this_machine(tmp_path: Path, host: str) -> None:
    settings = local_settings(host, 8080, tmp_path)
    assert (settings.webhook_loopback, settings.local_owner) == (True, "local:me")
    assert settings.api_url == f"http://{'[::1]' if host == '::1' else host}:8080"


def test_on_another_address_webhooks_may_not_go_to_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("PUBLIC_URL", "https://photos.example.com")
    settings = local_settings(EVERYWHERE, 8080, tmp_path)
    assert (settings.webhook_loopback, settings.local_owner) == (False, None)
    assert settings.api_url == "https://photos.example.com"


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "set JWT_SECRET"),
        ({"PUBLIC_URL": "https://photos.example.com"}, "set JWT_SECRET"),
        ({"JWT_SECRET": SECRET}, "set PUBLIC_URL"),
        ({"JWT_SECRET": SECRET, "PUBLIC_URL": "https://a.example", "LOCAL_OWNER": "local:me"}, "unset LOCAL_OWNER"),
        ({"PUBLIC_URL": "https://a.example", "LOCAL_OWNER": "local:me"}, "JWT_SECRET"),
    ],
)
def test_on_another_address_a_server_that_could_not_be_used_safely_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CannotServe, match=told):
        local_settings(EVERYWHERE, 8080, tmp_path)


async def test_neither_notifier_app_starts_without_a_webhook_secret(world: World, tmp_path: Path) -> None:
    settings = complete(world.settings, tmp_path).model_copy(update={"webhook_secret": None})
    for app in (notifier_api, notifier_push):
        with pytest.raises(SettingsError, match="WEBHOOK_SECRET"):
            app.create_app(world.engine, settings)


def stream_of(
    world: World, job: Job, settings: Settings | None = None, *, closing: anyio.Event | None = None
) -> AsyncIterator[ServerSentEvent]:
    links = ResultLinks(world.engine, world.settings)
    return job_events(world.engine, settings or world.settings, links, job, closing or anyio.Event())


async def test_a_stream_whose_time_is_up_has_told_the_present_and_asks_to_come_back(world: World) -> None:
    job = (await world.stored((await world.create())["id"])).record
    at_once = world.settings.model_copy(update={"stream_s": 0})
    told = [event.event async for event in stream_of(world, job, at_once)]
    assert told == ["job", "reconnect"]


async def test_the_time_of_a_stream_does_not_strike_while_its_reader_is_busy(world: World) -> None:
    job = (await world.stored((await world.create())["id"])).record
    at_once = world.settings.model_copy(update={"stream_s": 0})
    stream = stream_of(world, job, at_once)
    assert (await anext(stream)).event == "job"
    for _ in range(5):
        await asyncio.sleep(0)
    assert (await anext(stream)).event == "reconnect"


async def test_a_stream_that_is_to_close_asks_to_come_back_a_little_later(world: World) -> None:
    job = (await world.stored((await world.create())["id"])).record
    closing = anyio.Event()
    stream = stream_of(world, job, closing=closing)
    assert (await anext(stream)).event == "job"
    closing.set()
    last = await anext(stream)
    assert (last.event, last.retry) == ("reconnect", 2000)
    assert [event async for event in stream] == []


async def test_a_stream_ends_politely_when_the_server_stops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with httpx2.AsyncClient(timeout=None) as client:
        async with server_within(tmp_path) as running:
            job = (await client.post(f"{running.url}/v1/jobs", json={})).json()
            told: list[str] = []
            listening = asyncio.Event()

            async def listen() -> None:
                async with client.stream("GET", job["links"]["events"]) as answer:
                    async for line in answer.aiter_lines():
                        told.append(line)
                        listening.set()

            listener = asyncio.create_task(listen())
            await listening.wait()
        await listener
    assert "event: reconnect" in told
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []
