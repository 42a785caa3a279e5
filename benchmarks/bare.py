"""CPU of the parts that any program of this kind pays for: the model's client and the image work, each on its own.

`python -m benchmarks.bare MODEL_URL PHOTO` prints one JSON object: CPU milliseconds a call, medians of blocks.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import handler, model
from benchmarks.programs import ROOT
from ingest.imaging import ImageLimits, shrink
from processor.pictures import check_picture

_blocks = 5


@dataclass(frozen=True, slots=True)
class Bare:
    """CPU milliseconds of one call each."""

    client_async_ms: float
    client_blocking_ms: float
    shrink_ms: float
    check_ms: float
    naive_shrink_ms: float


def measure(model_url: str, photo: Path, *, calls: int) -> Bare:
    """Measure in a fresh process; `calls` model calls a block, and a tenth as many images."""
    command = [sys.executable, "-m", "benchmarks.bare", model_url, str(photo), "--calls", str(calls)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=60)
    return Bare(**json.loads(done.stdout))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare")
    parser.add_argument("model_url")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--calls", type=int, default=40)
    options = parser.parse_args()
    print(json.dumps(asdict(asyncio.run(_measure(options.model_url, options.photo, options.calls)))))


async def _measure(url: str, photo: Path, calls: int) -> Bare:
    client = model.open_client(url)
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        small, picture, thumbnail = (Path(folder, name) for name in ("small.jpg", "picture.jpg", "thumbnail.webp"))
        limits = ImageLimits()
        shrink(photo, small, limits)
        original, sent = _read(photo), _read(small)
        _write(picture, await model.ask(client, sent))

        async def blocking() -> None:
            model.ask_blocking(client, sent)

        async def ours() -> None:
            shrink(photo, small, limits)

        async def checked() -> None:
            check_picture(picture, thumbnail)

        async def naive() -> None:
            handler.shrink(original)

        return Bare(
            client_async_ms=await _cpu_ms(lambda: model.ask(client, sent), calls),
            client_blocking_ms=await _cpu_ms(blocking, calls),
            shrink_ms=await _cpu_ms(ours, calls // 10),
            check_ms=await _cpu_ms(checked, calls // 10),
            naive_shrink_ms=await _cpu_ms(naive, calls // 10),
        )


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def _cpu_ms(call: Callable[[], Awaitable[object]], number: int) -> float:
    """CPU of this process for one call: the median of some blocks, the first of which only warms up."""
    blocks = []
    for _ in range(_blocks + 1):
        started = time.process_time()
        for _ in range(number):
            await call()
        blocks.append((time.process_time() - started) * 1000 / number)
    return statistics.median(blocks[1:])


if __name__ == "__main__":
    main()
