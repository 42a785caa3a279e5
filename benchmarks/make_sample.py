"""Makes local/sample/portrait.jpg: a public-domain portrait as a phone would have stored it, lying on its side.

Run it with scikit-image's `data/astronaut.png`: `python -m benchmarks.make_sample astronaut.png`. The same
source and the same Pillow give the same bytes.
"""

import argparse
from pathlib import Path

from PIL import ExifTags, Image

SAMPLE = Path(__file__).parents[1] / "local" / "sample" / "portrait.jpg"
EDGE_PX = 1536
QUALITY = 88
ROTATE_CLOCKWISE_TO_VIEW = 6  # CIPA DC-008, tag 0x0112

# NASA's Johnson Space Center, as degrees, minutes and seconds. The demo shows that it does not leave the machine.
LATITUDE = (29.0, 33.0, 33.5)
LONGITUDE = (95.0, 5.0, 24.0)


def make_sample(source: Path, target: Path) -> None:
    """Write `source`, enlarged and turned a quarter to the left, as a JPEG whose EXIF turns it upright again."""
    with Image.open(source) as portrait:
        upright = portrait.convert("RGB").resize((EDGE_PX, EDGE_PX), Image.Resampling.LANCZOS)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.save(target, "JPEG", quality=QUALITY, optimize=True, exif=phone_exif())


def phone_exif() -> Image.Exif:
    """What a phone writes beside the picture: camera, time, orientation and the position."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Darkroom"
    exif[ExifTags.Base.Model] = "Sample"
    exif[ExifTags.Base.Orientation] = ROTATE_CLOCKWISE_TO_VIEW
    exif[ExifTags.Base.DateTime] = "2025:01:01 12:00:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {
            ExifTags.GPS.GPSLatitudeRef: "N",
            ExifTags.GPS.GPSLatitude: LATITUDE,
            ExifTags.GPS.GPSLongitudeRef: "W",
            ExifTags.GPS.GPSLongitude: LONGITUDE,
        }
    )
    return exif


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the sample photo that the demo uploads.")
    parser.add_argument("source", type=Path, help="scikit-image's data/astronaut.png")
    make_sample(parser.parse_args().source, SAMPLE)
    print(f"{SAMPLE}: {SAMPLE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
