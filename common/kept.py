"""Answers that cost a call to somebody else, kept for a while and asked for once; what they say is their maker's."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Up to `entries_max` answers by name, each given again for `keep_s` seconds; the longest unused makes room.

    Who asks while an answer is being made waits for that one and shares its failure. Failures are not kept, and
    nothing is logged: answers may be secrets.
    """

    def __init__(self, now: Callable[[], datetime], *, keep_s: float, entries_max: int) -> None:
        self._now = now
        self._keep = timedelta(seconds=keep_s)
        self._entries_max = entries_max
        self._kept: OrderedDict[str, tuple[T, datetime]] = OrderedDict()
        self._making: dict[str, _Making[T]] = {}

    async def get(self, name: str, make: Callable[[], Awaitable[T]]) -> T:
        """The answer under that name, made now if none is young enough. Raises what `make` does."""
        kept = self._kept.get(name)
        if kept is not None and self._now() < kept[1]:
            self._kept.move_to_end(name)
            return kept[0]
        making = self._making.get(name)
        if making is None:
            making = self._making[name] = _Making(asyncio.create_task(self._make(name, make)))
        making.waiting += 1
        try:
            # Who leaves early takes the answer from nobody.
            return await asyncio.shield(making.task)
        finally:
            making.waiting -= 1
            if not making.waiting:
                del self._making[name]
                making.task.cancel()

    async def _make(self, name: str, make: Callable[[], Awaitable[T]]) -> T:
        until = self._now() + self._keep
        answer = await make()
        self._kept[name] = answer, until
        self._kept.move_to_end(name)
        if len(self._kept) > self._entries_max:
            self._kept.popitem(last=False)
        return answer


@dataclass(slots=True)
class _Making(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0
