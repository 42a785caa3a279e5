"""`python -m benchmarks.scale [--images-per-day N ...]`: what so many pictures a day take, cost, and run into.

The sums are scale_sums.py's, the numbers they start from scale_facts.py's (`--facts` lists them with their sources);
docs/scale.md shows these tables (`--markdown`) and says what follows. Nothing is measured and nobody called.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from rich.console import Console
from rich.table import Table

from benchmarks import scale_facts as facts
from benchmarks.scale_facts import Operations
from benchmarks.scale_plot import picture
from benchmarks.scale_sums import (
    Load,
    bill,
    every_fact,
    goal_share,
    holds_from,
    limits,
    model_usd,
    ramp_minutes,
    services,
    share,
)

RATES = (1_000.0, 1_000_000.0, 100_000_000.0)
_SHOWN = (
    "reads", "job_writes", "work_writes", "delivery_writes", "commits", "publishes", "signatures", "puts", "downloads",
    "fetches", "deletes", "log_lines",
)  # fmt: skip
_VARIANTS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "as above": {},
        "without keeping deleted photos": {"soft_delete": False},
        "and pictures do not leave Google": {"soft_delete": False, "egress": False},
        "and a webhook tells, nobody watches": {"soft_delete": False, "egress": False, "watched": False},
        "as above, gemini-3-pro-image": {"model": "gemini-3-pro-image"},
    }
)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table as plain text, to be printed or to stand in a page."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table as docs/scale.md shows it."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def table(self) -> Table:
        """The table for a terminal."""
        table = Table(*self.header, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--images-per-day", type=float, nargs="+", default=list(RATES), metavar="N")
    parser.add_argument("--facts", action="store_true", help="the numbers it starts from, with their sources")
    parser.add_argument("--markdown", action="store_true", help="as in docs/scale.md")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw limits and shares, as in docs/scale.svg")
    options = parser.parse_args(arguments)
    if options.plot:
        options.plot.write_text(picture())
        return 0
    console = Console(width=None if sys.stdout.isatty() else 150)
    for sheet in [facts_sheet()] if options.facts else sheets(options.images_per_day):
        if options.markdown:
            print(f"{sheet.title}\n\n{sheet.markdown()}\n")
        else:
            console.print(sheet.table())
    return 0


def sheets(images_per_day: Sequence[float]) -> list[Sheet]:
    """Counts, a month, shares and limits at these rates."""
    loads = [Load(rate) for rate in images_per_day]
    return [_operations(), _month(loads), _shares(loads), _limits(loads)]


def facts_sheet() -> Sheet:
    """Every number that was not reckoned here."""
    rows = [
        (name, f"{fact.value:.6g}", fact.unit, fact.basis, str(fact.as_of), fact.source) for name, fact in every_fact()
    ]
    return Sheet("What it starts from", ("what", "value", "of what", "basis", "as of", "source"), rows)


def _operations() -> Sheet:
    counted: dict[str, Operations] = {
        "portrait": facts.PORTRAIT,
        "image": facts.IMAGE,
        "+ webhook": facts.WEBHOOK,
        "+ stream": facts.STREAM,
        "+ GET": facts.SHOW,
    }
    rows = [[name.replace("_", " "), *(str(getattr(each, name)) for each in counted.values())] for name in _SHOWN]
    return Sheet("Asked of the engines by one, as a test counts it", ("", *counted), rows)


def _month(loads: Sequence[Load]) -> Sheet:
    rows = [
        ["images/s: average · busiest hour", *(f"{_rate(load.per_s)} · {_rate(load.peak_per_s)}" for load in loads)],
        *(
            [f"instances: {service.name}", *(_instances(load, number) for load in loads)]
            for number, service in enumerate(services(loads[0]))
        ),
        ["Firestore's time to grow, min", *(f"{ramp_minutes(load):.0f}" for load in loads)],
        *(
            [f"$ {product}", *(_usd(_of(load, product)) for load in loads)]
            for product in dict.fromkeys(line.product for line in bill(loads[0]))
        ),
        ["$ all but the model", *(_usd(share(load) * model_usd(load)) for load in loads)],
        ["$ the same, less what is free", *(_usd(share(load, with_free=True) * model_usd(load)) for load in loads)],
        [f"$ {loads[0].model}", *(_usd(model_usd(load)) for load in loads)],
    ]
    return Sheet("A month of portraits, each watched on a stream and fetched once", _header(loads), rows)


def _shares(loads: Sequence[Load]) -> Sheet:
    rows = []
    for name, changes in _VARIANTS.items():
        changed = [replace(load, **changes) for load in loads]  # type: ignore[arg-type]
        least = holds_from(changed[0])
        rows.append([name, *(f"{share(load):.2%}" for load in changed), "never" if least is None else _rounded(least)])
    title = f"All but the model, of the model's price; goal {goal_share:.0%}"
    return Sheet(title, [*_header(loads), "holds from"], rows)


def _limits(loads: Sequence[Load]) -> Sheet:
    rows = [
        [
            limit.name,
            _rounded(limit.images_per_day),
            *("over" if load.images_per_day > limit.images_per_day else "" for load in loads),
            limit.remedy,
        ]
        for limit in limits(loads[0])
    ]
    title = f"What comes first, in a busiest hour of {facts.peak_factor.value:g} times the average"
    return Sheet(title, ["limit", "reached at", *_header(loads)[1:], "then"], rows)


def _header(loads: Sequence[Load]) -> list[str]:
    return ["images a day", *(f"{load.images_per_day:,.0f}" for load in loads)]


def _instances(load: Load, number: int) -> str:
    return f"{math.ceil(services(load)[number].instances(load.peak_per_s)):,}"


def _of(load: Load, product: str) -> float:
    return sum(line.full_usd for line in bill(load) if line.product == product)


def _rate(per_s: float) -> str:
    return _rounded(per_s) if per_s >= 100 else f"{per_s:.2g}"


def _usd(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else _rounded(value)


def _rounded(value: float) -> str:
    """Three digits: nothing here is known better."""
    digits = max(0, math.floor(math.log10(value)) - 2) if value >= 1 else 0
    return f"{round(value, -digits):,.0f}"


if __name__ == "__main__":
    sys.exit(main())
