"""docs/scale.svg: where each limit lies, and what everything but the model costs, over images a day; drawn by hand."""

import math
from collections.abc import Iterator
from dataclasses import replace
from html import escape

from benchmarks.scale_sums import Load, goal_share, limits, share

_low, _high = 1e3, 1e9
_left, _right, _row = 330, 950, 26
_LOADS = (
    ("watched and fetched", "#5b8def", Load(1)),
    ("told by webhook, fetched inside Google", "#3d9970", Load(1, watched=False, egress=False, soft_delete=False)),
)


def picture() -> str:
    """The whole SVG."""
    found = limits(Load(1))
    bars = 70 + _row * len(found)
    height = bars + 190
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 980 {height}" font-size="13" role="img"'
        " font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\""
        ' aria-label="Limits and costs over images a day">',
        "<title>Limits and costs over images a day</title>",
        f'<rect width="980" height="{height}" rx="14" fill="#fbfcfe" stroke="#dfe6ef"/>',
        '<text x="20" y="30" fill="#33415c" font-weight="600">Reached at so many images a day:</text>',
        *_ticks(height - 40),
    ]
    for number, limit in enumerate(found):
        y = 50 + _row * number
        width = _x(limit.images_per_day) - _left
        parts.append(f'<rect x="{_left}" y="{y}" width="{width:.0f}" height="16" rx="3" fill="#e0a94f"/>')
        parts.append(
            f'<text x="{_left - 10}" y="{y + 13}" text-anchor="end" fill="#33415c">{escape(limit.name)}</text>'
        )
    parts += _curves(bars, bars + 140)
    return "\n".join([*parts, "</svg>", ""])


def _ticks(bottom: int) -> Iterator[str]:
    for exponent in range(3, 10):
        x, label = _x(10.0**exponent), ("1 k", "10 k", "100 k", "1 M", "10 M", "100 M", "1 G")[exponent - 3]
        yield f'<path d="M{x:.0f} 40V{bottom}" stroke="#dfe6ef"/>'
        yield f'<text x="{x:.0f}" y="30" text-anchor="middle" fill="#4b6584">{label}</text>'


def _curves(top: int, bottom: int) -> Iterator[str]:
    """All but the model, of the model's price; a point for each tenth of a decade."""

    def y(value: float) -> float:
        return bottom - min(value, 0.03) / 0.03 * (bottom - top)

    for percent in (0, 1, 2, 3):
        place = f'x="{_left - 10}" y="{y(percent / 100) + 4:.0f}"'
        yield f'<text {place} text-anchor="end" fill="#4b6584">{percent} %</text>'
    goal = f"M{_left} {y(goal_share):.0f}H{_right}"
    yield f'<path d="{goal}" stroke="#c0392b" stroke-dasharray="5 4"/>'
    for number, (name, color, load) in enumerate(_LOADS):
        rates = [_low * 10 ** (step / 10) for step in range(round(10 * math.log10(_high / _low)) + 1)]
        points = " ".join(f"{_x(rate):.0f},{y(share(replace(load, images_per_day=rate))):.0f}" for rate in rates)
        yield f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
        yield f'<text x="20" y="{top + 20 + 20 * number}" fill="{color}">{escape(name)}</text>'
    yield f'<text x="20" y="{top}" fill="#33415c" font-weight="600">All but the model, of its price:</text>'


def _x(images_per_day: float) -> float:
    place = math.log10(max(_low, images_per_day) / _low) / math.log10(_high / _low)
    return _left + place * (_right - _left)
