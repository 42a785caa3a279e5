"""The embedded engine's one file: transactions shared but not mixed, reopening, and a clock that is set back."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from common.errors import Conflict, Rejected, Unavailable
from common.ports import Create, Engine, Stored, Update
from common.settings import Settings
from local.engine.database import Database, from_micros, next_version, to_micros
from local.engine.engine import DataFolderInUse, open_database, open_engine
from tests.bench import Clock
from tests.contract.samples import Note

Connection = sqlite3.Connection


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "test.sqlite3")
    await opened.write(lambda connection: connection.execute("CREATE TABLE words (word TEXT UNIQUE)").rowcount)
    yield opened
    await opened.aclose()


def add(word: str) -> Callable[[Connection], int]:
    return lambda connection: connection.execute("INSERT INTO words VALUES (?)", (word,)).rowcount


def add_then_raise(word: str, error: BaseException) -> Callable[[Connection], int]:
    def work(connection: Connection) -> int:
        connection.execute("INSERT INTO words VALUES (?)", (word,))
        raise error

    return work


async def words(database: Database) -> list[str]:
    rows = await database.read(lambda connection: connection.execute("SELECT word FROM words").fetchall())
    return sorted(row[0] for row in rows)


@pytest.mark.parametrize("error", [Conflict("x"), Rejected("internal"), ValueError("x"), TypeError("x"), KeyError("x")])
async def test_work_that_raises_is_rolled_back_alone(database: Database, error: Exception) -> None:
    works = [add("a"), add_then_raise("b", error), add("c")]
    async with asyncio.timeout(10):
        ended = await asyncio.gather(*map(database.write, works), return_exceptions=True)
    assert ended == [1, error, 1]
    assert await words(database) == ["a", "c"]
    assert await database.write(add("d")) == 1


async def test_works_that_wait_together_share_a_transaction(database: Database) -> None:
    commits: list[str] = []
    await database.write(lambda connection: connection.set_trace_callback(commits.append))
    await asyncio.gather(*(database.write(add(f"{n}")) for n in range(50)))
    await database.write(lambda connection: connection.set_trace_callback(None))
    assert 1 <= commits.count("COMMIT") <= 3
    assert len(await words(database)) == 50


async def test_writer_sees_its_own_write_at_once(database: Database) -> None:
    for n in range(20):
        await database.write(add(f"{n}"))
        assert len(await words(database)) == n + 1


async def test_writes_are_done_in_the_order_they_were_asked_for(database: Database) -> None:
    order: list[int] = []

    def note(n: int) -> Callable[[Connection], None]:
        return lambda _: order.append(n)

    await asyncio.gather(*(database.write(note(n)) for n in range(30)))
    assert order == list(range(30))


async def test_write_of_a_caller_who_was_cancelled_is_done_whole_and_told(database: Database) -> None:
    told: list[int] = []
    writing = asyncio.create_task(database.write(add("a"), then=told.append))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait([writing])
    await database.write(add("b"))
    assert await words(database) == ["a", "b"]
    assert told == [1]


async def test_failure_to_tell_is_the_callers_and_nobody_elses(database: Database) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("deaf")

    async with asyncio.timeout(10):
        ended = await asyncio.gather(
            database.write(add("a"), then=fail), database.write(add("b")), return_exceptions=True
        )
    assert isinstance(ended[0], RuntimeError)
    assert ended[1] == 1
    assert await words(database) == ["a", "b"]


async def test_what_was_answered_survives_reopening(tmp_path: Path) -> None:
    first = Database(tmp_path / "x.sqlite3")
    version = await first.write(next_version)
    await first.aclose()
    second = Database(tmp_path / "x.sqlite3")
    assert await second.write(next_version) > version
    await second.aclose()


async def test_closing_finishes_what_waits(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite3")
    await database.write(lambda connection: connection.execute("CREATE TABLE words (word TEXT)").rowcount)
    writing = asyncio.create_task(database.write(add("last")))
    await asyncio.sleep(0)
    await database.aclose()
    assert await writing == 1


async def test_closed_database_is_unavailable(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite3")
    await database.write(next_version)
    await database.aclose()
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await database.write(next_version)
        with pytest.raises(Unavailable):
            await database.read(next_version)


async def test_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite3").write_bytes(b"not a database at all" * 100)
    database = Database(tmp_path / "x.sqlite3")
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await database.write(next_version)
        with pytest.raises(Unavailable):
            await database.read(lambda connection: connection.execute("SELECT 1").fetchone())
    await database.aclose()


async def test_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    database = Database(tmp_path / "file" / "x.sqlite3")
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await database.write(next_version)
    await database.aclose()


async def test_full_disk_is_unavailable_until_there_is_room_again(database: Database) -> None:
    def limit(pages: int) -> Callable[[Connection], int]:
        return lambda connection: int(connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0])

    await database.write(add("before"))
    await database.write(limit(1))
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await database.write(add("x" * 1_000_000))
    await database.write(limit(1_000_000))
    await database.write(add("after"))
    assert await words(database) == ["after", "before"]


async def test_second_process_can_read_and_write_beside_the_first(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    await database.write(lambda connection: connection.execute("CREATE TABLE words (word TEXT)").rowcount)
    await database.write(add("first"))
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from local.engine.engine import open_database\n"
        "async def main():\n"
        "    database = open_database(Path(sys.argv[1]))\n"
        "    rows = await database.read(lambda c: c.execute('SELECT word FROM words').fetchall())\n"
        "    await database.write(lambda c: c.execute('INSERT INTO words VALUES (?)', ('second',)).rowcount)\n"
        "    await database.aclose()\n"
        "    sys.stdout.write(repr(rows))\n"
        "asyncio.run(main())\n"
    )
    beside = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    writing = asyncio.gather(*(database.write(add(f"{n}")) for n in range(200)))
    out, _ = await beside.communicate()
    await writing
    assert beside.returncode == 0
    assert "first" in out.decode()
    assert "second" in await words(database)
    await database.aclose()


async def test_reader_is_not_held_up_by_a_transaction_of_another_process(database: Database, tmp_path: Path) -> None:
    await database.write(add("a"))
    other = sqlite3.connect(tmp_path / "test.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO words VALUES ('uncommitted')")
    assert await words(database) == ["a"]
    other.execute("ROLLBACK")
    other.close()


async def test_one_process_at_a_time_may_serve_a_folder(tmp_path: Path) -> None:
    first = await open_engine(tmp_path, Settings())
    with pytest.raises(DataFolderInUse):
        await open_engine(tmp_path, Settings())
    await first.engine.aclose()
    second = await open_engine(tmp_path, Settings())
    await second.engine.aclose()


async def test_files_that_no_object_owns_are_collected_when_the_folder_is_opened(tmp_path: Path) -> None:
    first = await open_engine(tmp_path, Settings())
    await first.engine.blobs.put("results", "kept", b"photo", content_type="image/jpeg", metadata={})
    await first.engine.aclose()
    (tmp_path / "objects" / "half").write_bytes(b"half a photo")
    second = await open_engine(tmp_path, Settings())
    assert await second.engine.blobs.read("results", "kept") == b"photo"
    assert len(list((tmp_path / "objects").iterdir())) == 1
    await second.engine.aclose()


async def save(engine: Engine, note: Note, etag: str | None = None) -> Stored[Note]:
    change = Create(note) if etag is None else Update(note, etag)
    (stored,) = await engine.store.commit([change], save_id=engine.new_id())
    return cast(Stored[Note], stored)


async def test_time_of_changes_never_falls_though_the_clock_is_set_back(tmp_path: Path) -> None:
    clock = Clock()
    opened = await open_engine(tmp_path, Settings(), now=clock)
    first = await save(opened.engine, Note(id="first"))
    clock.advance(-600)
    second = await save(opened.engine, Note(id="second"))
    await opened.engine.aclose()
    clock.advance(-600)
    opened = await open_engine(tmp_path, Settings(), now=clock)
    third = await save(opened.engine, Note(id="third"))
    seen = [cast(datetime, stored.record.changed_at) for stored in (first, second, third)]
    assert seen == sorted(seen)
    found = await opened.engine.store.changed(Note, owner=Note(id="x").owner, since=seen[0], limit=10)
    assert {stored.record.id for stored in found} == {"first", "second", "third"}
    await opened.engine.aclose()


@pytest.mark.parametrize(
    "moment",
    [datetime(1970, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC), datetime(1901, 2, 3, 4, 5, 6, 7, UTC)],
)
def test_microseconds_and_back(moment: datetime) -> None:
    assert from_micros(to_micros(moment)) == moment
    assert to_micros(moment - timedelta(microseconds=1)) == to_micros(moment) - 1
