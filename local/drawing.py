"""The pictures of the Gemini stand-in: plainly not Gemini's, yet worth looking at. Pillow only; no network here.

Everything is drawn at 1K and scaled to the size asked for. One picture takes 50-90 ms of one core at 1K,
nearly all of it without the interpreter lock, so threads are enough.
"""

import math
import textwrap
from hashlib import sha256
from io import BytesIO
from random import Random

from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps, ImageStat

LABEL = "STAND-IN, not Gemini"
EDGES_PX = {"512": 512, "1K": 1024, "2K": 2048, "4K": 4096}
JPEG_1K_BYTES_MAX = 300_000

# Sky above, sky below, sun, far hill, near hill.
_PALETTES = (
    ("#1b2a52", "#f3a683", "#ffe3b3", "#7d5a7a", "#1d2340"),
    ("#0f4c5c", "#f6d6a8", "#fff4d6", "#5f9ea0", "#0b3440"),
    ("#2b2d68", "#f08fb0", "#ffdfe5", "#7a4f9a", "#1f1b4a"),
    ("#145374", "#bfe3ee", "#ffffff", "#5a9bb5", "#0d2f45"),
    ("#35524a", "#e9e2b8", "#fff9d9", "#7fa37a", "#1f3a33"),
    ("#4a1f3d", "#f7b267", "#ffe8c2", "#b1566b", "#2d1230"),
)
# Backdrops of portraits: lit centre, dark corner. All are deep classic blue, a shade apart.
_BACKDROPS = (("#2f64a8", "#0a1c40"), ("#2c5ca2", "#0b1946"), ("#3268a4", "#082046"))


def dimensions(aspect_ratio: str, size: str) -> tuple[int, int]:
    """Width and height in pixels for a ratio such as "3:4" and a size such as "1K" (about one megapixel).

    Like the model's own, both are multiples of 16 at 1K. Raises KeyError or ValueError for what is neither.
    """
    across, down = (int(part) for part in aspect_ratio.split(":"))
    stretch = math.sqrt(across / down)
    scale = EDGES_PX[size] / 1024
    return int(round(64 * stretch) * 16 * scale), int(round(64 / stretch) * 16 * scale)


def portrait(photo: bytes, prompt: str, nonce: int, aspect_ratio: str, size: str) -> bytes:
    """The person of the photo before a deep blue studio backdrop, as JPEG; each `nonce` is lit a little differently.

    There is no segmentation: an oval around the upper middle, where a selfie has its face, stays as it is.
    Raises OSError if the photo cannot be read.
    """
    random = Random(_seed(prompt, nonce))
    width, height = dimensions(aspect_ratio, "1K")
    with Image.open(BytesIO(photo)) as opened:
        upright = ImageOps.exif_transpose(opened.convert("RGB"))
    # A wide picture of a tall photo gets more backdrop at the sides: cropping instead would leave a nose and a mouth.
    # A face sits above the middle of a selfie, so more is cut off below than above.
    across = min(width, max(height * upright.width // upright.height, height * 3 // 4))
    fitted = ImageOps.fit(upright, (across, height), Image.Resampling.BICUBIC, centering=(0.5, 0.15))
    average = tuple(round(level) for level in ImageStat.Stat(fitted).mean)
    person = ImageOps.pad(fitted, (width, height), color=average)
    person = ImageEnhance.Contrast(person).enhance(random.uniform(1.02, 1.08))

    lit, dark = random.choice(_BACKDROPS)
    glow = _glow((width, height), centre=(random.uniform(0.40, 0.60), 0.36), radius=random.uniform(0.7, 0.85))
    backdrop = ImageOps.colorize(glow, dark, lit)
    # What lies outside the figure is seen as if through the backdrop's colour, so no edge looks cut with scissors.
    room = ImageOps.colorize(ImageOps.grayscale(person), "#7c8698", "#ffffff").filter(ImageFilter.BoxBlur(6))
    picture = Image.composite(person, ImageChops.multiply(backdrop, room), _figure(person, across))
    rim = _glow((width, height), centre=(random.choice((0.02, 0.98)), 0.1), radius=0.6)
    picture = ImageChops.screen(picture, ImageOps.colorize(rim, "#000000", "#182c50"))
    return _finish(picture, None, size)


def scene(prompt: str, caption: str, nonce: int, aspect_ratio: str, size: str) -> bytes:
    """A landscape that follows from the prompt and `nonce` alone, with the caption's first words, as JPEG."""
    random = Random(_seed(prompt, nonce))
    above, below, sun, far, near = random.choice(_PALETTES)
    width, height = dimensions(aspect_ratio, "1K")
    sky = Image.linear_gradient("L").resize((width, height))
    picture = ImageOps.colorize(sky.point(lambda level: min(255, level * 1.7)), above, below)

    centre = random.uniform(0.2, 0.8), random.uniform(0.22, 0.42)
    halo = _glow((width, height), centre=centre, radius=0.55)
    picture = Image.composite(Image.new("RGB", picture.size, sun), picture, halo.point(lambda level: level * 0.55))
    disc = [
        (width * centre[0] + 0.055 * height * math.cos(turn), height * centre[1] + 0.055 * height * math.sin(turn))
        for turn in (math.tau * step / 90 for step in range(90))
    ]
    picture.paste(sun, mask=_polygon(picture.size, disc))

    layers = random.randint(4, 6)
    for layer in range(layers):
        depth = layer / (layers - 1)
        ridge = _ridge(random, width, base=height * (0.48 + 0.36 * depth), swing=height * (0.09 - 0.04 * depth))
        hill = _polygon(picture.size, [(0, height), *ridge, (width, height)])
        picture.paste(_mix(far, near, depth), mask=hill)
    return _finish(picture, " ".join(caption.split()), size)


def grainy() -> bytes:
    """One square 1K picture with film grain, as JPEG of 200-300 KB: as heavy as the model's own, for benchmarks."""
    with Image.open(BytesIO(scene("benchmark", "benchmark", 0, "1:1", "1K"))) as drawn:
        grain = Image.effect_noise(drawn.size, 22).convert("RGB")
        return _encode(Image.blend(drawn, grain, 0.22), "1K")


def _seed(prompt: str, nonce: int) -> bytes:
    return sha256(f"{nonce}:{prompt}".encode()).digest()


def _glow(size: tuple[int, int], *, centre: tuple[float, float], radius: float) -> Image.Image:
    """An L mask: 255 at `centre` (fractions of the size), 0 from `radius` longer sides away."""
    small = Image.radial_gradient("L").point(lambda level: max(0, 255 - level * 1.4))
    across = int(max(size) * radius * 2)
    mask = Image.new("L", size)
    left, top = int(size[0] * centre[0] - across / 2), int(size[1] * centre[1] - across / 2)
    mask.paste(small.resize((across, across), Image.Resampling.BILINEAR), (left, top))
    return mask


def _figure(person: Image.Image, across: int) -> Image.Image:
    """An L mask of whom to keep: an oval core, and around it whatever has other colours than the picture's rim.

    Worked out at a sixth of the size. Nothing here knows what a person is, hence the core.
    """
    width, height = person.width // 6, person.height // 6
    small = person.resize((width, height), Image.Resampling.BOX)
    middle, reach = width / 2, min(across / 6, height * 0.8)
    core, figure = Image.new("L", small.size), Image.new("L", small.size)
    for mask, grown in ((core, 0.70), (figure, 1.0)):
        pen = ImageDraw.Draw(mask)
        head, shoulders = reach * 0.36 * grown, reach * 0.60 * grown
        pen.ellipse((middle - head, height * 0.36 - head * 1.35, middle + head, height * 0.36 + head * 1.25), fill=255)
        pen.ellipse(
            (middle - shoulders, height * (0.62 + 0.1 * (1 - grown)), middle + shoulders, height * 1.5), fill=255
        )

    # Beside the head and at the edges, down to the shoulders, there is mostly room to see.
    rim = Image.new("RGB", (32, height // 2))
    for column, left in enumerate(
        (middle - reach / 2, middle - reach * 0.42, middle + reach * 0.36, middle + reach * 0.44)
    ):
        rim.paste(small.crop((int(left), 0, int(left) + 8, height // 2)), (column * 8, 0))
    colours = rim.quantize(6).getpalette() or []
    strange = Image.new("L", small.size, 255)
    for red, green, blue in zip(colours[0::3], colours[1::3], colours[2::3], strict=False):
        apart = ImageChops.difference(small, Image.new("RGB", small.size, (red, green, blue))).split()
        strange = ImageChops.darker(strange, ImageChops.lighter(ImageChops.lighter(apart[0], apart[1]), apart[2]))
    strange = strange.point(lambda distance: min(255, max(0, distance - 20) * 5)).filter(ImageFilter.MedianFilter(5))
    soft = ImageFilter.GaussianBlur(reach * 0.03)
    kept = ImageChops.darker(figure.filter(ImageFilter.GaussianBlur(reach * 0.06)), strange)
    return (
        ImageChops.lighter(core.filter(ImageFilter.GaussianBlur(reach * 0.05)), kept)
        .filter(soft)
        .resize(person.size, Image.Resampling.BICUBIC)
    )


def _polygon(size: tuple[int, int], points: list[tuple[float, float]]) -> Image.Image:
    """An L mask of the shape; drawn at twice the size and reduced, since Pillow's polygons have no soft edges."""
    mask = Image.new("L", (size[0] * 2, size[1] * 2))
    ImageDraw.Draw(mask).polygon([(x * 2, y * 2) for x, y in points], fill=255)
    return mask.reduce(2)


def _ridge(random: Random, width: int, *, base: float, swing: float) -> list[tuple[float, float]]:
    waves = [(random.uniform(0.6, 1.6) * octave, random.uniform(0, math.tau), 1 / octave) for octave in (1, 2, 5, 11)]
    return [
        (x, base + swing * sum(share * math.sin(math.tau * turns * x / width + phase) for turns, phase, share in waves))
        for x in (width * step / 160 for step in range(161))
    ]


def _mix(first: str, second: str, share: float) -> tuple[int, int, int]:
    start, end = ImageColor.getrgb(first), ImageColor.getrgb(second)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start[:3], end[:3], strict=True))
    return red, green, blue


def _finish(picture: Image.Image, caption: str | None, size: str) -> bytes:
    """Caption and label, then the size asked for, then JPEG."""
    width, height = picture.size
    text_px = max(14, min(width, height) // 34)
    pen = ImageDraw.Draw(picture, "RGBA")
    label = ImageFont.load_default(text_px)
    band_top = height - round(text_px * 2.2)
    pen.rectangle((0, band_top, width, height), fill=(6, 12, 28, 190))
    pen.text((width / 2, (band_top + height) / 2), LABEL, font=label, fill="white", anchor="mm")
    if caption:
        words = textwrap.shorten(caption, 48, placeholder=" …")
        heading = ImageFont.load_default(text_px * 1.5)
        pen.text((width / 2, band_top - text_px * 2), words, font=heading, fill=(255, 255, 255, 225), anchor="mm")

    if size != "1K":
        scale = EDGES_PX[size] / 1024
        picture = picture.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    return _encode(picture, size)


def _encode(picture: Image.Image, size: str) -> bytes:
    """JPEG of quality 90, less where a 1K picture would pass 300 KB."""
    for quality in (90, 82, 70):
        encoded = BytesIO()
        picture.save(encoded, "JPEG", quality=quality)
        if size != "1K" or encoded.tell() <= JPEG_1K_BYTES_MAX:
            break
    return encoded.getvalue()
