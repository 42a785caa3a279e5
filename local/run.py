"""`darkroom serve`: settings, port, stand-in and web server put together. The apps are in local/server.py."""

import asyncio
import errno
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import uvicorn
from sse_starlette.sse import AppStatus
from starlette.types import ASGIApp

from common import catalogue
from common.loopback import LOOPBACK
from common.settings import Settings, SettingsError, load
from common.telemetry import logger
from local.server import Mischief, complete, serve_apps

log = logger(__name__)

EngineName = Literal["embedded", "google"]
LOCAL_OWNER = "local:me"
stand_in_start_s = 20.0
# For streams and uploads; calls to the model get 5 s more (local/server.py). Cloud Run gives 10 s in all.
shutdown_s = 3


class CannotServe(Exception):
    """The server cannot start as asked; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    url: str
    settings: Settings
    engine: EngineName


def local_settings(host: str, port: int, folder: Path) -> Settings:
    """Settings of a local server on that address.

    Raises CannotServe where strangers could use it unasked, or callers could not follow its links.
    """
    try:
        settings = load()
    except SettingsError as exc:
        raise CannotServe(str(exc)) from exc
    if host not in LOOPBACK:
        _check_exposed(host, settings)
        return complete(settings, folder)
    # Only who sits at this machine may have it call itself: a stranger's webhook could reach what listens here alone.
    update: dict[str, object] = {"webhook_loopback": True}
    if settings.jwt_secret is None:
        update["local_owner"] = LOCAL_OWNER
    if "public_url" not in settings.model_fields_set:
        update["public_url"] = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return complete(settings.model_copy(update=update), folder)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotServe if the port is taken or not ours to take."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio switches Nagle off (40 ms a small answer) only on sockets that say TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        if isinstance(exc, socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL:
            raise CannotServe(f"{host} is no address of this machine; choose another --host") from exc
        raise CannotServe(
            f"port {port} on {host} cannot be used ({exc.strerror}); stop what runs there, or choose another: "
            f"PORT={port + 1} make serve, or --port {port + 1}"
        ) from exc
    listener.listen(2048)
    return listener


async def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    engine: EngineName = "embedded",
    mischief: Mischief | None = None,
    ready: Callable[[Running], None] | None = None,
    stop: asyncio.Event | None = None,
    signals: bool = True,
) -> None:
    """Serve until SIGINT or SIGTERM, or until `stop` is set. Calls `ready` once requests are answered.

    Port 0 takes a free one. Without a key for Gemini the stand-in is started, and every job says so.
    The engine `google` works on Google's emulators (local/emulated.py) and keeps only its keys in `folder`.
    Raises CannotServe, or DataFolderInUse if another server works on `folder`.
    """
    listener = bind(host, port)
    port = listener.getsockname()[1]
    try:
        settings = local_settings(host, port, folder)
        _warn_of_retired(settings)
        async with model(settings) as settings, _apps(engine, settings, folder, mischief) as app:
            config = uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=shutdown_s,
                server_header=False,
            )  # fmt: skip
            server = _Server(
                config, partial(ready, Running(settings.api_url, settings, engine)) if ready else None, signals
            )
            running = asyncio.create_task(server.serve(sockets=[listener]))
            if stop is not None:
                stopped = asyncio.create_task(stop.wait())
                await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
                stopped.cancel()
                server.should_exit = True
            await running
    finally:
        listener.close()


def _apps(
    engine: EngineName, settings: Settings, folder: Path, mischief: Mischief | None
) -> AbstractAsyncContextManager[ASGIApp]:
    if engine == "embedded":
        return serve_apps(settings, folder, mischief=mischief)
    # Here, because the embedded engine needs nothing of Google's.
    from local.emulated import check_emulators, serve_on_emulators

    try:
        return serve_on_emulators(check_emulators(settings), folder)
    except SettingsError as exc:
        raise CannotServe(str(exc)) from exc


def _check_exposed(host: str, settings: Settings) -> None:
    """Raise CannotServe unless callers from elsewhere must sign in and can follow the links they are given."""
    if settings.jwt_secret is None:
        raise CannotServe(
            f"anybody who reaches {host} could use this server and spend your money: set JWT_SECRET (32 random bytes"
            " or more) so that callers must sign in, or keep to --host 127.0.0.1"
        )
    if settings.local_owner is not None:
        raise CannotServe(
            "LOCAL_OWNER means that nobody signs in, which is for this machine alone: unset LOCAL_OWNER, or do not"
            f" bind to {host}"
        )
    if "public_url" not in settings.model_fields_set:
        raise CannotServe(
            f"nobody could upload, because links would lead to {host}: set PUBLIC_URL to the address by which callers"
            " reach this server, e.g. PUBLIC_URL=https://photos.example.com"
        )


class _Guest(uvicorn.Server):
    """Uvicorn that leaves the process's signals, and the streams of other servers in it, alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Server(uvicorn.Server):
    """Uvicorn that says when it answers, and leaves the process's signals alone where it is only a guest."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None] | None, signals: bool) -> None:
        super().__init__(config)
        self._ready = ready
        self._signals = signals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._ready is not None:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # sse-starlette hears signals only. Its flag is the process's, so the next server here finds it lowered.
        AppStatus.should_exit = True
        try:
            await super().shutdown(sockets)
        finally:
            AppStatus.should_exit = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals() if self._signals else nullcontext():
            yield


@asynccontextmanager
async def on_loopback(app: ASGIApp, listener: socket.socket | None = None) -> AsyncIterator[str]:
    """A small app beside others in this process; yields its URL without a slash.

    It takes a free loopback port, or `listener`, which it closes.
    """
    listener = listener or bind("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    server = _Guest(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listener.close()


@asynccontextmanager
async def model(settings: Settings) -> AsyncIterator[Settings]:
    """Settings that lead to a model: the real one where a key or a Vertex project is set, else a stand-in of ours."""
    if settings.gemini_api_key is not None or settings.vertex_project is not None:
        yield settings
        return
    async with stand_in() as url:
        # A proxy in the environment is meant for the world outside; the model's client would use it for this too.
        os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
        update = {"stand_in": True, "gemini_api_key": "stand-in", "gemini_base_url": url}
        yield Settings.model_validate(settings.model_dump() | update)


@asynccontextmanager
async def stand_in(*arguments: str) -> AsyncIterator[str]:
    """The stand-in for Gemini as a process of its own; yields its URL. It ends with us, however we end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "local.gemini", "--port", "0", "--exit-with-parent", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parent.parent,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield await _announced_url(process.stdout)
    finally:
        process.stdin.close()
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _announced_url(stdout: asyncio.StreamReader) -> str:
    try:
        async with asyncio.timeout(stand_in_start_s):
            url: str = json.loads(await stdout.readline())["url"]
    except (TimeoutError, ValueError) as exc:
        raise CannotServe("the stand-in for Gemini did not start; `python -m local.gemini` shows why") from exc
    return url


def _warn_of_retired(settings: Settings) -> None:
    warning = catalogue.load().model(settings.model).warning(datetime.now(UTC).date())
    if warning:
        log.warning("model.retired", extra={"model": settings.model, "detail": warning})
