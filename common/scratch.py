"""Files for a moment, while a photo or a picture is worked on; nothing that must last lies here."""

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path


@contextmanager
def scratch_files(count: int) -> Iterator[tuple[Path, ...]]:
    """Names for `count` new files, which are removed afterwards whether they were made or not.

    One folder serves the whole process: a folder of its own for each use costs 1 ms of the event loop.
    """
    folder = _folder(os.getpid())
    paths = tuple(folder / secrets.token_hex(8) for _ in range(count))
    try:
        yield paths
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


@cache
def _folder(_: int) -> Path:
    """Mode 700, removed when the process ends by itself; after a kill the system's own rule for old files holds."""
    path = Path(tempfile.mkdtemp(prefix="darkroom-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
