"""A stand-in for the Gemini API at wire level, so that the real client can run without a key. It never asks Google.

`python -m local.gemini --port 0` prints one JSON line with its address once it answers. What it draws says that
it is a stand-in; so do the header `x-stand-in` and `modelVersion` of every answer. moods.py holds how it misbehaves,
wire.py the API's JSON, drawing.py the pictures.
"""

import argparse
import asyncio
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from pathlib import Path
from socket import SO_REUSEADDR, SOL_SOCKET, socket

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from common import catalogue
from common.errors import Rejected
from local import drawing
from local.moods import Mood, Moods, failure, spoiled
from local.wire import STAND_IN, answer, as_events, parse, wire_error

BODY_BYTES_MAX = 30 * 1024 * 1024


class StandIn:
    """One server's state: its mood, its counters, and how often each prompt was asked, so that "again" differs."""

    def __init__(self, *, delay_ms: int, canned: bytes | None) -> None:
        self.moods = Moods()
        self.calls = 0
        self.images = 0
        self._delay_s = delay_ms / 1000
        self._canned = None if canned is None else answer(canned, input_tokens=300)
        self._asked: Counter[bytes] = Counter()
        self._artists = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="artist")

    async def generate(self, request: Request) -> Response:
        """One generateContent or streamGenerateContent. Every arrival counts as a call, whatever becomes of it."""
        self.calls += 1
        name, _, method = request.path_params["call"].partition(":")
        if method not in {"generateContent", "streamGenerateContent"}:
            return wire_error(404, "NOT_FOUND", "there is no such method")
        mood = self.moods.next()
        if mood is Mood.RAW:
            return self.moods.raw()
        if mood in {Mood.HANG, Mood.RESET, Mood.TRUNCATED}:
            return await _vanish(request, mood)
        if (failed := failure(mood)) is not None:
            return failed
        try:
            body = await _body(request)
            catalogue.load().model(name)
            payload = await self._payload(body, mood)
        except ClientDisconnect:
            return Response(status_code=499)
        except Rejected as exc:
            return wire_error(404, "NOT_FOUND", exc.detail)
        except ValueError as exc:
            return wire_error(400, "INVALID_ARGUMENT", str(exc))
        if method == "streamGenerateContent":
            return Response(as_events(payload), media_type="text/event-stream", headers={"x-stand-in": STAND_IN})
        return Response(payload, media_type="application/json", headers={"x-stand-in": STAND_IN})

    async def change_mood(self, request: Request) -> Response:
        """PUT /standin/mood `{"mood": …, "count": n}`: for the next n calls, or for good without a count."""
        try:
            self.moods.change(await request.body())
        except ValidationError as exc:
            return JSONResponse({"errors": exc.errors(include_context=False, include_url=False)}, 400)
        return Response(status_code=204)

    async def stats(self, request: Request) -> Response:
        """GET /standin/stats: calls that arrived and pictures that were answered."""
        return JSONResponse({"calls": self.calls, "images": self.images})

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Hold the threads that draw for as long as the app runs."""
        try:
            yield
        finally:
            self._artists.shutdown(wait=False, cancel_futures=True)

    async def _payload(self, body: bytes, mood: Mood) -> bytes:
        if self._canned is not None and mood is Mood.OK:
            await asyncio.sleep(self._delay_s)
            self.images += 1
            return self._canned
        wanted = parse(body)
        tokens = len(wanted.prompt) // 4 + (258 if wanted.photo else 0)
        if (refused := spoiled(mood, tokens)) is not None:
            await asyncio.sleep(self._delay_s)
            return refused
        key = sha256(wanted.prompt.encode() + (wanted.photo or b"")).digest()
        nonce = self._asked[key] if wanted.seed is None else wanted.seed
        self._asked[key] += 1
        drawn = asyncio.get_running_loop().run_in_executor(self._artists, wanted.draw, nonce)
        image, _ = await asyncio.gather(drawn, asyncio.sleep(self._delay_s))
        self.images += 1
        return answer(image, input_tokens=tokens)


def create_app(*, delay_ms: int = 0, canned: bytes | None = None) -> Starlette:
    """The stand-in as an ASGI app for uvicorn. With `canned`, every answer is that JPEG and requests are not read."""
    stand_in = StandIn(delay_ms=delay_ms, canned=canned)
    vertex = "/{version}/projects/{project}/locations/{location}/publishers/google/models/{call}"
    return _App(
        routes=[
            Route("/{version}/models/{call}", stand_in.generate, methods=["POST"]),
            Route(vertex, stand_in.generate, methods=["POST"]),
            Route("/standin/mood", stand_in.change_mood, methods=["PUT"]),
            Route("/standin/stats", stand_in.stats, methods=["GET"]),
        ],
        lifespan=stand_in.lifespan,
    )


@contextmanager
def running(*, delay_ms: int = 0, canned: bytes | None = None) -> Iterator[str]:
    """A stand-in in a thread of this process, on a free port; yields its URL."""
    with _listening("127.0.0.1", 0) as listener:
        server = _Server(_config(create_app(delay_ms=delay_ms, canned=canned)))
        thread = threading.Thread(target=server.run, args=([listener],), name="gemini-stand-in")
        thread.start()
        try:
            if not server.ready.wait(10):
                raise RuntimeError("the stand-in did not start within 10 s")
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


def main(arguments: list[str] | None = None) -> None:
    """Serve until a signal, or until stdin ends where `--exit-with-parent` is given: no child outlives its server."""
    parser = argparse.ArgumentParser(prog="python -m local.gemini", description="A labelled stand-in for Gemini.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--delay-ms", type=int, default=800, help="the model's own time per picture")
    parser.add_argument("--canned", metavar="PATH|auto", help="answer this one JPEG without drawing, for benchmarks")
    parser.add_argument("--exit-with-parent", action="store_true", help="exit when stdin ends")
    options = parser.parse_args(arguments)
    canned = None
    if options.canned:
        canned = drawing.grainy() if options.canned == "auto" else Path(options.canned).read_bytes()

    with _listening(options.host, options.port) as listener:
        server = _Server(_config(create_app(delay_ms=options.delay_ms, canned=canned)), announce=_url(listener))
        if options.exit_with_parent:
            threading.Thread(target=_follow_parent, args=(server,), daemon=True).start()
        server.run([listener])


class _App(Starlette):
    """Starlette wraps `send`; uvicorn's own is a method of the cycle that holds the connection, which RESET needs."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["transport"] = getattr(getattr(send, "__self__", None), "transport", None)
        await super().__call__(scope, receive, send)


class _Server(uvicorn.Server):
    """Uvicorn that tells when it answers: by `ready` in this process, by one line on stdout to a parent."""

    def __init__(self, config: uvicorn.Config, *, announce: str | None = None) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._announce = announce

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self._announce:
            sys.stdout.write(json.dumps({"url": self._announce}) + "\n")
            sys.stdout.flush()
        self.ready.set()


def _config(app: Starlette) -> uvicorn.Config:
    # Idle connections live longer here than in the client's pool (15 s), as Google's do: otherwise a call may meet
    # one that is just being closed, which looks like a lost answer.
    return uvicorn.Config(
        app, log_level="warning", access_log=False, ws="none", timeout_keep_alive=120, timeout_graceful_shutdown=1
    )


def _listening(host: str, port: int) -> socket:
    listener = socket()
    listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def _url(listener: socket) -> str:
    host, port = listener.getsockname()
    return f"http://{host}:{port}"


def _follow_parent(server: uvicorn.Server) -> None:
    # os.read, because a thread that sits in sys.stdin's lock makes the interpreter's own exit fail.
    while os.read(0, 4096):
        pass
    server.should_exit = True


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise ValueError("Request payload size exceeds the limit")
    return bytes(body)


async def _vanish(request: Request, mood: Mood) -> Response:
    """Leave the client without an answer: wait until it goes away, or cut the connection."""
    await _body(request)
    transport = request.scope["transport"]
    if mood is not Mood.HANG and transport is not None:
        if mood is Mood.TRUNCATED:
            transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9000\r\n\r\n{")
            transport.close()
        else:
            transport.abort()
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return Response(status_code=499)


if __name__ == "__main__":
    main()
