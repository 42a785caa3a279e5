"""Proves the `darkroom` command against a server that `darkroom serve` started: what it prints, and its exit codes."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner, Result

import local.client
from common.job import Status
from common.messages import JobChanged, Topic
from common.views import JobView
from local.cli import app
from local.client import Client
from local.engine.bus import SqliteBus
from local.engine.database import to_micros
from local.engine.engine import open_database
from tests.google.emulators import Emulators
from tests.google.fakes import Fakes
from tests.google.front import storage_front

SAMPLE = Path(__file__).parents[2] / "local" / "sample" / "portrait.jpg"
SETTINGS = ("HOST", "PORT", "PUBLIC_URL", "JWT_SECRET", "DARKROOM_URL", "DARKROOM_TOKEN", "LOG_LEVEL", "VERTEX_PROJECT")
JWT_SECRET = "0123456789abcdef0123456789abcdef"


def serve(*arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.Popen(
        [sys.executable, "-m", "local.cli", "serve", *map(str, arguments)],
        env=kept | {"LOG_LEVEL": "ERROR"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refused(*arguments: str | Path, **variables: str) -> str:
    """The one line of a server that would not start."""
    stdout, stderr = serve(*arguments, **variables).communicate(timeout=20)
    assert stdout == ""
    assert stderr.startswith("darkroom: ")
    assert "Traceback" not in stderr
    (line,) = stderr.splitlines()
    return line


def started(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Darkroom is running at http://"), line + (process.communicate()[1])
    return line.split()[-1]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[str]:
    with serve("--port", "0", "--data-dir", data_dir) as process:
        url = started(process)
        yield url
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0


@pytest.fixture
def darkroom(server: str, monkeypatch: pytest.MonkeyPatch) -> "Command":
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DARKROOM_URL", server)
    return Command()


class Command:
    """Runs the command line in this process."""

    def __call__(self, *arguments: str | Path) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result


def test_a_photo_becomes_a_picture_named_after_it(darkroom: Command, tmp_path: Path) -> None:
    result = darkroom("submit", SAMPLE, "--style", "casual", "--out", tmp_path)
    assert result.exit_code == 0
    assert "portrait.jpg: completed in" in result.stdout
    assert "stand-in" in result.stdout
    assert (tmp_path / "portrait-1.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    assert [path.name for path in tmp_path.iterdir()] == ["portrait-1.jpg"]


def test_photos_of_one_name_do_not_overwrite_each_other(darkroom: Command, tmp_path: Path) -> None:
    mine = tmp_path / "portrait-1.jpg"
    mine.write_bytes(b"mine")
    result = darkroom("submit", SAMPLE, SAMPLE, "--out", tmp_path)
    assert result.exit_code == 0
    assert mine.read_bytes() == b"mine"
    assert len(list(tmp_path.glob("portrait-1-????????.jpg"))) == 2


def test_submit_without_wait_says_how_to_follow_and_watch_does(darkroom: Command) -> None:
    submitted = darkroom("submit", SAMPLE)
    assert submitted.exit_code == 0
    assert "follow it: darkroom watch " in submitted.stdout
    watched = darkroom("watch", submitted.stdout.split()[-1])
    assert watched.exit_code == 0
    assert "completed in" in watched.stdout
    assert watched.stdout.rstrip().endswith("/images/0")


def test_json_stands_alone_on_stdout(darkroom: Command, tmp_path: Path) -> None:
    result = darkroom("submit", SAMPLE, "--out", tmp_path, "--json")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    told = json.loads(line)
    assert told["photo"] == "portrait.jpg"
    assert told["job"]["status"] == "completed"
    assert told["files"] == [str(tmp_path / "portrait-1.jpg")]

    states = [json.loads(line) for line in darkroom("watch", told["job"]["id"], "--json").stdout.splitlines()]
    assert [state["done"] for state in states] == [True]


def test_words_become_pictures_named_after_them(darkroom: Command, tmp_path: Path) -> None:
    result = darkroom("imagine", "A red [fox] / ../snow", "-n", "2", "--aspect-ratio", "16:9", "--out", tmp_path)
    assert result.exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a-red-fox-snow-1.jpg", "a-red-fox-snow-2.jpg"}


def test_imagine_need_not_wait(darkroom: Command) -> None:
    result = darkroom("imagine", "a fox", "--no-wait", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["job"]["done"] is False


def test_a_photo_that_fails_ends_with_1_and_the_others_go_on(darkroom: Command, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(SAMPLE.read_bytes()[:5000])
    result = darkroom("submit", damaged, SAMPLE, "--wait")
    assert result.exit_code == 1
    assert "damaged.jpg: failed: " in result.stdout
    assert "(image_damaged)" in result.stdout
    assert "portrait.jpg: completed" in result.stdout


def test_a_file_too_large_is_refused_by_the_bucket_and_said_so(darkroom: Command, tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(11 * 1024 * 1024)
    result = darkroom("submit", large, "--wait", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["error"]["code"] == "upload_too_large"
    assert told["job"]["status"] == "cancelled"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("submit", SAMPLE, "--style", "nope"), "(unknown_style)"),
        (("submit", __file__), "is not a photo we read: choose a JPEG, PNG or WebP file"),
        (("submit", "/no/such/photo.jpg"), "does not exist"),
        (("submit", os.devnull), "is empty: choose"),
        (("imagine", ""), "(prompt_empty)"),
        (("imagine", "a fox", "-n", "5"), "--num-images"),
        (("watch", "../../v1"), "(not_found)"),
        (("watch", "0" * 32), "(not_found)"),
        (("submit", SAMPLE, "--server", "ftp://x"), "is no address of a server"),
        (("submit", SAMPLE, "--token", "a\nb"), "check --token"),
        (("deadletters", "list", "--data-dir", "/no/such"), "choose its folder with --data-dir"),
        (("deadletters", "replay"), "name one ID or --all"),
    ],
)
def test_wrong_use_ends_with_2_and_says_what_to_change(
    darkroom: Command, arguments: tuple[str | Path, ...], told: str
) -> None:
    result = darkroom(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert told in result.stderr


def test_no_server_ends_with_3_and_says_how_to_start_one(darkroom: Command) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = darkroom("imagine", "a fox", "--server", url)
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1] == f"darkroom: no server at {url}: run `make serve`"


def test_a_taken_port_and_a_folder_in_use_are_refused(server: str, data_dir: Path, tmp_path: Path) -> None:
    port = server.rsplit(":", 1)[1]
    assert f"port {port} on 127.0.0.1 cannot be used" in refused("--port", port, "--data-dir", tmp_path)
    assert f"port {port} " in refused("--data-dir", tmp_path, HOST="127.0.0.1", PORT=port)
    assert "choose --data-dir" in refused("--port", "0", "--data-dir", data_dir)


def test_a_foreign_address_needs_sign_in(tmp_path: Path, darkroom: Command) -> None:
    assert "set JWT_SECRET" in refused("--host", "0.0.0.0", "--port", "0", "--data-dir", tmp_path)  # noqa: S104
    with serve("--port", "0", "--data-dir", tmp_path, JWT_SECRET=JWT_SECRET) as process:
        result = darkroom("imagine", "a fox", "--server", started(process))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert result.exit_code == 2
    assert "Give a token with --token or DARKROOM_TOKEN. (unauthenticated)" in result.stderr


def test_a_wrong_configuration_is_told_whole(tmp_path: Path) -> None:
    _, stderr = serve("--port", "0", "--data-dir", tmp_path, LEASE_S="1", UPLOAD_WINDOW_S="x").communicate(timeout=20)
    assert stderr.startswith("darkroom: The configuration cannot be used:\n")
    assert "UPLOAD_WINDOW_S: " in stderr


def test_dead_letters_are_listed_and_replayed_beside_the_server(darkroom: Command, data_dir: Path) -> None:
    number = asyncio.run(bury(data_dir))
    (line,) = darkroom("deadletters", "list", "--data-dir", data_dir, "--json").stdout.splitlines()
    letter = json.loads(line)
    assert letter["id"] == number
    assert (letter["topic"], letter["about"], letter["last_error"]) == ("job-changed", "0" * 32, "503 \x1b[31mred")
    listed = darkroom("deadletters", "list", "--data-dir", data_dir)
    assert "job-changed" in listed.stdout
    assert "\x1b" not in listed.stdout

    replayed = darkroom("deadletters", "replay", str(number), "--data-dir", data_dir)
    assert replayed.stdout.startswith("1 message is queued again")
    again = darkroom("deadletters", "replay", str(number), "--data-dir", data_dir)
    assert again.exit_code == 2
    assert "there is no dead letter" in again.stderr
    asyncio.run(bury(data_dir))
    assert darkroom("deadletters", "replay", "--all", "--data-dir", data_dir).exit_code == 0
    assert "No dead letters" in darkroom("deadletters", "list", "--data-dir", data_dir).stdout


async def bury(folder: Path) -> int:
    """Put a dead letter into the folder in one transaction, so that no dispatcher meets it alive."""
    database = open_database(folder)
    now = datetime.now(UTC)
    bus = SqliteBus(database, lambda: now, Random(0), reorder_s=0)
    fact = JobChanged(job_id="0" * 32, event_id="e", status=Status.COMPLETED)
    dead = "UPDATE messages SET dead_at = ?, last_error = ? WHERE id = ?"
    try:
        number = await database.write(
            lambda db: (
                number := bus.insert(db, Topic.JOB_CHANGED, fact.encode(), {}),
                db.execute(dead, (to_micros(now), "503 \x1b[31mred", number)),
            )[0]
        )
        return int(number)
    finally:
        await database.aclose()


async def test_a_stream_that_breaks_is_taken_up_again(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.client, "reconnect_wait_s", 0)
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        event = f"event: job\ndata: {states[min(connections - 1, 2)].model_dump_json()}\n\n"
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        # No closing chunk: to the client this is a connection that broke.
        writer.write(f"{head}{len(event.encode()):x}\r\n{event}\r\n".encode())
        writer.close()

    fake = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with fake, Client(server) as client:
        job = await client.create({"kind": "image", "prompt": "a fox"})
        events = f"http://127.0.0.1:{fake.sockets[0].getsockname()[1]}/events"
        job = job.model_copy(update={"links": job.links.model_copy(update={"events": events})})
        states: list[JobView] = [
            job.model_copy(update={"revision": 1}),
            job.model_copy(update={"revision": 1}),
            job.model_copy(update={"revision": 2, "status": Status.COMPLETED, "done": True}),
        ]
        revisions = [state.revision async for state in client.watch(job)]
    assert revisions == [1, 2]
    assert connections == 3


def test_the_google_engine_needs_the_emulators(tmp_path: Path) -> None:
    line = refused("--engine", "google", "--port", "0", "--data-dir", tmp_path, FIRESTORE_EMULATOR_HOST="127.0.0.1:1")
    assert "STORAGE_EMULATOR_HOST" in line
    assert "docs/cloud.md" in line


async def test_the_google_engine_runs_on_the_emulators(emulators: Emulators, fakes: Fakes, tmp_path: Path) -> None:
    project = f"serve-{os.getpid()}"
    async with storage_front(project) as front:
        variables = {
            **emulators.environment,
            **fakes.environment,
            "STORAGE_EMULATOR_HOST": front.url,
            "GOOGLE_CLOUD_PROJECT": project,
        }
        with serve("--engine", "google", "--port", "0", "--data-dir", tmp_path / "data", **variables) as process:
            url = await asyncio.to_thread(started, process)
            submitted = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "local.cli", "submit", str(SAMPLE), "--server", url, "--json",
                "--out", str(tmp_path / "out"), stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            stdout, _ = await asyncio.wait_for(submitted.communicate(), 30)
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.communicate, timeout=20)
    assert json.loads(stdout)["job"]["status"] == "completed"
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert process.returncode == 0
