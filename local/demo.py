"""`darkroom demo`: one photo through the whole service, and what became of it, told from what is found afterwards."""

import asyncio
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from rich.console import Console
from rich.text import Text

from common.clock import utc_now
from common.job import Status
from common.settings import Settings, SettingsError, load
from common.telemetry import configure
from common.v4 import HmacKey
from common.views import JobView
from local import photos, timeline
from local.client import Client
from local.engine.blobs import FileBlobs
from local.engine.bus import SqliteBus
from local.engine.engine import open_database
from local.photos import Facts, WrongUse
from local.progress import Board, ending, printable
from local.receiver import Receiver, receiving
from local.run import Running
from local.serving import price_of, server_within
from local.timeline import Seen

SAMPLE = Path(__file__).with_name("sample") / "portrait.jpg"
webhook_s_max = 20.0

_GOOGLE = ("GCLOUD_", "GEMINI_", "GOOGLE_", "VERTEX_")
_CHOICE_OF_MODEL = frozenset({"model", "gemini_api_key", "gemini_base_url", "vertex_project", "vertex_location"})


async def run_demo(photo: Path | None, *, real: bool, data_dir: Path) -> bool:
    """Run it and explain it; answers whether the job completed and its webhook came.

    Its server has a data folder of its own within `data_dir`, removed at the end: so it never meets another server's
    lock, nor works on jobs that another server left. The pictures are copied to `data_dir/demo`.
    """
    photo = photo or SAMPLE
    content_type = photos.content_type_of(photo)
    _prepare_environment(real=real)
    configure("WARNING", people=True)
    console = Console(highlight=False)
    console.print("Darkroom demo: one photo through the whole service, on this machine.")
    gallery = data_dir / "demo"
    with _folder_in(data_dir) as folder:
        async with server_within(folder) as running, receiving() as receiver, Client(running.url) as client:
            _introduce(console, running, photo)
            job, seen = await _walk(client, receiver, photo, content_type)
            if job.status is not Status.COMPLETED:
                Console(stderr=True).print(Text(f"darkroom: {printable(ending(job))}"), soft_wrap=True)
                return False
            taken = photos.look(photo)
            places = await _collect(client, job, folder, gallery)
    console.print(timeline.drawn(timeline.steps(job, seen)))
    _explain(console, job, seen, taken, places, is_turned=photos.is_turned_right(photo, places["input"]))
    if seen.notified_at is None:
        console.print(f"No webhook with a right signature came within {webhook_s_max:.0f} s: that is a bug of ours.")
    return seen.notified_at is not None


def _prepare_environment(*, real: bool) -> None:
    """Leave nothing in the environment that could change the demo or, unless it is `real`, lead to Google.

    Raises WrongUse for a real one that has no way to Google.
    """
    kept = _CHOICE_OF_MODEL if real else frozenset()
    for name in list(os.environ):
        is_setting = name.lower() in Settings.model_fields and name.lower() not in kept
        if is_setting or (not real and name.upper().startswith(_GOOGLE)):
            del os.environ[name]
    try:
        settings = load()
    except SettingsError as exc:
        raise WrongUse(str(exc)) from exc
    if real and settings.gemini_api_key is None and settings.vertex_project is None:
        raise WrongUse("Google wants a key: set GEMINI_API_KEY, or leave out --real (REAL=1) for the free stand-in")


@contextmanager
def _folder_in(data_dir: Path) -> Iterator[Path]:
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="demo-", dir=data_dir) as folder:
        yield Path(folder)


def _introduce(console: Console, running: Running, photo: Path) -> None:
    settings = running.settings
    draws = "a stand-in, not Google: free of charge" if settings.stand_in else f"Google's {price_of(settings)}"
    for name, value in {"server": running.url, "photo": _near(photo), "model": draws}.items():
        console.print(Text.assemble("  ", (f"{name:<8}", "dim"), printable(value)), soft_wrap=True)
    console.print()


async def _walk(client: Client, receiver: Receiver, photo: Path, content_type: str) -> tuple[JobView, Seen]:
    """Order, upload, follow, and wait to be told; everything through the public API."""
    receiver.secret = await client.webhook_secret()
    with Board() as board:
        line = board.line(photo.name, total_bytes=photos.size_of(photo))
        asked_at = datetime.now(UTC)
        webhook = {"url": receiver.url}
        job = await client.create({"style": "corporate", "content_type": content_type, "webhook": webhook})
        await client.upload(job, photo, line.sent)
        async for state in client.watch(job):
            job = state
            line.state(job)
        told_at = datetime.now(UTC)
        notice = await receiver.wait(webhook_s_max)
        line.ends()
    return job, Seen(asked_at, told_at, None if notice is None else notice.at)


async def _collect(client: Client, job: JobView, folder: Path, gallery: Path) -> dict[str, Path]:
    """Copy input, result and thumbnail to the gallery, in place of an earlier demo's; answers where each lies."""
    assert job.input is not None
    pictures = {
        "input": await _stored(folder, Settings.model_fields["inputs_bucket"].default, job.input.name),
        "result": await client.picture(job, job.images[0]),
        "thumbnail": await client.fetch(str(job.images[0].thumbnail_url)),
    }
    return await asyncio.to_thread(_hang, pictures, gallery, job.id)


async def _stored(folder: Path, bucket: str, name: str) -> bytes:
    """An object no URL leads to: what the model is given is shown to nobody but the model."""
    database = open_database(folder)
    try:
        bus = SqliteBus(database, utc_now, Random(), reorder_s=0)
        key = HmacKey("unused", b"")
        blobs = FileBlobs(folder / "objects", database, bus, url="", announced_bucket="", key=key, now=utc_now)
        return await blobs.read(bucket, name)
    finally:
        await database.aclose()


def _hang(pictures: Mapping[str, bytes], gallery: Path, job_id: str) -> dict[str, Path]:
    places = {}
    for name, picture in pictures.items():
        for old in gallery.glob(f"{name}.*"):
            old.unlink()
        places[name] = photos.save(picture, photos.sniff(picture), gallery, name, job_id)
    return places


def _explain(
    console: Console, job: JobView, seen: Seen, taken: Facts, places: Mapping[str, Path], *, is_turned: bool
) -> None:
    model_ms = job.timings.model_ms or 0
    total_ms = max(step.end_ms for step in timeline.steps(job, seen))
    own = f"the model {model_ms:,} ms, Darkroom {total_ms - model_ms:,.0f} ms"
    cost = "nothing" if job.stand_in else f"${job.cost.settled_usd}"
    console.print(f"\n  {total_ms:,.0f} ms in all: {own}. It cost {cost}.\n")
    given = str(photos.look(places["input"]))
    rows = {
        "your photo": str(taken),
        "the model got": given if is_turned else f"{given}, NOT turned as the camera was held",
        "it drew": str(photos.look(places["result"])),
        "thumbnail": str(photos.look(places["thumbnail"])),
    }
    for name, value in rows.items():
        console.print(Text.assemble("  ", (f"{name:<14}", "dim"), value), soft_wrap=True)
    console.print()
    for name, place in places.items():
        console.print(Text.assemble("  ", (f"{name:<14}", "dim"), (_near(place), "bold")), soft_wrap=True)
    if job.stand_in:
        console.print("\nA stand-in drew this, not Gemini. For a real one, which costs money:")
        console.print("  GEMINI_API_KEY=… make demo REAL=1")


def _near(path: Path) -> str:
    """The path as a person here would type it."""
    absolute = path.resolve()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
