"""A server for a person: its banner, its signals, and one that lives inside another command. The apps are elsewhere."""

import asyncio
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from common import catalogue, styles
from common.job import Kind
from common.settings import Settings, SettingsError, load
from common.telemetry import configure
from local.engine.engine import DataFolderInUse
from local.photos import WrongUse
from local.run import CannotServe, EngineName, Running, serve
from local.server import Mischief


async def serve_until_signal(
    folder: Path, host: str, port: int, *, engine: EngineName, duplicate_rate: float, reorder_s: float
) -> None:
    """Serve until SIGINT or SIGTERM. Raises WrongUse, saying what to do, if it cannot start."""
    try:
        configure(load().log_level)
    except SettingsError as exc:
        raise WrongUse(str(exc)) from exc
    starting = asyncio.current_task()
    assert starting is not None
    is_ready = False

    def ended() -> None:
        # Once it answers, the web server hears the signal too and comes to its end by itself.
        if not is_ready:
            starting.cancel()

    def ready(running: Running) -> None:
        nonlocal is_ready
        is_ready = True
        _print_banner(running, folder)

    # uvicorn raises the signal once more when it is done: with a handler of ours in place that ends nothing early.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended)
    mischief = Mischief(duplicate_rate=duplicate_rate, reorder_s=reorder_s)
    with suppress(asyncio.CancelledError):
        await _explained(serve(folder, host=host, port=port, engine=engine, mischief=mischief, ready=ready))


@asynccontextmanager
async def server_within(folder: Path) -> AsyncIterator[Running]:
    """A server on a free loopback port for as long as the context is open. Raises WrongUse if it cannot start."""
    stop, settled = asyncio.Event(), asyncio.Event()
    answering: Running | None = None

    def ready(running: Running) -> None:
        nonlocal answering
        answering = running
        settled.set()

    serving = asyncio.create_task(_explained(serve(folder, port=0, ready=ready, stop=stop, signals=False)))
    serving.add_done_callback(lambda _: settled.set())
    try:
        await settled.wait()
        if answering is None:
            await serving
            raise WrongUse("the server ended before it began; its log says why")
        yield answering
    finally:
        stop.set()
        await serving


def price_of(settings: Settings) -> str:
    """The model that is set and what one portrait costs there, with the day its price was looked up."""
    listed = catalogue.load()
    size = styles.get(styles.DEFAULTS[Kind.PORTRAIT], Kind.PORTRAIT).default_size
    price = listed.model(settings.model).price_usd(size)
    return f"{settings.model}, ${price} a picture at {size} (prices of {listed.prices_as_of})"


async def _explained(serving: Coroutine[Any, Any, None]) -> None:
    try:
        await serving
    except (CannotServe, DataFolderInUse) as exc:
        raise WrongUse(str(exc)) from exc


def _where(running: Running) -> list[str]:
    """What a client command must be told to reach this server and no other."""
    usual = Settings.model_fields["public_url"].default
    server = [] if running.url == usual else [f"--server {running.url}"]
    return server if running.settings.local_owner is not None else [*server, "--token …"]


def _print_banner(running: Running, folder: Path) -> None:
    settings = running.settings
    callers = "must sign in: JWT_SECRET is set" if settings.local_owner is None else "only this machine, no sign-in"
    free = "drawn by a stand-in, free of charge; set GEMINI_API_KEY and Google's model draws"
    pictures = free if settings.stand_in else f"drawn by Google: {price_of(settings)}"
    command = "darkroom" if shutil.which("darkroom") else sys.argv[0]
    kept = str(folder.resolve())
    if running.engine == "google":
        kept = f"on Google's emulators, project {settings.google_cloud_project}; keys in {kept}"
    rows = {
        "docs": f"{running.url}/docs",
        "callers": callers,
        "pictures": pictures,
        "data": kept,
        "try": " ".join([command, "submit me.jpg --out .", *_where(running)]),
        "stop": "Ctrl-C",
    }
    console = Console(highlight=False)
    console.print(Text.assemble("Darkroom is running at ", (running.url, "bold")), soft_wrap=True)
    for name, value in rows.items():
        console.print(Text.assemble("  ", (f"{name:<9}", "dim"), value), soft_wrap=True)
