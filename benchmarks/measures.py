"""Each thing that is measured, one function each; what is started for it also ends in it."""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import programs
from benchmarks.figures import Creates, Endurance, Round, Uploads, median, per_job
from benchmarks.load import Darkroom, Handler, Lost, Subject, at_rate, creates, in_flight, opened
from benchmarks.photos import describe
from benchmarks.probe import probing
from benchmarks.programs import Program, Usage

HEALTH = "/health/live"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: seconds of load, jobs a second, clients at once.

    No round begins that would end after `rounds_s_max`; the last measure ends when `budget_s` is over.
    """

    rounds: int = 3
    rounds_s_max: float = 145.0
    capacity_s: float = 5.0
    capacity_clients: int = 16
    steady_s: float = 7.0
    steady_per_s: float = 5.0
    creates_s: float = 6.0
    creates_clients: int = 32
    upload_clients: int = 50
    uploads_each: int = 3
    # 16 Mbit/s: a phone that has a good day. None leaves this measure out.
    uploads_bytes_per_s: float | None = 2e6
    endurance_jobs: int = 1000
    endurance_clients: int = 8
    bare_calls: int = 30
    idle_s: float = 3.0
    budget_s: float = 235.0


QUICK = Plan(
    rounds=1, capacity_s=2.0, steady_s=2.0, creates_s=1.5, uploads_each=1, uploads_bytes_per_s=None,
    endurance_jobs=50, bare_calls=10, idle_s=1.0, budget_s=42.0,
)  # fmt: skip


async def one_round(program: Program, photo: bytes, plan: Plan) -> Round:
    """One subject's turn, at capacity and then at a steady rate."""
    async with opened() as session:
        subject: Subject = (Darkroom if program.name == "darkroom" else Handler)(session, program.url)
        before, ours = program.usage(), time.process_time()
        async with probing(program.url + HEALTH, every_ms=25) as health_ms:
            hard = await in_flight(subject, photo, clients=plan.capacity_clients, seconds=plan.capacity_s)
        ours = time.process_time() - ours
        between = program.usage()
        steady = await at_rate(subject, photo, per_s=plan.steady_per_s, seconds=plan.steady_s)
        after = program.usage()
    return Round(
        capacity_per_s=len(hard.done) / hard.seconds,
        capacity_cpu=per_job(before, between, len(hard.done)),
        health_ms=health_ms,
        client_cpu_ms=ours * 1000 / max(1, len(hard.done)),
        steady=steady.done,
        steady_cpu=per_job(between, after, len(steady.done)),
        rss=after.rss,
        lost=hard.lost + steady.lost,
    )


async def warm(program: Program, photo: bytes, *, jobs: int = 8) -> None:
    """Some jobs that are not counted. Raises RuntimeError if one of them fails: then nothing can be measured."""
    async with opened() as session:
        subject: Subject = (Darkroom if program.name == "darkroom" else Handler)(session, program.url)
        run = await in_flight(subject, photo, clients=4, seconds=30, jobs_max=jobs)
    if run.lost:
        raise RuntimeError(f"{program.name} does not work: {run.lost[0]}\nits log: {program.log}")


async def idle(program: Program, seconds: float) -> float:
    """CPU milliseconds a second that the process takes with nothing to do."""
    before = program.usage()
    await asyncio.sleep(seconds)
    return (program.usage().cpu_s - before.cpu_s) * 1000 / seconds


async def create_rate(folder: Path, model_url: str, plan: Plan) -> Creates:
    """How many jobs a server on one core opens in a second; the clients run on the other cores.

    A server of its own, because the jobs that are never uploaded to would occupy its sweeps.
    """
    with programs.darkroom(folder, model_url) as program, _one_core_each(program) as pinned:
        async with opened() as session:
            subject = Darkroom(session, program.url)
            await creates(subject, clients=plan.creates_clients, seconds=1)
            before, ours, started = program.usage(), time.process_time(), time.perf_counter()
            found = await creates(subject, clients=plan.creates_clients, seconds=plan.creates_s)
            seconds = time.perf_counter() - started
            used_s = program.usage().own_cpu_s - before.own_cpu_s
            ours = time.process_time() - ours
    return Creates(
        per_s=len(found) / seconds,
        each_ms=found,
        pinned=pinned,
        server_share=used_s / seconds,
        client_share=ours / seconds,
        server_cpu_ms=used_s * 1000 / max(1, len(found)),
    )


async def uploads(
    program: Program, photo: bytes, *, clients: int, each: int, bytes_per_s: float | None = None
) -> Uploads:
    """Health while many clients upload at once, one photo after the other, each at that pace or as fast as it goes.

    The jobs are opened before, and waited for after the health checks.
    """
    async with opened() as session:
        subject = Darkroom(session, program.url)
        jobs = [[await subject.create() for _ in range(each)] for _ in range(clients)]

        async def client(own: Sequence[dict[str, object]]) -> None:
            for job in own:
                with suppress(Lost):
                    # A job that got no photo does not complete, and is counted then.
                    await subject.upload(job, photo, bytes_per_s=bytes_per_s)

        async with probing(program.url + HEALTH, every_ms=5) as health_ms:
            started = time.perf_counter()
            await asyncio.gather(*(client(own) for own in jobs))
            seconds = time.perf_counter() - started
        statuses = await asyncio.gather(*(subject.status(job["id"]) for own in jobs for job in own))
    lost = sum(status != "completed" for status in statuses)
    return Uploads(bytes_per_s, clients, len(statuses), seconds, health_ms, lost)


async def endurance(folder: Path, model_url: str, photo: bytes, plan: Plan, *, seconds: float) -> Endurance:
    """Memory of a fresh server's process tree over many jobs; as many as the seconds allow."""
    with programs.darkroom(folder, model_url) as program:
        await warm(program, photo)
        rss: dict[int, Usage] = {0: program.usage()}
        done, lost, started = 0, list[str](), time.perf_counter()
        async with opened() as session:
            subject = Darkroom(session, program.url)
            for until in (min(100, plan.endurance_jobs), plan.endurance_jobs):
                left_s = seconds - (time.perf_counter() - started)
                run = await in_flight(
                    subject, photo, clients=plan.endurance_clients, seconds=left_s, jobs_max=until - done - len(lost)
                )
                done, lost = done + len(run.done), lost + run.lost
                rss[done] = program.usage()
        took_s = time.perf_counter() - started
    return Endurance(plan.endurance_jobs, done, lost, done / took_s, rss, describe(photo))


def fsync_ms(folder: Path) -> float:
    """The median time to bring 4 KB to the disk below `folder`; Darkroom does so a dozen times a job."""
    folder.mkdir(parents=True, exist_ok=True)
    path, found = folder / "fsync", []
    with path.open("wb", buffering=0) as file:
        for _ in range(50):
            started = time.perf_counter()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            found.append((time.perf_counter() - started) * 1000)
    path.unlink()
    return median(found)


@contextmanager
def _one_core_each(program: Program) -> Iterator[bool]:
    """The program on the last core, this process on the others; whether that was possible."""
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    cores = sorted(os.sched_getaffinity(0))
    pinned = len(cores) > 1 and program.pin(cores[-1])
    if pinned:
        os.sched_setaffinity(0, set(cores[:-1]))
    try:
        yield pinned
    finally:
        os.sched_setaffinity(0, set(cores))
