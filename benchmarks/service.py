"""What runs in the measured process: Darkroom's local server, or the handler it is compared with.

`python -m benchmarks.service darkroom --folder DIR` prints one JSON line with its address once it answers, and ends
when its stdin does.
"""

import argparse
import asyncio
import json
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path

import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from benchmarks.programs import stdin_ended
from common.telemetry import configure


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service")
    parser.add_argument("subject", choices=("darkroom", "async", "threads"))
    parser.add_argument("--folder", type=Path, help="data folder of darkroom")
    parser.add_argument("--model-url", default="", help="whom a handler asks; darkroom reads GEMINI_BASE_URL")
    options = parser.parse_args()
    # JSON lines to a file, as on Cloud Run: writing them is part of what a job costs.
    configure("INFO", people=False)
    if options.subject == "darkroom":
        _run(_darkroom(options.folder))
    else:
        _run(_handler(options.model_url, blocking=options.subject == "threads"))


def _run(work: Coroutine[None, None, None]) -> None:
    # As `darkroom serve` and `uvicorn handler:app` do: uvloop wherever it is installed.
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(work)


async def _darkroom(folder: Path) -> None:
    from local.run import serve

    await serve(folder, port=0, ready=lambda running: _announce(running.url), stop=stdin_ended())


async def _handler(model_url: str, *, blocking: bool) -> None:
    from benchmarks.handler import create_app

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    # From here on connections wait in the backlog, so the address may be told.
    listener.listen(2048)
    _announce("http://{}:{}".format(*listener.getsockname()))
    server = uvicorn.Server(uvicorn.Config(create_app(model_url, blocking=blocking), log_config=None, access_log=False))
    stop = stdin_ended()
    running = asyncio.create_task(server.serve(sockets=[listener]))
    await stop.wait()
    server.should_exit = True
    await running


def _announce(url: str) -> None:
    sys.stdout.write(json.dumps({"url": url}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
