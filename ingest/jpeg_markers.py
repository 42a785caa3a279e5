"""How much work a JPEG asks for, read from its markers; no pixel is decoded here and no image library imported."""

import re
from dataclasses import dataclass

from common.errors import Rejected

# Each step costs Pillow about a microsecond; cameras write some hundred segments, and padding of up to 64 KB.
_STEPS_MAX = 100_000

# Stuffed zeros, TEM, restart markers and fill bytes carry no segment (ITU-T T.81, B.1.1). The pattern starts with
# one literal byte so that `re` uses memchr: 2.8 GB/s over the bulk of a scan. A leading `\xff+` would be twenty
# times slower and quadratic over fill bytes.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")

_START_OF_IMAGE = 0xD8
_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})


@dataclass(frozen=True, slots=True)
class JpegWork:
    """What a decoder will go through: `scans` over the picture, and `steps` (segments, and stray header bytes)."""

    scans: int
    steps: int


def check_work(data: bytes, *, scans_max: int) -> None:
    """Refuse a JPEG that costs far more time than its pixels suggest; raises Rejected("image_too_complex").

    Each scan is a pass over all coefficients: 1 MB with 40,000 scans burns 20 s.
    """
    work = walk(data, scans_max=scans_max, steps_max=_STEPS_MAX)
    if work.scans > scans_max:
        raise Rejected("image_too_complex", f"The JPEG has more than {scans_max} scans; save it as a plain JPEG.")
    if work.steps > _STEPS_MAX:
        raise Rejected("image_too_complex", "The JPEG is cut into too many segments; save it as a plain JPEG.")


def walk(data: bytes, *, scans_max: int, steps_max: int) -> JpegWork:
    """Walk from marker to marker as libjpeg does (ITU-T T.81, B.1) and count what costs time.

    Ends at the end of the image or of the data, or once a count has passed its bound. A sequential file whose first
    scan holds every component counts as one scan: libjpeg decodes it in a single pass and refuses further scans, so
    the bulk of a plain photo is never walked. Segment lengths are honoured, because the scan marker inside an EXIF
    thumbnail is not a scan of this image. Never raises: what is malformed is for the decoder to judge.
    """
    position = 2
    scans = steps = 0
    frame_marker = frame_components = 0
    while scans <= scans_max and steps <= steps_max:
        match = _MARKER.search(data, position)
        if match is None:
            break
        # Pillow reads the header in Python, one step for a segment and one for every stray byte before it.
        steps += 1 if scans else 1 + match.start() - position
        position = match.end()
        marker = data[position - 1]
        if marker == _START_OF_IMAGE:
            continue
        if marker == _END_OF_IMAGE:
            break
        if marker in _FRAME_HEADERS:
            frame_marker, frame_components = marker, _byte_at(data, position + 7)
        elif marker == _START_OF_SCAN:
            scans += 1
            holds_all_components = _byte_at(data, position + 2) == frame_components
            if scans == 1 and holds_all_components and frame_marker not in _PROGRESSIVE:
                break
        position += int.from_bytes(data[position : position + 2], "big")
    return JpegWork(scans, steps)


def _byte_at(data: bytes, position: int) -> int:
    return data[position] if position < len(data) else 0
