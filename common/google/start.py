"""How a service opens its port before it is imported; nothing heavier than the standard library is imported here.

Python needs a quarter of a second for a service, and the port is open after half of that. Until then `/health/live`
is answered here and everything else waits, which costs a waiting request nothing (docs/benchmarks.md).
"""

import asyncio
import importlib
import json
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from common.version import VERSION

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_ALIVE = json.dumps({"status": "ok", "version": VERSION}, separators=(",", ":")).encode()


def behind_port(module: str) -> "Callable[[], BehindPort]":
    """The factory for `uvicorn --factory` of the service in `module`, whose `app()` makes it."""
    return lambda: BehindPort(lambda: importlib.import_module(module).app())


class BehindPort:
    """Builds an app in a thread, runs its lifespan, and passes requests on to it; answers `/health/live` meanwhile.

    An app that cannot be built ends the process, with code 1 and the text that says what to mend.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        # Made with the lifespan, because the factory may be called before there is an event loop.
        self._built: asyncio.Future[App] | None = None
        self._stop = asyncio.Event()
        self._failed = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request, or the life of the process."""
        if scope["type"] == "lifespan":
            await self._live_on(receive, send)
            return
        assert self._built is not None, "uvicorn runs the lifespan first; do not switch it off"
        if scope["type"] == "http" and scope["path"] == "/health/live" and not self._built.done():
            await _answer_alive(send)
        else:
            app = await asyncio.shield(self._built)
            await app(scope, receive, send)

    async def _live_on(self, receive: Receive, send: Send) -> None:
        await receive()
        self._built = asyncio.get_running_loop().create_future()
        life = asyncio.create_task(self._life(self._built))
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        except asyncio.CancelledError:
            # By our own exit, and uvicorn would say that this app knows no lifespan.
            if self._failed:
                return
            raise
        self._stop.set()
        await asyncio.wait([life])
        await send({"type": "lifespan.shutdown.complete"})

    async def _life(self, built: "asyncio.Future[App]") -> None:
        """The app's life, in one task from its beginning to its end."""
        try:
            app = await asyncio.to_thread(self._build)
            async with app.router.lifespan_context(app):
                built.set_result(app)
                await self._stop.wait()
        except (Exception, SystemExit) as exc:
            # Nobody awaits this task while no request comes, so what is wrong is said here.
            if isinstance(exc, SystemExit):
                sys.stderr.write(f"{exc}\n")
            else:
                traceback.print_exception(exc)
            if not built.done():
                built.cancel()
                self._failed = True
                # Out of a callback this ends the event loop. On a signal uvicorn would end in good order, and then by
                # that signal: with 143, as if somebody had asked for it. What the lifespan raises, it ignores.
                asyncio.get_running_loop().call_soon(sys.exit, 1)


async def _answer_alive(send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_ALIVE)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _ALIVE})
