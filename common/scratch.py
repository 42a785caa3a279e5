"""Files for a moment, while a photo or a picture is worked on; nothing that must last lies here."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_files(folder: Path | None, count: int) -> Iterator[tuple[Path, ...]]:
    """Names for `count` new files in `folder`, removed afterwards whether they were made or not.

    No folder of its own for each use, which costs 1 ms of the event loop. Without `folder` they lie where the system
    keeps such files; on Cloud Run that is memory, and a kill takes it along.
    """
    place = folder or Path(tempfile.gettempdir())
    paths = tuple(place / f"darkroom-{secrets.token_hex(8)}" for _ in range(count))
    try:
        yield paths
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
