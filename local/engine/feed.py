"""The Feed port in one process: watchers see the newest of what the store committed; twin of common/google/feed.py."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from common.job import Job
from common.ports import Store
from common.records import Record


class LocalFeed:
    """Hears every commit through `notify`. A watcher that is slow misses states, never the last one."""

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store
        self._watchers: dict[str, set[_Watcher]] = defaultdict(set)

    def notify(self, change: Record | tuple[type[Record], str]) -> None:
        """A record was committed, or deleted as `(type, key)`."""
        if isinstance(change, tuple):
            kind, key = change
            if kind is Job:
                for watcher in self._watchers.get(f"job {key}", ()):
                    watcher.end()
        elif isinstance(change, Job):
            for name in (f"job {change.id}", f"owner {change.owner}"):
                for watcher in self._watchers.get(name, ()):
                    watcher.offer(change)

    @asynccontextmanager
    async def watch_job(self, job_id: str) -> AsyncIterator[AsyncIterator[Job]]:
        """See Feed.watch_job."""
        with self._watch(f"job {job_id}") as watcher:
            stored = await self._store().get(Job, job_id)
            if stored is None:
                watcher.end()
            else:
                watcher.offer(stored.record)
            yield watcher

    @asynccontextmanager
    async def watch_owner(self, owner: str) -> AsyncIterator[AsyncIterator[Job]]:
        """See Feed.watch_owner."""
        with self._watch(f"owner {owner}") as watcher:
            yield watcher

    def _watch(self, name: str) -> "_Registration":
        return _Registration(self._watchers, name)


class _Registration:
    def __init__(self, watchers: dict[str, set["_Watcher"]], name: str) -> None:
        self._watchers, self._name, self._watcher = watchers, name, _Watcher()

    def __enter__(self) -> "_Watcher":
        self._watchers[self._name].add(self._watcher)
        return self._watcher

    def __exit__(self, *_: object) -> None:
        self._watchers[self._name].discard(self._watcher)
        if not self._watchers[self._name]:
            del self._watchers[self._name]


class _Watcher:
    """An iterator over the newest unseen state of each job; states older than one it gave are dropped."""

    def __init__(self) -> None:
        self._fresh: dict[str, Job] = {}
        self._given: dict[str, int] = {}
        self._ended = False
        self._something = asyncio.Event()

    def offer(self, job: Job) -> None:
        newest = self._fresh.get(job.id)
        if job.revision > max(self._given.get(job.id, 0), newest.revision if newest else 0):
            self._fresh[job.id] = job
            self._something.set()

    def end(self) -> None:
        self._ended = True
        self._something.set()

    def __aiter__(self) -> AsyncIterator[Job]:
        return self

    async def __anext__(self) -> Job:
        while not self._fresh:
            if self._ended:
                raise StopAsyncIteration
            self._something.clear()
            await self._something.wait()
        job = self._fresh.pop(next(iter(self._fresh)))
        self._given[job.id] = job.revision
        return job
