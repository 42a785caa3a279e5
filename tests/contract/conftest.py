"""Every contract test runs once on each engine that tests/engines.py lists."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.ports import Engine
from tests.engines import ENGINES, Bench


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(params=sorted(ENGINES))
async def bench(request: pytest.FixtureRequest, tmp_path: Path, shared_folder: Path) -> AsyncIterator[Bench]:
    async with ENGINES[request.param](tmp_path, shared_folder) as opened:
        yield opened


@pytest.fixture
def engine(bench: Bench) -> Engine:
    return bench.engine
