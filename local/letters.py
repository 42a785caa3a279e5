"""`darkroom deadletters`: what the embedded bus gave up, in a data folder that a server may be using. No HTTP."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.clock import utc_now
from local.engine.bus import DeadLetter, SqliteBus
from local.engine.engine import open_database
from local.photos import WrongUse
from local.progress import printable

page = 100


async def list_letters(folder: Path, *, as_json: bool) -> None:
    """Print them, the newest first. Raises WrongUse if no server ever used the folder."""
    async with _bus(folder) as bus:
        letters = await bus.dead_letters(limit=page)
    console = Console(highlight=False)
    if as_json:
        for letter in letters:
            console.out(json.dumps(_fields(letter)), highlight=False)
    elif not letters:
        console.print("No dead letters: nothing was given up.")
    else:
        console.print(_table(letters))
        if len(letters) == page:
            console.print(f"The newest {page}; there may be more.")
        console.print("Queue one again: darkroom deadletters replay ID")


async def replay_letters(folder: Path, letter: int | None) -> None:
    """Queue that one, or all. Raises NotFound, WrongUse. A running server takes them up within a second."""
    replayed = 0
    async with _bus(folder) as bus:
        if letter is not None:
            await bus.replay(letter)
            replayed = 1
        else:
            while letters := await bus.dead_letters(limit=page):
                for found in letters:
                    await bus.replay(found.id)
                replayed += len(letters)
    message = "message is" if replayed == 1 else "messages are"
    Console(highlight=False).print(f"{replayed} {message} queued again; a running server tries within a second.")


@asynccontextmanager
async def _bus(folder: Path) -> AsyncIterator[SqliteBus]:
    # To open a database is to make it; a misspelt folder must not become an empty one.
    if not (folder / "darkroom.sqlite3").is_file():
        raise WrongUse(f"no server has kept data in {folder}: choose its folder with --data-dir")
    database = open_database(folder)
    try:
        yield SqliteBus(database, utc_now, Random(), reorder_s=0)
    finally:
        await database.aclose()


def _fields(letter: DeadLetter) -> dict[str, object]:
    return {
        "id": letter.id,
        "topic": letter.topic,
        "about": _about(letter),
        "attempts": letter.attempts,
        "dead_at": letter.dead_at.isoformat(),
        "last_error": letter.last_error,
        "data": letter.data.decode(errors="replace"),
    }


def _about(letter: DeadLetter) -> str:
    """The job, delivery or object the message names."""
    try:
        fact = json.loads(letter.data)
    except ValueError:
        return "unreadable"
    return str(next((fact[name] for name in ("job_id", "delivery_id", "name") if name in fact), "nothing known"))


def _table(letters: tuple[DeadLetter, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("ID", justify="right")
    table.add_column("given up", no_wrap=True)
    table.add_column("topic", no_wrap=True)
    table.add_column("tries", justify="right")
    table.add_column("about", overflow="fold", max_width=36)
    table.add_column("last error", overflow="ellipsis", no_wrap=True)
    for letter in letters:
        moment = f"{letter.dead_at.astimezone():%m-%d %H:%M}"
        cells = (moment, letter.topic, str(letter.attempts), _about(letter), letter.last_error)
        table.add_row(str(letter.id), *(Text(printable(cell)) for cell in cells))
    return table
