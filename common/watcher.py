"""Watchers of one thing and what each has still to see; the feeds of all engines hand states over through these."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime

from common.errors import Unavailable
from common.job import Job


class Watcher:
    """An iterator over the newest unseen state of each job; states older than one it gave are dropped.

    What was committed up to `since`, the store's time, is none of its business.
    """

    def __init__(self, since: datetime | None = None) -> None:
        self._since = since
        self._fresh: dict[str, Job] = {}
        self._given: dict[str, int] = {}
        self._ended = False
        self._failure: str | None = None
        self._something = asyncio.Event()

    def offer(self, job: Job, committed_at: datetime | None = None) -> None:
        """A state of a job, perhaps an old one. Without `committed_at` it counts as new."""
        if self._since is not None and committed_at is not None and committed_at <= self._since:
            return
        newest = self._fresh.get(job.id)
        if job.revision > max(self._given.get(job.id, 0), newest.revision if newest else 0):
            self._fresh[job.id] = job
            self._something.set()

    def end(self) -> None:
        """No state will follow; what is unseen is still given."""
        self._ended = True
        self._something.set()

    def fail(self, reason: str) -> None:
        """Raise Unavailable in whoever reads on, after what is unseen."""
        self._failure = reason
        self._something.set()

    def __aiter__(self) -> AsyncIterator[Job]:
        return self

    async def __anext__(self) -> Job:
        while not self._fresh:
            if self._ended:
                raise StopAsyncIteration
            if self._failure is not None:
                raise Unavailable(self._failure)
            self._something.clear()
            await self._something.wait()
        job = self._fresh.pop(next(iter(self._fresh)))
        self._given[job.id] = job.revision
        return job


class Watchers:
    """All who watch one thing."""

    def __init__(self) -> None:
        self._present: set[Watcher] = set()

    def __len__(self) -> int:
        return len(self._present)

    @contextmanager
    def joined(self, since: datetime | None = None) -> Iterator[Watcher]:
        """One more watcher, for as long as the context is open."""
        watcher = Watcher(since)
        self._present.add(watcher)
        try:
            yield watcher
        finally:
            self._present.discard(watcher)

    def offer(self, job: Job, committed_at: datetime | None = None) -> None:
        """See Watcher.offer."""
        for watcher in self._present:
            watcher.offer(job, committed_at)

    def end(self) -> None:
        """See Watcher.end."""
        for watcher in self._present:
            watcher.end()

    def fail(self, reason: str) -> None:
        """See Watcher.fail."""
        for watcher in self._present:
            watcher.fail(reason)
