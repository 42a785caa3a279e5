"""One stand-in for Gemini a run, with a fixed picture, and a fresh world a test."""

from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from local import gemini as stand_in
from tests.world import World, open_world


@pytest.fixture(scope="session")
def stand_in_url() -> Iterator[str]:
    encoded = BytesIO()
    Image.effect_noise((512, 512), 60).convert("RGB").save(encoded, "JPEG")
    with stand_in.running(canned=encoded.getvalue()) as url:
        yield url


@pytest.fixture
async def world(tmp_path: Path, stand_in_url: str) -> AsyncIterator[World]:
    async with open_world(tmp_path, stand_in_url) as opened:
        yield opened
        opened.mood("ok")
