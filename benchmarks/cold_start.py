"""Cold start: from exec to the first 200 on `/health/live`, ingest-api beside a bare Starlette app served the same way.

`python -m benchmarks.cold_start` starts them in turns, as fresh processes on compiled bytecode, and tells how long each
took, how long ingest-api's first `POST /v1/jobs` takes after that, and what is imported meanwhile. The POST goes to
Google's Firestore emulator and to a stand-in for IAM on loopback; on Google Cloud both are a network away.
"""

import argparse
import compileall
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO

import psutil  # type: ignore[import-untyped]

from benchmarks.programs import ROOT

BARE, OURS, EAGER = "a bare Starlette app", "ingest-api", "ingest-api, imported before its port opens"
SUBJECTS: Mapping[str, str] = MappingProxyType(
    {
        BARE: "benchmarks.cold_apps:bare",
        OURS: "ingest.start:api",
        EAGER: "ingest.api:app",
    }
)
goal = 1.3
_answer_s_max = 60.0
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
# Signs the one caller of this benchmark in, and nobody anywhere else.
_SHARED = "cold start " * 4


@dataclass(slots=True)
class Starts:
    """One subject's cold starts, in ms: until `/health/live` answers, by the clock and in CPU, then two POSTs."""

    live_ms: list[float] = field(default_factory=list)
    live_cpu_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    second_ms: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; always 0, the figures speak."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start")
    parser.add_argument("--runs", type=int, default=20, help="of each subject (default: 20)")
    options = parser.parse_args(arguments)
    _compile()
    with _surroundings() as (environment, token):
        found = measure(options.runs, environment, token)
        report(found, options.runs)
        for name, spent in imports(environment, token).items():
            costly = sorted(spent.items(), key=lambda item: -item[1])
            print(f"{name}: " + ", ".join(f"{package} {ms:.0f} ms" for package, ms in costly if ms >= 2))
    return 0


def measure(runs: int, environment: Mapping[str, str], token: str) -> dict[str, Starts]:
    """Cold starts of every subject, in turns; a first one of each only warms the disk's cache."""
    found = {name: Starts() for name in SUBJECTS}
    for number in range(runs + 1):
        for name, target in SUBJECTS.items():
            starts = found[name] if number else Starts()
            with _started(target, environment) as (connection, process, since):
                _ask(connection, "GET", "/health/live", 200)
                starts.live_ms.append((time.perf_counter() - since) * 1000)
                starts.live_cpu_ms.append(_cpu_ms(process))
                if name != BARE:
                    starts.first_ms.append(_post_ms(connection, token))
                    starts.second_ms.append(_post_ms(connection, token))
    return found


def imports(environment: Mapping[str, str], token: str) -> dict[str, dict[str, float]]:
    """Milliseconds in modules by top-level package: until ingest-api is there, beyond the bare app; then for a POST.

    By `-X importtime`, which makes all of it slower. A package that both need counts for whoever comes first.
    """
    with tempfile.TemporaryFile() as log:
        with _started(SUBJECTS[BARE], environment, log, "-X", "importtime") as (connection, _, _):
            _ask(connection, "GET", "/health/live", 200)
        bare = {module for module, _ in _imported(log)}
    with tempfile.TemporaryFile() as log:
        with _started(SUBJECTS[EAGER], environment, log, "-X", "importtime") as (connection, _, _):
            _ask(connection, "GET", "/health/live", 200)
            live = dict(_imported(log))
            _post_ms(connection, token)
        after = {module: ms for module, ms in _imported(log) if module not in live}
    beyond = {module: ms for module, ms in live.items() if module not in bare}
    return {"imported by ingest-api": _by_package(beyond), "imported by its first POST": _by_package(after)}


def report(found: Mapping[str, Starts], runs: int) -> None:
    """Medians, and the medians of the ratios to the bare app that was started just before."""
    bare = found[BARE]
    print(f"exec → 200 on /health/live, {runs} starts each in turns; medians (smallest-largest)")
    for name, starts in found.items():
        print(
            f"  {name:42} {_spread(starts.live_ms)} = {_ratio(starts.live_ms, bare.live_ms):.2f} ×;"
            f" CPU {statistics.median(starts.live_cpu_ms):.0f} ms ="
            f" {_ratio(starts.live_cpu_ms, bare.live_cpu_ms):.2f} ×"
        )
        if starts.first_ms:
            whole = [live + first for live, first in zip(starts.live_ms, starts.first_ms, strict=True)]
            print(f"    POST /v1/jobs: first {_spread(starts.first_ms)}, {statistics.median(whole):.0f} ms after exec;"
                  f" second {_spread(starts.second_ms)}")  # fmt: skip
    print(f"goal for ingest-api: at most {goal} ×")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ms ({min(values):.0f}-{max(values):.0f})"


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


@contextmanager
def _started(
    target: str, environment: Mapping[str, str], log: IO[bytes] | None = None, *options: str
) -> Iterator[tuple[http.client.HTTPConnection, "subprocess.Popen[bytes]", float]]:
    """A server, a connection to it as soon as its port is open, and when it was started.

    Not on a socket of ours (`--fd`): uvicorn takes that for a Unix one, and Nagle's algorithm costs 40 ms an answer.
    """
    port = _free_port()
    serve = ["-m", "uvicorn", "--factory", target, "--port", str(port), "--log-level", "warning"]
    since = time.perf_counter()
    process = subprocess.Popen([sys.executable, *options, *serve], cwd=ROOT, env=dict(environment), stderr=log)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_answer_s_max)
    try:
        while connection.sock is None:
            with suppress(ConnectionRefusedError):
                connection.connect()
            if process.poll() is not None or time.perf_counter() - since > _answer_s_max:
                raise RuntimeError(f"{target} opened no port; it ended with {process.poll()}")
            time.sleep(0.001)
        yield connection, process, since
    finally:
        connection.close()
        process.terminate()
        process.wait(_answer_s_max)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _post_ms(connection: http.client.HTTPConnection, token: str) -> float:
    """Milliseconds of a portrait's `POST /v1/jobs`: one commit and one signature."""
    started = time.perf_counter()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    _ask(connection, "POST", "/v1/jobs", 201, json.dumps({"kind": "portrait"}), headers)
    return (time.perf_counter() - started) * 1000


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    status: int,
    body: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    connection.request(method, path, body, dict(headers or {}))
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != status:
        raise RuntimeError(f"{method} {path} answered {answer.status}: {text[:300].decode(errors='replace')}")


def _cpu_ms(process: "subprocess.Popen[bytes]") -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system) * 1000


def _imported(log: IO[bytes]) -> list[tuple[str, float]]:
    log.seek(0)
    return [(module, int(own_us) / 1000) for own_us, module in _IMPORT.findall(log.read().decode())]


def _by_package(modules: Mapping[str, float]) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    for module, ms in modules.items():
        package, _, rest = module.partition(".")
        spent[f"google.{rest.partition('.')[0]}" if package == "google" and rest else package] += ms
    return dict(spent)


def _compile() -> None:
    """As an image does it: no process that is measured compiles anything."""
    for package in ("benchmarks", "common", "ingest"):
        compileall.compile_dir(ROOT / package, quiet=2)


@contextmanager
def _surroundings() -> Iterator[tuple[dict[str, str], str]]:
    """All that ingest-api needs, as an environment without anything of the caller's; and a caller's token."""
    import jwt

    from tests.google.emulators import emulators_running
    from tests.google.fakes import fakes_running

    token = jwt.encode({"sub": "cold", "exp": time.time() + 3600}, _SHARED, algorithm="HS256")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="darkroom-cold-"))
        emulators = stack.enter_context(emulators_running(Path(folder)))
        fakes = stack.enter_context(fakes_running())
        settings = {
            "GOOGLE_CLOUD_PROJECT": "cold-start",
            "JWT_SECRET": _SHARED,
            "LOG_LEVEL": "WARNING",
            "PATH": os.environ["PATH"],
        }
        yield {**settings, **emulators.environment, **fakes.environment}, token


if __name__ == "__main__":
    sys.exit(main())
