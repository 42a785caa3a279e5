"""The Feed port on one Firestore Listen stream (common/google/listen.py); twin of local/engine/feed.py.

A target per watched job or owner, shared by all who watch it here. The owner's needs the index (owner, changed_at).
The stream opens with the first watcher and closes after the last: an instance of Cloud Run has CPU only while it
serves requests. What piled up meanwhile is sorted out by the watchers, who take nothing older than they gave.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime

from common.documents import check_key, check_owner
from common.errors import Unavailable
from common.google.connection import Connection
from common.google.credentials import Loader
from common.google.documents import plain
from common.google.listen import Stream
from common.google.targets import JobTarget, OwnerTarget, Target, read
from common.job import Job
from common.watcher import Watcher

ready_s_max = 5.0
"""How long a watch may take to begin."""
_nowhere = "feed/clock"
"""A document that is never there: asking for it tells the store's time."""


class FirestoreFeed:
    """Opens no connection before the first watch; heeds FIRESTORE_EMULATOR_HOST.

    A watch raises Unavailable if it cannot begin within 5 s. One that has begun outlasts broken connections; it
    raises Unavailable only when Firestore refuses to go on, or when the feed is closed.
    """

    def __init__(self, project: str, database: str, loader: Loader | None = None) -> None:
        self._project = project
        self._database = database
        # One for all streams, because it keeps the credentials, and the access token lies in them.
        self._loader = loader or Loader()
        self._stream: Stream | None = None
        self._open: set[Stream] = set()
        self._closed = False

    async def aclose(self) -> None:
        """Close the connection; watchers that are left, and new ones, get Unavailable. Safe to repeat."""
        self._closed = True
        await asyncio.gather(*(stream.aclose() for stream in self._open))

    @asynccontextmanager
    async def watch_job(self, job_id: str) -> AsyncIterator[AsyncIterator[Job]]:
        """See Feed.watch_job."""
        check_key(job_id)
        until = _deadline()
        async with self._shared() as stream:
            document = f"{stream.parent}/{Job.collection}/{job_id}"
            with _joined(stream, f"job {job_id}", lambda name: JobTarget(name, document)) as (target, watcher):
                async with _in_time(until):
                    await target.ready()
                    if len(target.watchers) > 1:
                        # What the others were told last may be older than what this caller has seen.
                        await _catch_up(stream, document, watcher)
                yield watcher

    @asynccontextmanager
    async def watch_owner(self, owner: str) -> AsyncIterator[AsyncIterator[Job]]:
        """See Feed.watch_owner."""
        check_owner(owner)
        until = _deadline()
        async with self._shared() as stream:
            async with _in_time(until):
                now = await stream.look(f"{stream.parent}/{_nowhere}")
            since = plain(now.read_time)

            def target_of(name: str) -> Target:
                return OwnerTarget(name, stream.parent, owner, since)

            with _joined(stream, f"owner {owner}", target_of, since) as (target, watcher):
                async with _in_time(until):
                    await target.ready()
                yield watcher

    @asynccontextmanager
    async def _shared(self) -> AsyncIterator[Stream]:
        """The stream of all who watch now, opened for the first and closed after the last."""
        if self._closed:
            raise Unavailable("the feed is closed")
        if self._stream is None or self._stream.failure is not None:
            connection = Connection(self._project, self._database, self._loader)
            self._stream = Stream(connection, closed=self._open.discard)
            self._open.add(self._stream)
        stream = self._stream
        stream.users += 1
        try:
            yield stream
        finally:
            stream.users -= 1
            if not stream.users:
                if self._stream is stream:
                    self._stream = None
                await stream.aclose()


@contextmanager
def _joined(
    stream: Stream, name: str, new: Callable[[str], Target], since: datetime | None = None
) -> Iterator[tuple[Target, Watcher]]:
    """A watcher on the target of that name, which is added for the first and removed after the last."""
    target = stream.find(name)
    if target is None:
        target = new(name)
        stream.add(target)
    try:
        with target.watchers.joined(since) as watcher:
            yield target, watcher
    finally:
        if not target.watchers:
            stream.remove(target)


async def _catch_up(stream: Stream, document: str, watcher: Watcher) -> None:
    """Give one watcher the present state, or the end if there is none."""
    answer = await stream.look(document)
    if "found" not in answer:
        watcher.end()
    elif (job := read(type(answer.found).pb(answer.found))) is not None:
        watcher.offer(job)


def _deadline() -> float:
    return asyncio.get_running_loop().time() + ready_s_max


@asynccontextmanager
async def _in_time(until: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError as exc:
        raise Unavailable(f"Firestore did not answer within {ready_s_max:.0f} s") from exc
