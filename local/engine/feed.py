"""The Feed port in one process: watchers see the newest of what the store committed; twin of common/google/feed.py."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from common.job import Job
from common.ports import Store
from common.records import Record
from common.watcher import Watcher, Watchers


class LocalFeed:
    """Hears every commit through `notify`. A watcher that is slow misses states, never the last one."""

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store
        self._watchers: dict[str, Watchers] = defaultdict(Watchers)

    def notify(self, change: Record | tuple[type[Record], str]) -> None:
        """A record was committed, or deleted as `(type, key)`."""
        if isinstance(change, tuple):
            kind, key = change
            if kind is Job and (watchers := self._watchers.get(f"job {key}")):
                watchers.end()
        elif isinstance(change, Job):
            for name in (f"job {change.id}", f"owner {change.owner}"):
                if watchers := self._watchers.get(name):
                    watchers.offer(change)

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

    @contextmanager
    def _watch(self, name: str) -> Iterator[Watcher]:
        try:
            with self._watchers[name].joined() as watcher:
                yield watcher
        finally:
            if not self._watchers[name]:
                del self._watchers[name]
