"""Every contract test runs once on each engine that tests/engines.py lists."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.ports import Engine
from tests.bench import Bench, Surroundings
from tests.engines import ENGINES


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(params=sorted(ENGINES))
async def bench(request: pytest.FixtureRequest, tmp_path: Path, shared_folder: Path) -> AsyncIterator[Bench]:
    started = request.getfixturevalue
    around = Surroundings(tmp_path, shared_folder, lambda: started("emulators"), lambda: started("fakes"))
    async with ENGINES[request.param](around) as opened:
        yield opened


@pytest.fixture
def engine(bench: Bench) -> Engine:
    return bench.engine
