"""The photos that the benchmark uploads, made by code; no network."""

import random
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

SAMPLE = Path(__file__).parents[1] / "local" / "sample" / "portrait.jpg"
SEED = 7
_SIZE_PX = (4000, 3000)
_GRAIN = 0.1
_QUALITY = 90


def large_photo() -> bytes:
    """A baseline JPEG of 12 MP and about 4 MB: the sample enlarged, with the grain that an enlargement lacks.

    The same Pillow gives the same bytes. Takes half a second.
    """
    with Image.open(SAMPLE) as lying:
        upright = ImageOps.exif_transpose(lying).convert("RGB")
    width, height = upright.width, upright.width * 3 // 4
    enlarged = upright.crop((0, 0, width, height)).resize(_SIZE_PX, Image.Resampling.BICUBIC)
    grain = Image.frombytes("L", _SIZE_PX, random.Random(SEED).randbytes(_SIZE_PX[0] * _SIZE_PX[1]))
    buffer = BytesIO()
    Image.blend(enlarged, grain.convert("RGB"), _GRAIN).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def small_photo() -> bytes:
    """The bundled sample as it is: 2.4 MP."""
    return SAMPLE.read_bytes()


def describe(photo: bytes) -> str:
    """Pixels and bytes, for a person."""
    with Image.open(BytesIO(photo)) as image:
        return f"{image.width} x {image.height} px, {len(photo) / 1e6:.1f} MB"
