"""What holds for every test: no way to Google from the environment, one event loop, and emulators once per run."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.google.emulators import Emulators, NoEmulators, emulators_running, must_be_there
from tests.google.fakes import Fakes, fakes_running


def pytest_configure(config: pytest.Config) -> None:
    """Remove whatever could lead a client to a real project, before any module is imported and could read it.

    By prefix, because the SDKs keep adding names. Emulator addresses (`*_EMULATOR_HOST`) too: tests start their own.
    """
    for name in list(os.environ):
        if name.startswith(("GCE_METADATA_", "GCLOUD_", "GEMINI_", "GOOGLE_")) or name.endswith("_EMULATOR_HOST"):
            del os.environ[name]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def emulators(fakes: Fakes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulators]:
    """Google's emulators, started with the first test that needs them; Google's clients find them by themselves."""
    with ExitStack() as stack:
        try:
            started = stack.enter_context(emulators_running(tmp_path_factory.mktemp("emulators")))
        except NoEmulators as exc:
            if must_be_there():
                pytest.fail(str(exc))
            pytest.skip(str(exc))
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in started.environment.items():
            environment.setenv(name, value)
        yield started


@pytest.fixture(scope="session")
def fakes() -> Iterator[Fakes]:
    """What no emulator plays: the metadata server, IAM Credentials and the pages with keys, which are this run's."""
    with fakes_running() as started, pytest.MonkeyPatch.context() as environment:
        started.lead(environment)
        yield started
