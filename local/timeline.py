"""Where a job's time went, worked out from the job itself and from what its client saw; and how that looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.table import Table
from rich.text import Text

from common.views import JobView

bar_cells = 20


@dataclass(frozen=True, slots=True)
class Seen:
    """What the client saw, by the clock of the same machine: its request, the end on the stream, the webhook.

    `notified_at` is None if no webhook came.
    """

    asked_at: datetime
    told_at: datetime
    notified_at: datetime | None


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of time, in milliseconds since the client's request."""

    name: str
    start_ms: float
    end_ms: float
    note: str


def steps(job: JobView, seen: Seen) -> list[Step]:
    """The way of a completed portrait, in order; the last two, its news on two channels, run side by side.

    Raises ValueError for a job that did not go all that way.
    """
    timings = job.timings
    known = (timings.upload_ms, timings.ingest_ms, timings.queued_ms, timings.model_ms)
    settled = [attempt.settled_at for attempt in job.attempts if attempt.settled_at is not None]
    if None in known or not settled or job.finished_at is None:
        raise ValueError(f"job {job.id} is {job.status}; its way was not complete")
    upload_ms, ingest_ms, queued_ms, model_ms = (timedelta(milliseconds=value or 0) for value in known)
    uploaded_at = job.created_at + upload_ms
    checked_at = uploaded_at + ingest_ms
    claimed_at = checked_at + queued_ms
    generated_at = max(settled)
    way = [
        ("created", job.created_at, "POST /v1/jobs"),
        ("uploaded", uploaded_at, "PUT to the signed URL"),
        ("checked", checked_at, "the photo, in ingest"),
        ("queued", claimed_at, "waiting for a worker"),
        ("generating", generated_at, f"the model took {_ms(model_ms / timedelta(milliseconds=1))}"),
        ("completed", job.finished_at, "pictures kept"),
    ]
    found, start = [], seen.asked_at
    for name, end, note in way:
        found.append(_step(name, start, end, note, seen))
        start = end
    found.append(_step("streamed", start, seen.told_at, "SSE: the job is done", seen))
    if seen.notified_at is not None:
        found.append(_step("notified", start, seen.notified_at, "webhook, signature right", seen))
    return found


def drawn(way: Sequence[Step]) -> Table:
    """The steps as a table 80 columns wide, with a bar from start to end of each."""
    total_ms = max(step.end_ms for step in way)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("  step", no_wrap=True)
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("", width=bar_cells + 1, no_wrap=True)
    table.add_column("", no_wrap=True, style="dim")
    for step in way:
        bar = Text(_bar(step, total_ms), style="magenta" if step.name == "generating" else "cyan")
        table.add_row(f"  {step.name}", _ms(step.end_ms), _ms(step.end_ms - step.start_ms), bar, step.note)
    return table


def _step(name: str, start: datetime, end: datetime, note: str, seen: Seen) -> Step:
    def since(moment: datetime) -> float:
        return (moment - seen.asked_at) / timedelta(milliseconds=1)

    # Milliseconds are rounded in the job's timings, so neighbours may overlap by one.
    return Step(name, since(start), max(since(start), since(end)), note)


def _bar(step: Step, total_ms: float) -> str:
    scale = bar_cells / total_ms
    begin = min(bar_cells - 1, int(step.start_ms * scale))
    cells = round((step.end_ms - step.start_ms) * scale)
    return " " * begin + ("█" * min(cells, bar_cells - begin) if cells else "▏")


def _ms(value: float) -> str:
    return f"{value:,.0f} ms"
