"""Everything that `darkroom serve --engine google` needs on one machine: emulators, the fakes, and a storage front.

`python -m tests.google.stack PROJECT` starts it, prints the variables as shell commands, and runs until Ctrl-C.
"""

import argparse
import asyncio
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.google.emulators import NoEmulators, emulators_running
from tests.google.fakes import fakes_running
from tests.google.front import storage_front


@asynccontextmanager
async def stack_running(project: str, folder: Path) -> AsyncIterator[Mapping[str, str]]:
    """All of it, for one project; yields the variables for a server. Raises NoEmulators."""
    with fakes_running() as fakes, emulators_running(folder) as emulators:
        environment = {**fakes.environment, **emulators.environment, "GOOGLE_CLOUD_PROJECT": project}
        os.environ.update(environment)
        async with storage_front(project) as front:
            yield {**environment, "STORAGE_EMULATOR_HOST": front.url}


async def _serve(project: str) -> None:
    with tempfile.TemporaryDirectory(prefix="darkroom-emulators-") as folder:
        async with stack_running(project, Path(folder)) as environment:
            for name, value in environment.items():
                sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
            sys.stdout.write("# Ctrl-C ends them, and everything they keep.\n")
            sys.stdout.flush()
            ended = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                # Or the emulators, which have process groups of their own, would outlive us.
                asyncio.get_running_loop().add_signal_handler(number, ended.set)
            await ended.wait()


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="Emulators of Firestore, Pub/Sub and Cloud Storage on this machine.")
    parser.add_argument("project", nargs="?", default="darkroom-dev", help="under which everything is kept")
    try:
        asyncio.run(_serve(parser.parse_args().project))
    except NoEmulators as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    main()
