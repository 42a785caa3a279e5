"""`make bench`: measures Darkroom on this machine, on loopback, beside the obvious alternative.

The stand-in for Gemini, Darkroom and each handler run in a process of their own; the load comes from this one.
At most 4 minutes; `--quick` takes 45 s and judges less. Prints tables, and writes `.darkroom/bench/pipeline.json`.
"""

import argparse
import asyncio
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from rich.console import Console
from uvicorn.loops.auto import auto_loop_factory

from benchmarks import measures, programs, report
from benchmarks.bare import measure
from benchmarks.figures import Findings
from benchmarks.measures import QUICK, Plan
from benchmarks.photos import describe, large_photo, small_photo
from benchmarks.programs import ROOT, Program

OUTPUT = ROOT / ".darkroom" / "bench"
# What the last measure may not eat: ending the processes and printing.
_reserve_s = 6.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 whatever the figures say, 1 if a job of Darkroom's was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description="Measure the pipeline here.")
    parser.add_argument("--quick", action="store_true", help="45 s: one round, few jobs")
    parser.add_argument("--output", type=Path, default=OUTPUT / "pipeline.json", help="where the JSON goes")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    if not (hasattr(os, "killpg") and psutil.POSIX):
        console.print("This benchmark needs Linux or macOS.")
        return 1
    # On the disk that `darkroom serve` would use: in a tmpfs every fsync would be free.
    folder = OUTPUT / f"run-{os.getpid()}"
    try:
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            plan = QUICK if options.quick else Plan()
            findings = runner.run(run(plan, folder, console, quick=options.quick))
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.show(findings, console)
    report.save(findings, options.output)
    console.print(f"JSON: {options.output}", style="dim", highlight=False)
    lost = findings.lost("darkroom") + (findings.endurance.lost if findings.endurance else [])
    for why in lost[:5]:
        console.print(f"lost: {why}", style="red", markup=False)
    uploads = [each.lost for each in (findings.uploads, findings.paced_uploads) if each is not None]
    return 1 if lost or any(uploads) else 0


async def run(plan: Plan, folder: Path, console: Console, *, quick: bool) -> Findings:
    """All measures, one after the other; the last one gets the time that is left."""
    started = time.perf_counter()
    photo = await asyncio.to_thread(_prepare, folder)
    with ExitStack() as stack:
        console.print("Starting the stand-in, Darkroom and both handlers …", style="dim")
        model = stack.enter_context(programs.stand_in(folder))
        starting = (
            programs.darkroom(folder / "a", model.url),
            programs.handler("async", folder, model.url),
            programs.handler("threads", folder, model.url),
        )
        subjects = await asyncio.gather(*(asyncio.to_thread(stack.enter_context, each) for each in starting))
        findings = Findings(machine(folder), setup(plan, photo), quick)
        for program in subjects:
            await measures.warm(program, photo)
        findings.idle_ms_per_s = await measures.idle(subjects[0], plan.idle_s)
        await _rounds(findings, subjects, photo, plan, console, until=started + plan.rounds_s_max)
        console.print(f"{plan.upload_clients} clients upload at once …", style="dim")
        clients, pace = plan.upload_clients, plan.uploads_bytes_per_s
        findings.uploads = await measures.uploads(subjects[0], photo, clients=clients, each=plan.uploads_each)
        if pace is not None:
            findings.paced_uploads = await measures.uploads(
                subjects[0], photo, clients=clients, each=1, bytes_per_s=pace
            )
        console.print("The model's client and the image work on their own …", style="dim")
        findings.bare = await asyncio.to_thread(measure, model.url, folder / "photo.jpg", calls=plan.bare_calls)
        for program in reversed(subjects):
            program.process.stdin.close()
        console.print("Creating jobs on one core …", style="dim")
        findings.creates = await measures.create_rate(folder / "b", model.url, plan)
        console.print(f"{plan.endurance_jobs:,} jobs with a small photo …", style="dim")
        left_s = plan.budget_s - _reserve_s - (time.perf_counter() - started)
        findings.endurance = await measures.endurance(
            folder / "c", model.url, small_photo(), plan, seconds=max(3.0, left_s)
        )
    findings.seconds = time.perf_counter() - started
    return findings


def _prepare(folder: Path) -> bytes:
    """The large photo, also as `photo.jpg` in the new folder."""
    folder.mkdir(parents=True)
    photo = large_photo()
    (folder / "photo.jpg").write_bytes(photo)
    return photo


async def _rounds(
    findings: Findings, subjects: Sequence[Program], photo: bytes, plan: Plan, console: Console, *, until: float
) -> None:
    """In turns, so that whatever else the machine does meets all of them."""
    took = 0.0
    for number in range(plan.rounds):
        began = time.perf_counter()
        if began + took > until:
            console.print(f"No time for round {number + 1} of {plan.rounds}: this machine is slow.", style="yellow")
            return
        # The order turns round each time: nobody always follows the same neighbour.
        for program in subjects if number % 2 == 0 else reversed(subjects):
            console.print(f"Round {number + 1} of {plan.rounds}: {program.name} …", style="dim")
            findings.rounds[program.name].append(await measures.one_round(program, photo, plan))
        took = time.perf_counter() - began


def machine(folder: Path) -> dict[str, str]:
    """Where this was measured."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg()[:2])
    return {
        "When": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "Machine": f"{cores} cores ({_processor()}), {memory:.0f} GiB, {platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "Before we began": f"load {load} (1 and 5 min); fsync of 4 KB {measures.fsync_ms(folder):.2f} ms (median)",
    }


def setup(plan: Plan, photo: bytes) -> dict[str, str]:
    """What was measured."""
    return {
        "Photo": f"{describe(photo)}, baseline JPEG; the model answers one canned JPEG after 0 ms",
        "Load": f"from one more process on the same cores; up to {plan.rounds} round(s) in turns,"
        f" {plan.capacity_s:g} s with {plan.capacity_clients} jobs in flight and {plan.steady_s:g} s at"
        f" {plan.steady_per_s:g} jobs/s, evenly spaced",
        "Darkroom": "`local.run.serve`, all five apps in one process",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
