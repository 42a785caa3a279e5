"""What contract tests need of an engine, as one Bench; the engines themselves are listed in tests/engines.py."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
from starlette.types import ASGIApp

from common.messages import Topic
from common.ports import Engine
from common.settings import Settings
from tests.google.emulators import Emulators
from tests.google.fakes import Fakes

ALLOWED_ORIGIN = "https://app.example.com"
PUSH_PATH = "/push"


class Bench(ABC):
    """An engine, and what a test needs around it: time, the way in for signed URLs, and the bus at work.

    `routes` says which app gets a topic's pushes, at PUSH_PATH. `backoff_s_max` is the longest the bus waits
    before it pushes again, `attempts_max` how often it pushes before it gives up.
    """

    engine: Engine
    settings: Settings
    http: httpx2.AsyncClient
    backoff_s_max: float
    attempts_max: int

    def __init__(self) -> None:
        self.routes: dict[Topic, ASGIApp] = {}

    @abstractmethod
    async def later(self, seconds: float) -> None:
        """Let so much time pass for signed URLs and for the bus's backoff; negative: whoever signed was ahead."""

    @abstractmethod
    async def deliver(self) -> None:
        """Let the bus push until nothing is due."""

    @abstractmethod
    async def dead_letters(self, topic: Topic) -> list[bytes]:
        """The data of the topic's messages that the bus gave up."""

    @abstractmethod
    async def reopen(self) -> None:
        """Close the engine, then open it on what it has kept."""


class Clock:
    """Time as tests tell it. Each reading is a millisecond after the last, as if something had been done between.

    It starts at the present, because third parties' libraries check signed tokens by the wall clock.
    """

    def __init__(self) -> None:
        self._now = datetime.now(UTC)

    def __call__(self) -> datetime:
        self._now += timedelta(milliseconds=1)
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an engine may use: a folder of this test's own, one shared by the run, emulators and fakes if it asks."""

    folder: Path
    shared_folder: Path
    emulators: Callable[[], Emulators]
    fakes: Callable[[], Fakes]


Opened = AbstractAsyncContextManager[Bench]
