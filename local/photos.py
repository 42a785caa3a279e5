"""Photos and pictures as files of the person at the command line: what they are, and where results go. No network."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

chunk_bytes = 256 * 1024

_EXTENSIONS = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
# Exif 2.32 (CIPA DC-008), tag 0x0112: how the camera was held. Even numbers up to 4 and all from 5 are unusual.
_ORIENTATIONS = {1: "upright", 3: "stored upside down", 6: "stored sideways", 8: "stored sideways"}
_GPS_IFD, _EXIF_IFD = 0x8825, 0x8769
_MAKE, _MODEL, _DATE, _DATE_TAKEN, _ORIENTATION = 0x010F, 0x0110, 0x0132, 0x9003, 0x0112


class WrongUse(Exception):
    """What was asked for cannot be asked; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a picture file says of itself; width and height in pixels as stored."""

    kind: str
    width: int
    height: int
    bytes: int
    orientation: int
    carries: tuple[str, ...]

    def __str__(self) -> str:
        """In words, e.g. `1536×1536 JPEG, 285 KB, stored sideways, with GPS, camera`."""
        held = _ORIENTATIONS.get(self.orientation, "stored mirrored")
        nothing = "no metadata" if self.orientation == 1 else "no GPS, camera or date"
        carried = f"with {', '.join(self.carries)}" if self.carries else nothing
        return f"{self.width}×{self.height} {self.kind}, {self.bytes / 1000:,.0f} KB, {held}, {carried}"


def content_type_of(photo: Path) -> str:
    """The photo's type by its first bytes; cameras and people name files as they like. Raises WrongUse."""
    with photo.open("rb") as file:
        head = file.read(12)
    found = sniff(head)
    if found is None:
        what = "is not a photo we read" if head else "is empty"
        raise WrongUse(f"{photo} {what}: choose a JPEG, PNG or WebP file")
    return found


def sniff(head: bytes) -> str | None:
    """The type of a picture that begins with these bytes, twelve at least, or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    return "image/webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def size_of(photo: Path) -> int:
    """Its bytes, as announced before it is sent."""
    return photo.stat().st_size


async def chunks(photo: Path, told: Callable[[int], None]) -> AsyncIterator[bytes]:
    """The file piece by piece, telling how many bytes were taken so far."""
    sent = 0
    told(sent)
    with await asyncio.to_thread(photo.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, chunk_bytes):
            yield chunk
            sent += len(chunk)
            told(sent)


def save(picture: bytes, content_type: str | None, folder: Path, stem: str, job_id: str) -> Path:
    """Write `{stem}{extension}` without overwriting anything of the person's; answers where it is.

    Where the name is taken, the beginning of the job's id is added, so asking twice gives the same file twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    extension = _EXTENSIONS.get(content_type or "", ".img")
    target = folder / f"{stem}{extension}"
    try:
        target.touch(exist_ok=False)
    except FileExistsError:
        target = folder / f"{stem}-{job_id[:8]}{extension}"
    # Moved into place: whoever looks into the folder sees whole pictures only.
    part = folder / f".{target.name}.part"
    try:
        part.write_bytes(picture)
        return part.replace(target)
    except OSError:
        part.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        raise


def look(file: Path) -> Facts:
    """Open the file and see; raises OSError if it is no picture. Only headers are read, nothing is decoded."""
    from PIL import Image

    with Image.open(file) as picture:
        exif = picture.getexif()
        found = {
            "GPS": bool(exif.get_ifd(_GPS_IFD)),
            "camera": _MAKE in exif or _MODEL in exif,
            "date": _DATE in exif or _DATE_TAKEN in exif.get_ifd(_EXIF_IFD),
            "XMP": "xmp" in picture.info,
            "comment": "comment" in picture.info,
            "colour profile": "icc_profile" in picture.info,
        }
        carries = tuple(name for name, is_there in found.items() if is_there)
        orientation = int(exif.get(_ORIENTATION, 1))
        kind = picture.format or "?"
        return Facts(kind, picture.width, picture.height, file.stat().st_size, orientation, carries)


def is_turned_right(photo: Path, copy: Path) -> bool:
    """Whether `copy` shows `photo` the way its orientation says, judged by the pixels of both, much reduced."""
    from PIL import Image, ImageChops, ImageOps, ImageStat

    with Image.open(photo) as original, Image.open(copy) as other:
        original.draft("RGB", (256, 256))
        upright = ImageOps.exif_transpose(original)
        tiny, right, wrong = (picture.convert("L").resize((32, 32)) for picture in (other, upright, original))
    apart = [ImageStat.Stat(ImageChops.difference(tiny, each)).mean[0] for each in (right, wrong)]
    return apart[0] <= apart[1]
