"""Intake of one photo: judge it, upright it, strip it, shrink it; no network, no job, no event loop lives here.

Everything below runs inside a worker of `common.workers`: no check sees everything, so time and memory are limited
from outside. Pillow is imported inside the functions (80 ms), so that a service which only hands work over never
pays for it; give `PRELOAD` to the workers instead.
"""

import hashlib
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import Rejected
from ingest import jpeg_markers

if TYPE_CHECKING:
    from PIL import Image

MIB = 1024 * 1024
# The MPO reader brings JPEG, and TIFF, which reads EXIF.
PRELOAD = ("ingest.imaging", "PIL.ImageCms", "PIL.MpoImagePlugin", "PIL.PngImagePlugin", "PIL.WebPImagePlugin")

# After 85 come the steps for a picture that would break `output_bytes_max`; at 512 pixels none is ever needed.
_QUALITIES = (85, 75, 65, 50, 35, 20)
_ORIENTATION_TAG = 0x0112
# The turns that undo orientations 2 to 8, as `Image.Transpose` names them.
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_MAGIC = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"))
_CONTENT_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_FOREIGN = tuple(
    (re.compile(magic, re.DOTALL), name)
    for magic, name in (
        (rb".{4}ftyp(avi[fs]|(mif1|msf1).{4,40}avi[fs])", "AVIF"),
        (rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "HEIC"),
        (rb"GIF8[79]a", "GIF"),
        (rb"II[*+]\0|MM\0[*+]", "TIFF or camera raw"),
        (rb"BM.{4}\0{4}", "BMP"),
        (rb"%PDF-", "PDF"),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "EPS"),
    )
)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What intake accepts and what it makes; the pixel caps keep a sound file under 410 MB of memory.

    `jpeg_scans_max` is far above what encoders write (libjpeg 10, mozjpeg about 16). `edge_px` bounds both sides
    of the output.
    """

    upload_bytes_max: int = 10 * MIB
    jpeg_pixels_max: int = 50_000_000
    png_pixels_max: int = 30_000_000
    webp_pixels_max: int = 16_000_000
    jpeg_scans_max: int = 64
    edge_px: int = 512
    output_bytes_max: int = 1_000_000


@dataclass(frozen=True, slots=True)
class ShrunkPhoto:
    """The JPEG that was written, and what it came from; the original's size is given as uprighted, in pixels."""

    width: int
    height: int
    bytes: int
    sha256: str
    original_content_type: str
    original_width: int
    original_height: int
    original_bytes: int


def shrink(source: Path, target: Path, limits: ImageLimits) -> ShrunkPhoto:
    """Write `source` to `target` as upright sRGB JPEG without metadata, fitted into a square of `limits.edge_px`.

    Never enlarges. Transparency becomes white; of an animation the first frame is taken. CPU-bound: about 40 ms
    for a 12 MP JPEG of 3 MB. Safe to repeat: the same file gives the same bytes, or the same verdict, every time.
    Raises Rejected with `upload_empty`, `upload_too_large`, `not_an_image`, `unsupported_image`, `image_damaged`,
    `image_too_many_pixels` or `image_too_complex`, and OSError if a path cannot be read or written.
    """
    data = _read(source, limits)
    kind = _recognise(data)
    with warnings.catch_warnings():
        # Pillow warns about oddities it copes with; a verdict must not depend on the warning filters.
        warnings.simplefilter("ignore")
        image, original_width, original_height = _load(data, kind, limits)
        orientation = _orientation(image)
        width, height = _fit(original_width, original_height, limits.edge_px)
        encoded = _encode(_render(image, (width, height), orientation), limits)
    target.write_bytes(encoded)
    if orientation >= 5:
        width, height = height, width
        original_width, original_height = original_height, original_width
    return ShrunkPhoto(
        width=width,
        height=height,
        bytes=len(encoded),
        sha256=hashlib.sha256(encoded).hexdigest(),
        original_content_type=_CONTENT_TYPES[kind],
        original_width=original_width,
        original_height=original_height,
        original_bytes=len(data),
    )


def _read(source: Path, limits: ImageLimits) -> bytes:
    # One byte more than allowed tells "too large" without reading all of it.
    with source.open("rb") as file:
        data = file.read(limits.upload_bytes_max + 1)
    if not data:
        raise Rejected("upload_empty")
    if len(data) > limits.upload_bytes_max:
        limit_mib = limits.upload_bytes_max / MIB
        raise Rejected("upload_too_large", f"The file is larger than {limit_mib:g} MiB; export a smaller copy.")
    return data


def _recognise(data: bytes) -> str:
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for pattern, name in _FOREIGN:
        if pattern.match(data):
            detail = f"This is a {name} file; export it as JPEG, PNG or WebP and upload that."
            if name == "HEIC":
                detail += " An iPhone takes JPEG under Settings, Camera, Formats, Most Compatible."
            raise Rejected("unsupported_image", detail)
    raise Rejected("not_an_image")


def _load(data: bytes, kind: str, limits: ImageLimits) -> "tuple[Image.Image, int, int]":
    """Apply every cap, then decode; returns the image, perhaps scaled down already, with its full width and height."""
    from PIL import Image

    if kind == "JPEG":
        jpeg_markers.check_work(data, scans_max=limits.jpeg_scans_max)
    with _verdicts(kind):
        if kind == "WEBP":
            # Opening a WebP already allocates two canvases: 34 bytes that claim 9400 × 9400 cost 700 MB.
            _check_pixels(kind, *_webp_size(data), frames=1, limits=limits)
        # Without the list Pillow tries every format it knows, and starts Ghostscript on an EPS.
        image = Image.open(BytesIO(data), formats=tuple(_CONTENT_TYPES))
        width, height = image.size
        # A phone's MPO holds further pictures behind the first; they are never decoded, so they do not count.
        frames = 1 if kind == "JPEG" else getattr(image, "n_frames", 1)
        _check_pixels(kind, width, height, frames=frames, limits=limits)
        if kind == "JPEG":
            # libjpeg scales by 1/2, 1/4 or 1/8 while it decodes; it still reads, and so checks, every byte.
            image.draft(None, _fit(width, height, limits.edge_px))
        if kind == "PNG":
            # load() alone accepts wrong checksums; verify() spoils the image it is called on.
            Image.open(BytesIO(data), formats=("PNG",)).verify()
        image.load()
        return image, width, height


def _check_pixels(kind: str, width: int, height: int, *, frames: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise Rejected("image_damaged", "The image says that it has no pixels.")
    caps = {"JPEG": limits.jpeg_pixels_max, "PNG": limits.png_pixels_max, "WEBP": limits.webp_pixels_max}
    if width * height * max(frames, 1) > caps[kind]:
        times = f" × {frames} frames" if frames > 1 else ""
        raise Rejected(
            "image_too_many_pixels",
            f"The image has {width} × {height} pixels{times}; a {kind} may have {caps[kind] / 1e6:g} million.",
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read the canvas from the first chunk (RFC 9649, sections 2.5 to 2.7); an unknown chunk raises ValueError."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError(f"no WebP chunk: {chunk!r}")


def _orientation(image: "Image.Image") -> int:
    """Read how to turn the photo (CIPA DC-008, tag 0x0112), 1 to 8; broken EXIF means 1, it is no fault of the photo.

    Only EXIF is asked, as browsers do; Pillow's own reader would believe XMP too.
    """
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        value = exif.get(_ORIENTATION_TAG, 1)
    except Exception:  # The TIFF reader fails with whatever the broken bytes make it trip over.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _fit(width: int, height: int, edge_px: int) -> tuple[int, int]:
    scale = min(1.0, edge_px / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _render(image: "Image.Image", size: tuple[int, int], orientation: int) -> "Image.Image":
    """Resize first, while there is one pass over many pixels, then do everything else on few."""
    from PIL import Image

    profile = image.info.get("icc_profile")
    image = _resizable(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    if image.mode == "I":
        # 16-bit grey: Pillow's own conversion to 8 bits clips at 255 instead of scaling.
        image = image.point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if orientation > 1:
        image = image.transpose(Image.Transpose[_TURNS[orientation - 2]])
    image = _to_srgb(_on_white(image), profile)
    # The encoder copies a comment, if it finds one; nothing of the original may travel on.
    image.info.clear()
    return image


def _resizable(image: "Image.Image") -> "Image.Image":
    """Bring palettes, bit masks and 16 bits into a mode that LANCZOS can average."""
    has_key_colour = "transparency" in image.info
    if image.mode in {"P", "PA"}:
        return image.convert("RGBA" if has_key_colour or image.mode == "PA" else "RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I"):
        return image.convert("I")
    if has_key_colour and image.mode in {"L", "RGB"}:
        return image.convert("RGBA")
    return image if image.mode in {"L", "LA", "RGB", "RGBA", "CMYK"} else image.convert("RGB")


def _on_white(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode not in {"LA", "RGBA"}:
        return image
    opaque_mode = "L" if image.mode == "LA" else "RGB"
    white = Image.new(opaque_mode, image.size, "white")
    white.paste(image.convert(opaque_mode), mask=image.getchannel("A"))
    return white


def _to_srgb(image: "Image.Image", profile: bytes | None) -> "Image.Image":
    if profile:
        from PIL import ImageCms

        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            # A broken profile, or one for another colour space, is ignored as browsers ignore it.
            return image.convert("RGB")
        if converted is not None:
            return converted
    return image.convert("RGB")


def _encode(image: "Image.Image", limits: ImageLimits) -> bytes:
    for quality in _QUALITIES:
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= limits.output_bytes_max:
            return buffer.getvalue()
    raise Rejected("image_too_complex", f"The photo does not fit into {limits.output_bytes_max} bytes.")


@contextmanager
def _verdicts(kind: str) -> Iterator[None]:
    """Turn whatever Pillow trips over into a verdict on the file."""
    from PIL import Image

    try:
        yield
    except Rejected:
        raise
    except Image.DecompressionBombError as exc:
        raise Rejected("image_too_many_pixels") from exc
    except MemoryError as exc:
        # Sound files under the caps fit with room to spare, so it is the file that asks for too much.
        raise Rejected("image_too_complex", "The image needs too much memory to read.") from exc
    except Exception as exc:
        # Pillow promises no closed list: OSError, SyntaxError, ValueError, EOFError, struct.error all mean this.
        raise Rejected("image_damaged", f"The {kind} is damaged or incomplete; save it again and upload it.") from exc
