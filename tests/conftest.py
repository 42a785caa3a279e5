"""What holds for every test: no way to Google from the environment, and one event loop, asyncio's."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Remove whatever could lead a client to a real project, before any module is imported and could read it.

    By prefix, because the SDKs keep adding names. Emulator addresses (`*_EMULATOR_HOST`) stay.
    """
    for name in list(os.environ):
        if name.startswith(("GCLOUD_", "GEMINI_", "GOOGLE_")):
            del os.environ[name]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
