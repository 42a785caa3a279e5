"""CloudBlobs before a storage front, for tests of what it does when something is wrong."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.google.blobs import CloudBlobs
from common.google.identity import Identity
from common.ports import Blob
from common.settings import Settings
from tests.bench import Clock
from tests.google.front import Broken, Front

PHOTO = bytes(range(256)) * 1000


@dataclass(frozen=True, slots=True)
class Cloud:
    """CloudBlobs before a front."""

    blobs: CloudBlobs
    front: Front
    settings: Settings
    clock: Clock

    async def put(self, data: bytes | Path = PHOTO, name: str = "a/b") -> Blob:
        return await self.blobs.put("results", name, data, content_type="image/png", metadata={"fence": "1"})

    def fail(self, way: str, *faults: Broken) -> None:
        self.front.faults[way].extend(faults)


async def nobody_hears(data: bytes, attributes: Mapping[str, str]) -> None:
    return None


def identity_of(cloud: Cloud) -> Identity:
    return Identity(cloud.settings, Clock())
