"""The findings as tables for people and as JSON; nothing is measured here."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import MB, SUBJECTS, Findings, median, percentile
from benchmarks.load import Done

NOT_MEASURED = (
    "Google's model (the stand-in answers at once), Cloud Run, Cloud Storage, Pub/Sub, Firestore and their networks;"
    " cold starts; TLS; clients far away; bursts above the steady rate; data folders that grew for weeks."
)
_NAMES = {
    "darkroom": "Darkroom",
    "async": "handler, async: photo on the event loop",
    "threads": "handler, blocking in threads",
}


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise and what was measured; `met` is None where this run cannot tell."""

    name: str
    goal: str
    measured: str
    value: float
    met: bool | None


def goals(findings: Findings) -> list[Goal]:
    """Every goal, judged on this run."""
    found: list[Goal] = []

    def add(name: str, goal: str, measured: str, value: float, met: bool, *, judged: bool = True) -> None:
        found.append(Goal(name, goal, measured, value, met if judged and not math.isnan(value) else None))

    steady = findings.steady("darkroom")
    told = [done.told_ms for done in steady]
    lost = findings.lost("darkroom")
    for share, limit in ((0.5, 200), (0.99, 500)):
        value = percentile(told, share)
        name = f"upload finished → completed, p{share * 100:g}, at 5 jobs/s"
        add(name, f"≤ {limit} ms", f"{value:.0f} ms ({len(told)} jobs)", value, value <= limit and not lost)
    own = findings.own_ms(steady=True)
    if own is not None:
        add("own CPU a job, beside image work and Gemini's client", "≤ 15 ms", f"{own:.1f} ms", own, own <= 15)
    if (creates := findings.creates) is not None:
        measured = f"{creates.per_s:.0f}/s" + ("" if creates.pinned else " (not pinned to a core)")
        add("POST /v1/jobs on one core", "≥ 500/s", measured, creates.per_s, creates.per_s >= 500)
    if (endurance := findings.endurance) is not None:
        whole = endurance.done + len(endurance.lost) >= 1000
        measured = f"{len(endurance.lost)} lost of {endurance.done + len(endurance.lost):,}"
        some = bool(endurance.lost)
        add("jobs lost of 1,000", "none", measured, len(endurance.lost), not some, judged=whole or some)
        growth = endurance.growth / MB
        name = "memory growth of all processes over 1,000 jobs"
        add(name, "≤ 100 MB", f"{growth:+.0f} MB", growth, growth <= 100, judged=whole or growth > 100)
    if (uploads := findings.uploads) is not None:
        value = percentile(uploads.health_ms, 0.99)
        name = f"/health/live p99 while {uploads.clients} clients upload"
        add(name, "≤ 20 ms", f"{value:.1f} ms ({len(uploads.health_ms)} checks)", value, value <= 20)
    return found


def show(findings: Findings, console: Console) -> None:
    """Print everything: goals first, then details, the comparison, and what this says nothing about."""
    _heading(findings, console)
    table = _table("Goals", "", "goal", "measured", "")
    for goal in goals(findings):
        mark = {True: "[green]met[/]", False: "[red]MISSED[/]", None: "not judged"}[goal.met]
        table.add_row(goal.name, goal.goal, goal.measured, mark)
    console.print(table)
    table = _table("Details", "", "")
    for name, text in _details(findings):
        table.add_row(name, text)
    console.print(table)
    console.print(_comparison(findings))
    console.print(
        "A handler's latency is its one answer; Darkroom's is create, upload, news and fetching the picture, and all"
        " of it is on the disk meanwhile. The handlers keep nothing.",
        style="dim",
    )
    console.print(f"Not measured: {NOT_MEASURED}", style="dim")


def save(findings: Findings, path: Path) -> None:
    """Write summary and raw values as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body: dict[str, Any] = {
        "goals": [asdict(goal) for goal in goals(findings)],
        "comparison": {subject: summary(findings, subject) for subject in SUBJECTS},
        "not_measured": NOT_MEASURED,
        **asdict(findings),
    }
    path.write_text(json.dumps(body, indent=1, default=str) + "\n")


def summary(findings: Findings, subject: str) -> dict[str, float]:
    """One subject's medians."""
    steady = [done.total_ms for done in findings.steady(subject)]
    return {
        "jobs_per_s": findings.capacity_per_s(subject),
        "darkroom_jobs_per_s_ratio": findings.ratio(subject),
        "total_p50_ms": percentile(steady, 0.5),
        "total_p99_ms": percentile(steady, 0.99),
        "cpu_ms_per_job_steady": findings.cpu(subject, steady=True).all_ms,
        "cpu_ms_per_job_capacity": findings.cpu(subject, steady=False).all_ms,
        "health_p50_ms": percentile(findings.health_ms(subject), 0.5),
        "health_p99_ms": percentile(findings.health_ms(subject), 0.99),
        "rss_mb": findings.rss(subject) / MB,
        "lost": len(findings.lost(subject)),
    }


def _heading(findings: Findings, console: Console) -> None:
    console.print()
    for name, text in {**findings.machine, **findings.setup}.items():
        console.print(f"[bold]{name}[/]: {text}", highlight=False)
    if findings.quick:
        console.print("[yellow]--quick: one round, few jobs; a p99 here is the slowest of them.[/]")


def _details(findings: Findings) -> Iterator[tuple[str, str]]:
    steady = findings.steady("darkroom")

    def both(values: list[float]) -> str:
        return f"p50 {percentile(values, 0.5):.1f} ms, p99 {percentile(values, 0.99):.1f} ms"

    yield "at 5 jobs/s: POST /v1/jobs", both([done.create_ms for done in steady])
    yield "at 5 jobs/s: PUT of the photo", both([done.upload_ms for done in steady])
    yield "at 5 jobs/s: upload finished → completed", both([done.told_ms for done in steady])
    yield "… of which (medians)", _parts(steady)
    yield "CPU a job at 5 jobs/s", _cpu(findings, steady=True)
    yield "CPU a job at capacity", _cpu(findings, steady=False)
    yield "CPU with nothing to do", f"{findings.idle_ms_per_s:.1f} ms a second, in the figures above"
    clients = median(turn.client_cpu_ms for turn in findings.rounds["darkroom"])
    yield "CPU of the load generator", f"{clients:.1f} ms a job of Darkroom's, on the same cores, in no figure"
    if (bare := findings.bare) is not None:
        text = f"{bare.client_async_ms:.1f} ms async, {bare.client_blocking_ms:.1f} ms blocking, CPU a call"
        yield "google-genai on its own", text
        text = f"{bare.shrink_ms:.0f} ms shrink + {bare.check_ms:.0f} ms check and thumbnail"
        yield "image work on its own", f"{text}; the handler's shrink {bare.naive_shrink_ms:.0f} ms"
    if (creates := findings.creates) is not None:
        text = f"{both(creates.each_ms)}; server {creates.server_cpu_ms:.2f} ms CPU each"
        shares = f"server {creates.server_share:.0%} of its core, clients {creates.client_share:.0%} of theirs"
        yield "POST /v1/jobs, as many as it takes", f"{text}; {shares}"
    for uploads in (findings.uploads, findings.paced_uploads):
        if uploads is not None:
            pace = "as fast as it goes" if uploads.bytes_per_s is None else f"at {uploads.bytes_per_s / MB:g} MB/s each"
            text = f"{uploads.photos} photos in {uploads.seconds:.1f} s; health {both(uploads.health_ms)}"
            yield f"{uploads.clients} clients upload {pace}", f"{text}; {uploads.lost} jobs lost"
    if (endurance := findings.endurance) is not None:
        cpu = f"CPU a job: image work {endurance.cpu.children_ms:.1f} ms, server {endurance.cpu.own_ms:.1f} ms"
        yield "many jobs, small photos", f"{endurance.per_s:.1f} jobs/s ({endurance.photo}); {cpu}"
        for number, usage in endurance.rss.items():
            sizes = f"{usage.rss / MB:.0f} MB: server {usage.own_rss / MB:.0f}, its processes"
            yield f"memory (RSS) after {number:,} jobs", f"{sizes} {usage.children_rss / MB:.0f}"
    yield "this benchmark took", f"{findings.seconds:.0f} s"


def _parts(steady: list[Done]) -> str:
    names = list(steady[0].parts) if steady else []
    return ", ".join(f"{name} {percentile([done.parts[name] for done in steady], 0.5):.0f} ms" for name in names)


def _cpu(findings: Findings, *, steady: bool) -> str:
    cpu, own = findings.cpu("darkroom", steady=steady), findings.own_ms(steady=steady)
    split = "" if own is None else f", of which Gemini's client about {cpu.own_ms - own:.1f} and our own {own:.1f}"
    return f"{cpu.all_ms:.1f} ms: image work {cpu.children_ms:.1f}, server {cpu.own_ms:.1f}{split}"


def _comparison(findings: Findings) -> Table:
    title = "The same photo through one web handler (same machine, in turns; medians)"
    table = _table(title, "", *(_NAMES[subject] for subject in SUBJECTS))
    figures = {subject: summary(findings, subject) for subject in SUBJECTS}

    def row(name: str, text: str, *keys: str) -> None:
        table.add_row(name, *(text.format(*(figures[subject][key] for key in keys)) for subject in SUBJECTS))

    row("jobs/s, 16 in flight", "{:.1f}", "jobs_per_s")
    row("Darkroom is so many times as fast", "{:.2f} ×", "darkroom_jobs_per_s_ratio")
    row("photo sent → picture here, 5 jobs/s", "p50 {:.0f} ms, p99 {:.0f} ms", "total_p50_ms", "total_p99_ms")
    row("CPU a job, 5 jobs/s", "{:.0f} ms", "cpu_ms_per_job_steady")
    row("CPU a job, at capacity", "{:.0f} ms", "cpu_ms_per_job_capacity")
    row("health at capacity", "p50 {:.1f} ms, p99 {:.1f} ms", "health_p50_ms", "health_p99_ms")
    row("memory (RSS), all processes", "{:.0f} MB", "rss_mb")
    row("jobs lost", "{:.0f}", "lost")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
