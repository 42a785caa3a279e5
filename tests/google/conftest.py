"""What several tests of the cloud engine need."""

from collections.abc import AsyncIterator

import pytest

from common.google.blobs import CloudBlobs
from common.google.identity import Identity
from common.settings import Settings
from tests.bench import Clock
from tests.google.cloud import Cloud, nobody_hears
from tests.google.fakes import Fakes
from tests.google.front import storage_front


@pytest.fixture
async def cloud(fakes: Fakes) -> AsyncIterator[Cloud]:
    clock = Clock()
    async with storage_front("p", anonymous=False, now=clock, publish=nobody_hears) as front:
        settings = Settings(storage_url=front.url, **fakes.settings)  # type: ignore[arg-type]
        identity = Identity(settings, clock)
        blobs = CloudBlobs(settings, identity, clock)
        yield Cloud(blobs, front, settings, clock)
        await blobs.aclose()
        await identity.aclose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def identity(fakes: Fakes, clock: Clock) -> AsyncIterator[Identity]:
    opened = Identity(Settings(**fakes.settings), clock)  # type: ignore[arg-type]
    yield opened
    await opened.aclose()
