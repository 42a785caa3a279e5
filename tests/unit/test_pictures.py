"""What the check of a model's picture promises: every pixel decoded, a small WebP beside it, or bad_output."""

import hashlib
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.errors import Rejected
from processor.pictures import Picture, check_picture


def encoded(kind: str, size: tuple[int, int] = (600, 400), mode: str = "RGB", **options: Any) -> bytes:
    buffer = BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def checked(folder: Path, data: bytes, edge_px: int = 320) -> tuple[Picture, Image.Image]:
    source, thumbnail = folder / "result", folder / "thumbnail"
    source.write_bytes(data)
    picture = check_picture(source, thumbnail, thumbnail_edge_px=edge_px)
    assert source.read_bytes() == data
    image = Image.open(BytesIO(thumbnail.read_bytes()))
    image.load()
    assert image.format == "WEBP"
    return picture, image


def assert_refused(folder: Path, data: bytes) -> None:
    source, thumbnail = folder / "result", folder / "thumbnail"
    source.write_bytes(data)
    with pytest.raises(Rejected) as caught:
        check_picture(source, thumbnail, thumbnail_edge_px=320)
    assert caught.value.code == "bad_output"
    assert not thumbnail.exists()


@pytest.mark.parametrize(
    ("kind", "content_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")]
)
def test_type_size_and_hash_are_read_from_the_bytes(tmp_path: Path, kind: str, content_type: str) -> None:
    data = encoded(kind)
    picture, _ = checked(tmp_path, data)
    assert picture == Picture(content_type, 600, 400, len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("size", "expected"),
    [((600, 400), (320, 213)), ((400, 600), (213, 320)), ((90, 50), (90, 50)), ((3000, 1), (320, 1))],
)
def test_the_thumbnail_fits_the_square_and_is_never_enlarged(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert checked(tmp_path, encoded("PNG", size))[1].size == expected


def test_the_edge_of_the_thumbnail_is_the_callers_choice(tmp_path: Path) -> None:
    assert checked(tmp_path, encoded("JPEG"), edge_px=60)[1].size == (60, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_of_png_gets_a_thumbnail(tmp_path: Path, mode: str) -> None:
    checked(tmp_path, encoded("PNG", mode=mode))


def test_a_thumbnail_keeps_transparency(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.new("RGBA", (500, 500), (255, 0, 0, 0)).save(buffer, "PNG")
    image = checked(tmp_path, buffer.getvalue())[1]
    assert image.getchannel("A").getextrema() == (0, 0)


@pytest.mark.parametrize("data", [b"", b"\0", b"not a picture", encoded("GIF"), encoded("TIFF"), encoded("BMP")])
def test_what_is_no_png_jpeg_or_webp_is_bad_output(tmp_path: Path, data: bytes) -> None:
    assert_refused(tmp_path, data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_half_a_picture_is_bad_output(tmp_path: Path, kind: str, kept: float) -> None:
    data = encoded(kind)
    assert_refused(tmp_path, data[: int(len(data) * kept)])


def test_a_png_with_a_wrong_checksum_is_bad_output(tmp_path: Path) -> None:
    data = bytearray(encoded("PNG"))
    data[data.rindex(b"IEND") - 5] ^= 1  # the last byte before the length of IEND: the checksum of IDAT
    assert_refused(tmp_path, bytes(data))


@pytest.mark.parametrize("size", [(0, 100), (8000, 7000), (30_000, 30_000)])
def test_an_impossible_size_is_bad_output(tmp_path: Path, size: tuple[int, int]) -> None:
    data = encoded("JPEG")
    start = data.index(b"\xff\xc0") + 5
    assert_refused(tmp_path, data[:start] + struct.pack(">HH", *size) + data[start + 4 :])


@given(
    original=st.sampled_from([encoded(kind, (80, 50)) for kind in ("PNG", "JPEG", "WEBP")]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
@settings(max_examples=100, deadline=None)
def test_a_mutated_picture_is_whole_or_bad_output(
    tmp_path_factory: pytest.TempPathFactory, original: bytes, edits: list[tuple[float, int]]
) -> None:
    data = bytearray(original)
    for place, value in edits:
        data[int(place * len(data))] = value
    assert outcome(tmp_path_factory.mktemp("mutated"), bytes(data)) in {"picture", "bad_output"}


def outcome(folder: Path, data: bytes) -> str:
    try:
        checked(folder, data)
    except Rejected as refusal:
        return refusal.code
    return "picture"
