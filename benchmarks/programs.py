"""The measured processes: how they are started and ended, and what they use. No request is sent from here."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[1]
_start_s_max = 30
_stop_s_max = 15
# Nothing of the caller's environment may steer what is measured: no key, no proxy, no setting.
_KEPT = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds since the process began and bytes of memory now: of the process, and of those it started."""

    own_cpu_s: float
    children_cpu_s: float
    own_rss: int
    children_rss: int

    @property
    def cpu_s(self) -> float:
        return self.own_cpu_s + self.children_cpu_s

    @property
    def rss(self) -> int:
        return self.own_rss + self.children_rss


@dataclass(frozen=True, slots=True)
class Program:
    """A child process that answers at `url`; its stderr is in `log`."""

    name: str
    url: str
    process: psutil.Popen
    log: Path

    def usage(self) -> Usage:
        """What it and its children use. Children that ended are not counted; image workers live on."""
        own_cpu, own_rss = _used(self.process)
        children = [_used(child) for child in self.process.children(recursive=True)]
        return Usage(own_cpu, sum(cpu for cpu, _ in children), own_rss, sum(rss for _, rss in children))

    def pin(self, core: int) -> bool:
        """Keep every thread of it and of its children on one core; False where the system cannot (macOS)."""
        if not hasattr(os, "sched_setaffinity"):
            return False
        for process in (self.process, *self.process.children(recursive=True)):
            for thread in process.threads():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(thread.id, {core})
        return True


@contextmanager
def stand_in(folder: Path, picture: Path | None = None) -> Iterator[Program]:
    """The stand-in for Gemini, answering one canned picture (200-300 KB, or `picture`) at once."""
    canned = "auto" if picture is None else str(picture)
    arguments = ("-m", "local.gemini", "--canned", canned, "--delay-ms", "0", "--exit-with-parent")
    with started("model", folder, *arguments) as program:
        yield program


@contextmanager
def darkroom(folder: Path, model_url: str) -> Iterator[Program]:
    """Darkroom's local server on a data folder of its own below `folder`."""
    arguments = ["-m", "benchmarks.service", "darkroom", "--folder", str(folder / "data")]
    environment = {"GEMINI_API_KEY": "benchmark", "GEMINI_BASE_URL": model_url}
    with started("darkroom", folder, *arguments, **environment) as program:
        yield program


@contextmanager
def handler(kind: str, folder: Path, model_url: str) -> Iterator[Program]:
    """The handler of benchmarks/handler.py, `async` or `threads`."""
    with started(kind, folder, "-m", "benchmarks.service", kind, "--model-url", model_url) as program:
        yield program


@contextmanager
def started(name: str, folder: Path, *arguments: str, **environment: str) -> Iterator[Program]:
    """A Python process that prints its address as one JSON line; it ends with the block, or with us.

    Raises RuntimeError with the end of its log if it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    with log.open("wb") as stderr:
        process = psutil.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=kept | environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
        )  # fmt: skip
    try:
        yield Program(name, _address(process, log), process, log)
    finally:
        process.stdin.close()
        try:
            process.wait(_stop_s_max)
        except psutil.TimeoutExpired:
            # The session is its own, so this ends what it started too, and nothing else.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(_stop_s_max)
        process.stdout.close()


def stdin_ended() -> asyncio.Event:
    """Set when this process's stdin ends, as it does when its parent is gone; call it in a running loop."""
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def follow() -> None:
        # os.read, because a thread that sits in sys.stdin's lock makes the interpreter's own exit fail.
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=follow, daemon=True).start()
    return ended


def _address(process: psutil.Popen, log: Path) -> str:
    ready = _read_line(process)
    try:
        return str(json.loads(ready)["url"])
    except ValueError as exc:
        tail = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(process.args)} did not start:\n{tail}") from exc


def _read_line(process: psutil.Popen) -> str:
    ready, _, _ = select.select([process.stdout], [], [], _start_s_max)
    return process.stdout.readline().decode() if ready else ""


def _used(process: psutil.Process) -> tuple[float, int]:
    try:
        with process.oneshot():
            times = process.cpu_times()
            return times.user + times.system, process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0.0, 0
