"""What intake promises about a photo: upright, stripped, small; and for everything else one documented refusal."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms, ImageDraw, ImageStat
from PIL.Image import Transpose

from common.errors import Rejected
from ingest import jpeg_markers
from ingest.imaging import ImageLimits, ShrunkPhoto, shrink

SAMPLES = Path(__file__).parents[3] / "shared" / "samples"
VERDICTS = {
    "upload_empty",
    "upload_too_large",
    "not_an_image",
    "unsupported_image",
    "image_damaged",
    "image_too_many_pixels",
    "image_too_complex",
}
# How a camera held that way stores an upright scene: the inverse of what the reader has to do.
STORED = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def scene(width: int = 640, height: int = 400) -> Image.Image:
    """A picture that looks different after every turn and mirroring, smooth enough for JPEG."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 3, height // 2), fill="red")
    draw.rectangle((width // 2, height * 2 // 3, width, height), fill="blue")
    return image


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    data[0x010F] = "Maker"
    return data


def taken_in(folder: Path, data: bytes, limits: ImageLimits | None = None) -> tuple[ShrunkPhoto, Image.Image]:
    source, target = folder / "upload", folder / "input.jpg"
    source.write_bytes(data)
    photo = shrink(source, target, limits or ImageLimits())
    output = target.read_bytes()
    assert len(output) == photo.bytes
    assert {marker for marker, _ in segments(output) if 0xE0 <= marker <= 0xEF or marker == 0xFE} == {0xE0}
    image = Image.open(BytesIO(output))
    image.load()
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (photo.width, photo.height))
    return photo, image


def verdict(folder: Path, data: bytes, limits: ImageLimits | None = None, name: str = "upload") -> Rejected:
    source, target = folder / name, folder / "refused.jpg"
    source.write_bytes(data)
    with pytest.raises(Rejected) as caught:
        shrink(source, target, limits or ImageLimits())
    assert not target.exists()
    return caught.value


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """Every segment of a JPEG up to its scan, by a parser that is not the one under test."""
    found = []
    position = 2
    while data[position + 1] != 0xDA:
        assert data[position] == 0xFF
        (length,) = struct.unpack_from(">H", data, position + 2)
        found.append((data[position + 1], data[position + 4 : position + 2 + length]))
        position += 2 + length
    return found


def png(width: int, height: int, depth: int, colour: int, row: bytes) -> bytes:
    """A PNG that Pillow cannot write itself."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def resized_header(data: bytes, width: int, height: int) -> bytes:
    """The same JPEG, claiming another size."""
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def webp_claiming(width: int, height: int) -> bytes:
    body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\0" * 9
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def many_scans(count: int) -> bytes:
    data = encoded(scene(64, 64).convert("L"), progressive=True)
    empty_scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"
    return data[:-2] + empty_scan * count + b"\xff\xd9"


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean absolute difference over all channels, 0 to 255."""
    assert one.size == other.size
    mean = ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean
    return sum(mean) / len(mean)


def is_near(pixel: object, expected: tuple[int, int, int]) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(one - other) <= 6 for one, other in zip(pixel, expected, strict=True))


# What comes out.


def test_a_large_photo_is_fitted_into_the_square(tmp_path: Path) -> None:
    photo, image = taken_in(tmp_path, encoded(scene(2000, 1250)))
    assert (photo.width, photo.height) == (512, 320)
    assert (photo.original_width, photo.original_height) == (2000, 1250)
    assert photo.original_content_type == "image/jpeg"
    assert difference(image, scene(512, 320)) < 4


def test_a_small_photo_is_not_enlarged(tmp_path: Path) -> None:
    photo, _ = taken_in(tmp_path, encoded(scene(100, 50)))
    assert (photo.width, photo.height) == (100, 50)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_like_its_upright_twin(tmp_path: Path, kind: str, orientation: int) -> None:
    upright = scene()
    stored = upright.transpose(STORED[orientation]) if orientation > 1 else upright
    photo, image = taken_in(tmp_path, encoded(stored, kind, exif=exif(orientation)))
    _, twin = taken_in(tmp_path, encoded(upright, kind))
    assert (photo.original_width, photo.original_height) == upright.size
    assert difference(image, twin) < 1.5


@pytest.mark.parametrize("motif", ["Landscape", "Portrait"])
def test_a_real_photo_lying_on_its_side_comes_out_like_its_upright_twin(tmp_path: Path, motif: str) -> None:
    if not (SAMPLES / f"{motif}_6.jpg").exists():
        pytest.skip("the sample photos are not on this machine")
    _, turned = taken_in(tmp_path, (SAMPLES / f"{motif}_6.jpg").read_bytes())
    _, upright = taken_in(tmp_path, (SAMPLES / f"{motif}_1.jpg").read_bytes())
    assert difference(turned, upright) < 6


@pytest.mark.parametrize(
    "broken", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", exif(99).tobytes()]
)
def test_broken_exif_means_no_orientation_and_no_refusal(tmp_path: Path, broken: bytes) -> None:
    photo, _ = taken_in(tmp_path, encoded(scene(), exif=broken))
    assert (photo.original_width, photo.original_height) == scene().size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_nothing_of_the_originals_metadata_travels_on(tmp_path: Path, kind: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options: dict[str, Any] = {"exif": exif(1), "icc_profile": profile, "xmp": b"<x:xmpmeta/>"}
    if kind == "JPEG":
        options |= {"comment": b"secret", "dpi": (300, 300)}
    taken_in(tmp_path, encoded(scene(), kind, **options))
    output = (tmp_path / "input.jpg").read_bytes()
    assert b"secret" not in output
    assert b"Maker" not in output
    assert [body for marker, body in segments(output) if marker == 0xE0] == [b"JFIF\0\1\1\0\0\1\0\1\0\0"]


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    data = encoded(scene(), exif=exif(6))
    assert taken_in(tmp_path, data)[0] == taken_in(tmp_path, data)[0]


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), {}),
        (Image.new("LA", (9, 9), (0, 0)), {}),
        (Image.new("RGB", (9, 9), (255, 0, 0)), {"transparency": (255, 0, 0)}),
        (Image.new("L", (9, 9), 7), {"transparency": 7}),
        (Image.new("RGB", (9, 9), (255, 0, 0)).quantize(2), {"transparency": b"\0\0"}),
    ],
    ids=["RGBA", "LA", "RGB with key", "L with key", "palette"],
)
def test_transparency_becomes_white(tmp_path: Path, image: Image.Image, options: dict[str, Any]) -> None:
    _, result = taken_in(tmp_path, encoded(image, "PNG", **options))
    assert is_near(result.getpixel((4, 4)), (255, 255, 255))


def test_half_transparent_red_becomes_pink(tmp_path: Path) -> None:
    data = encoded(Image.new("RGBA", (900, 900), (255, 0, 0, 128)), "WEBP", lossless=True)
    assert is_near(taken_in(tmp_path, data)[1].getpixel((200, 200)), (255, 127, 127))


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    _, image = taken_in(tmp_path, encoded(Image.new("CMYK", (900, 900), (0, 255, 255, 0))))
    assert is_near(image.getpixel((200, 200)), (254, 0, 0))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(8, 8, 16, 0, struct.pack(">H", 40_000) * 8), (156, 156, 156)),
        (png(8, 8, 16, 2, struct.pack(">HHH", 60_000, 30_000, 10_000) * 8), (234, 117, 39)),
        (png(8, 8, 1, 0, b"\xff"), (255, 255, 255)),
        (encoded(Image.new("L", (8, 8), 90)), (90, 90, 90)),
        (encoded(Image.new("L", (8, 8), 90), "PNG"), (90, 90, 90)),
    ],
    ids=["16-bit grey", "16-bit colour", "1-bit", "grey JPEG", "grey PNG"],
)
def test_every_depth_becomes_8_bit_rgb(tmp_path: Path, data: bytes, expected: tuple[int, int, int]) -> None:
    assert is_near(taken_in(tmp_path, data)[1].getpixel((4, 4)), expected)


def test_colours_are_converted_from_the_embedded_profile(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # In this profile red means what sRGB calls green.
    swapped = profile.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
    _, image = taken_in(tmp_path, encoded(Image.new("RGB", (64, 64), (255, 0, 0)), "PNG", icc_profile=swapped))
    assert is_near(image.getpixel((30, 30)), (0, 255, 0))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("profile", [b"garbage", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()])
def test_a_profile_that_does_not_fit_is_ignored(tmp_path: Path, mode: str, profile: bytes) -> None:
    taken_in(tmp_path, encoded(scene().convert(mode), icc_profile=profile))


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(1, 1, (1, 1)), (1, 20_000, (1, 512)), (20_000, 1, (512, 1))]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_odd_shapes_keep_at_least_a_pixel(
    tmp_path: Path, kind: str, width: int, height: int, expected: tuple[int, int]
) -> None:
    photo, _ = taken_in(tmp_path, encoded(Image.new("RGB", (width, height), "red"), kind))
    assert (photo.width, photo.height) == expected


def test_quality_gives_way_to_the_size_limit(tmp_path: Path) -> None:
    noise = encoded(Image.effect_noise((512, 512), 90), "PNG")
    full, _ = taken_in(tmp_path, noise)
    limits = ImageLimits(output_bytes_max=full.bytes // 2)
    assert taken_in(tmp_path, noise, limits)[0].bytes <= limits.output_bytes_max


def test_a_phones_mpo_is_taken_as_its_first_picture(tmp_path: Path) -> None:
    data = encoded(scene(), "MPO", save_all=True, append_images=[scene()] * 3)
    photo, _ = taken_in(tmp_path, data, ImageLimits(jpeg_pixels_max=scene().width * scene().height))
    assert photo.original_content_type == "image/jpeg"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_taken_as_its_first_frame(tmp_path: Path, kind: str) -> None:
    data = encoded(Image.new("RGB", (99, 99), "red"), kind, save_all=True, append_images=[scene(99, 99)] * 2)
    assert is_near(taken_in(tmp_path, data)[1].getpixel((50, 50)), (254, 0, 0))


# What is refused, and how.


def test_an_empty_upload_is_told_from_a_broken_one(tmp_path: Path) -> None:
    assert verdict(tmp_path, b"").code == "upload_empty"


def test_one_byte_too_many_is_too_large(tmp_path: Path) -> None:
    data = encoded(scene())
    taken_in(tmp_path, data, ImageLimits(upload_bytes_max=len(data)))
    assert verdict(tmp_path, data, ImageLimits(upload_bytes_max=len(data) - 1)).code == "upload_too_large"


@pytest.mark.parametrize("data", [b"hello", b"\xff", b"RIFF\0\0\0\0WAVEfmt ", b"<svg/>", b"\0\0\0\x18ftypmp42"])
def test_what_is_no_image_is_called_so(tmp_path: Path, data: bytes) -> None:
    assert verdict(tmp_path, data).code == "not_an_image"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("HEIC", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"),
        ("AVIF", b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif"),
        ("AVIF", encoded(scene(16, 16), "AVIF")),
        ("GIF", encoded(scene(16, 16), "GIF")),
        ("TIFF", encoded(scene(16, 16), "TIFF")),
        ("BMP", encoded(scene(16, 16), "BMP")),
        ("PDF", encoded(scene(16, 16), "PDF")),
        ("EPS", encoded(scene(16, 16), "EPS")),
    ],
)
def test_a_foreign_format_is_named_whatever_the_file_is_called(tmp_path: Path, name: str, data: bytes) -> None:
    refusal = verdict(tmp_path, data, name="photo.jpg")
    assert refusal.code == "unsupported_image"
    assert name in refusal.detail
    assert "export it as JPEG" in refusal.detail


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_damaged(tmp_path: Path, kind: str, kept: float) -> None:
    data = encoded(scene(), kind)
    assert verdict(tmp_path, data[: max(20, int(len(data) * kept))]).code == "image_damaged"


def test_a_png_with_a_wrong_checksum_is_damaged(tmp_path: Path) -> None:
    data = bytearray(encoded(scene(), "PNG"))
    data[data.rindex(b"IEND") - 5] ^= 1  # the last byte before the length of IEND: the checksum of IDAT
    assert verdict(tmp_path, bytes(data)).code == "image_damaged"


def test_a_jpeg_of_no_height_is_damaged(tmp_path: Path) -> None:
    assert verdict(tmp_path, resized_header(encoded(scene()), 640, 0)).code == "image_damaged"


def test_a_webp_of_34_bytes_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    bomb = webp_claiming(9400, 9400)
    assert len(bomb) == 34
    assert verdict(tmp_path, bomb).code == "image_too_many_pixels"


@pytest.mark.parametrize("size", [(8000, 7000), (20_000, 20_000), (65_000, 65_000)])
def test_a_jpeg_that_claims_too_many_pixels_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    refusal = verdict(tmp_path, resized_header(encoded(scene()), *size))
    assert refusal.code == "image_too_many_pixels"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_frames_of_an_animation_count(tmp_path: Path, kind: str) -> None:
    data = encoded(scene(100, 100), kind, save_all=True, append_images=[Image.new("RGB", (100, 100)), scene(100, 100)])
    limits = ImageLimits(png_pixels_max=29_999, webp_pixels_max=29_999)
    assert verdict(tmp_path, data, limits).code == "image_too_many_pixels"


def test_40_000_scans_are_refused_and_64_are_not(tmp_path: Path) -> None:
    assert verdict(tmp_path, many_scans(40_000)).code == "image_too_complex"
    ordinary = jpeg_markers.walk(many_scans(0), scans_max=64, steps_max=10**6).scans
    taken_in(tmp_path, many_scans(64 - ordinary))
    assert verdict(tmp_path, many_scans(65 - ordinary)).code == "image_too_complex"


@pytest.mark.parametrize("filler", [b"\xff\xfe\x00\x02", b"\xff", b"\x00"], ids=["comments", "fill bytes", "zeros"])
def test_a_header_that_only_burns_time_is_refused(tmp_path: Path, filler: bytes) -> None:
    data = encoded(scene())
    after_jfif = 20
    bloated = data[:after_jfif] + filler * 500_000 + data[after_jfif:]
    assert verdict(tmp_path, bloated).code == "image_too_complex"


def test_a_size_that_no_quality_reaches_is_refused(tmp_path: Path) -> None:
    assert verdict(tmp_path, encoded(scene()), ImageLimits(output_bytes_max=500)).code == "image_too_complex"


# The walk from marker to marker.


def scans(data: bytes) -> int:
    return jpeg_markers.walk(data, scans_max=1000, steps_max=10**6).scans


def test_scans_are_counted_as_the_encoder_wrote_them() -> None:
    assert scans(encoded(scene())) == 1
    assert scans(encoded(scene(), progressive=True)) == 10
    assert scans(encoded(scene().convert("L"), progressive=True)) == 6
    assert scans(many_scans(300)) == 306


def test_a_scan_inside_a_thumbnail_is_not_counted() -> None:
    thumbnail = encoded(scene(64, 64), progressive=True)
    assert scans(encoded(scene(), progressive=True, exif=b"Exif\0\0" + thumbnail)) == 10


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xda", b"\xff\xd8\xff\xc0\x00"])
def test_the_walk_ends_where_the_data_ends(data: bytes) -> None:
    assert scans(data) <= 1


# Whatever comes.

ORIGINALS: list[Callable[[], bytes]] = [
    lambda: encoded(scene(80, 50), exif=exif(6), comment=b"secret"),
    lambda: encoded(scene(80, 50), progressive=True),
    lambda: encoded(scene(80, 50).convert("CMYK")),
    lambda: encoded(scene(80, 50), "PNG"),
    lambda: encoded(scene(80, 50).convert("P"), "PNG", transparency=1),
    lambda: encoded(scene(80, 50).convert("RGBA"), "WEBP", exif=exif(8)),
    lambda: encoded(scene(80, 50), "WEBP", lossless=True),
]


@given(
    original=st.sampled_from([make() for make in ORIGINALS]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@settings(max_examples=200, deadline=None)
def test_a_mutated_file_gives_a_photo_or_a_documented_verdict(
    tmp_path_factory: pytest.TempPathFactory, original: bytes, edits: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(original)
    for place, value in edits:
        data[int(place * len(data))] = value
    del data[int(len(data) * kept) :]
    assert outcome(tmp_path_factory.mktemp("mutated"), bytes(data)) in VERDICTS | {"photo"}


def outcome(folder: Path, data: bytes) -> str:
    try:
        taken_in(folder, data)
    except Rejected as refusal:
        return refusal.code
    return "photo"
