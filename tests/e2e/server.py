"""A real server for tests that kill it: `python -m tests.e2e.server FOLDER PORT [POINT COUNT]`.

With POINT it kills itself with SIGKILL the COUNT-th time it gets there, where no test from outside could hit it.
Only the kill and one patience of the notifier differ from `darkroom serve`.
"""

import asyncio
import functools
import inspect
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import notifier.delivery
from common.telemetry import configure
from local.engine.blobs import FileBlobs
from local.engine.database import Database
from local.run import Running, serve
from processor.gemini import Gemini
from processor.results import Results

POINTS = MappingProxyType(
    {
        # Nothing of the transaction is on the disk, and nobody has heard of it.
        "before commit": (Database, "_run_batch", False),
        # All of it is on the disk, and nobody has heard of it.
        "after commit": (Database, "_run_batch", True),
        # An object's bytes are on the disk, but no row owns them.
        "object written": (FileBlobs, "finalize", False),
        # The call is in the ledger as sent, and not out yet.
        "before the call": (Gemini, "generate", False),
        # The picture is paid for and in memory only.
        "after the call": (Gemini, "generate", True),
        # The picture is stored, the job does not say so.
        "picture kept": (Results, "keep", True),
        # The webhook has been received, the delivery does not say so.
        "webhook sent": (notifier.delivery.Deliveries, "_post", True),
    }
)


def die_at(point: str, count: int) -> None:
    """Arrange the end of this process."""
    owner, name, afterwards = POINTS[point]
    original: Callable[..., Any] = getattr(owner, name)
    left = count

    def pass_by() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(original)
    def dying(*args: Any, **more: Any) -> Any:
        if not afterwards:
            pass_by()
        result = original(*args, **more)
        if inspect.isawaitable(result):
            return then_pass_by(result)
        if afterwards:
            pass_by()
        return result

    async def then_pass_by(result: Awaitable[Any]) -> Any:
        answer = await result
        if afterwards:
            pass_by()
        return answer

    setattr(owner, name, dying)


def ready(running: Running) -> None:
    sys.stdout.write(json.dumps({"url": running.url}) + "\n")
    sys.stdout.flush()


def main() -> None:
    folder, port, *death = sys.argv[1:]
    configure("INFO", people=False)
    # A delivery whose first message was lost waits 45 s for the sweep; that is longer than this test may take.
    assert notifier.delivery._grace_s > 0
    notifier.delivery._grace_s = 3
    if death:
        die_at(death[0], int(death[1]))
    asyncio.run(serve(Path(folder), port=int(port), ready=ready))


if __name__ == "__main__":
    main()
