"""How a client of Google's is opened: by the first call, once for all that wait, in time; and closed for good."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Generic, TypeVar

from common.errors import DarkroomError, Unavailable
from common.google.calls import answered, call_s_max

T = TypeVar("T")
P = TypeVar("P")
C = TypeVar("C")


class Shared(Generic[T]):
    """Work that many wait for, each as long as it can; one task at a time does it, and goes on when nobody waits."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None

    async def result(self, within_s: float = call_s_max) -> T:
        """What comes of the work under way, or of work that begins now. Raises what it raises, and TimeoutError."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(_hear)
        async with asyncio.timeout(within_s):
            return await asyncio.shield(self._task)

    def cancel(self) -> None:
        """End the work under way; whoever waits for it is cancelled."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> T:
        return await self._work()


class Life:
    """Whether something may still be called; what fails because it was closed is Unavailable, however it fails."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.closed = False

    def check(self) -> None:
        """Raise Unavailable if it is closed."""
        if self.closed:
            raise Unavailable(f"{self._name} is closed")

    @contextmanager
    def held(self) -> Iterator[None]:
        """For a call, which closing may break. Raises Unavailable, also at once."""
        self.check()
        try:
            yield
        except DarkroomError:
            raise
        except (Exception, asyncio.CancelledError) as exc:
            # A channel that closes cancels its calls; whoever cancels our task is heard nonetheless.
            if not self.closed or _is_cancelled():
                raise
            raise Unavailable(f"{self._name} was closed") from exc


class Opening(Generic[P, C]):
    """A client that exists from the first call on. Each call has 5 s, and waits within them for the client.

    `prepare` may take its time and leaves nothing open. `make` does not wait, so that nothing is closed meanwhile, and
    runs in the event loop that is to have the client's connections.
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[[], Awaitable[P]],
        make: Callable[[P], C],
        close: Callable[[C], Awaitable[None]],
    ) -> None:
        self.life = Life(name)
        self._prepare = prepare
        self._make = make
        self._close = close
        self._opening = Shared(self._open)
        self._client: C | None = None

    async def client(self) -> C:
        """The client. Raises Unavailable if it is closed, or cannot be opened in time."""
        with self.life.held(), answered("open"):
            return await self._opening.result() if self._client is None else self._client

    @asynccontextmanager
    async def call(self, what: str) -> AsyncIterator[C]:
        """The client for one call. Raises Unavailable for whatever Google's clients raise (calls.answered)."""
        with self.life.held(), answered(what):
            async with asyncio.timeout(call_s_max):
                yield await self.client()

    async def aclose(self) -> None:
        """Close what is open, and break what is under way. Safe to repeat."""
        self.life.closed = True
        self._opening.cancel()
        client, self._client = self._client, None
        if client is not None:
            await self._close(client)

    async def _open(self) -> C:
        prepared = await self._prepare()
        self.life.check()
        self._client = self._make(prepared)
        return self._client


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _hear(task: "asyncio.Task[T]") -> None:
    """Take note of how it ended, which nobody may be there to do."""
    if not task.cancelled():
        task.exception()
