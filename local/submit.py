"""What `darkroom submit`, `imagine` and `watch` do: jobs ordered, followed and fetched. Nothing is parsed here."""

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.job import Status
from common.views import JobView
from local import photos
from local.client import Client, Refused
from local.progress import Board, Line, ending, printable, state_of

photos_at_once = 4
stem_chars_max = 40


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to do with each job: wait for its end, save its pictures (which waits), and how to report."""

    wait: bool
    out: Path | None
    json: bool

    @property
    def follows(self) -> bool:
        """Whether the end of the job is waited for."""
        return self.wait or self.out is not None


async def submit(client: Client, paths: Sequence[Path], order: Mapping[str, object], wishes: Wishes) -> bool:
    """A portrait of each photo, a few at a time; answers whether all went well.

    Raises WrongUse before the first job if one file is no photo, Refused if the server wants none of them.
    """
    types = {path: photos.content_type_of(path) for path in paths}
    gate = asyncio.Semaphore(photos_at_once)

    async def one(path: Path) -> bool:
        async with gate:
            line = board.line(path.name, total_bytes=photos.size_of(path))
            job = await client.create({**order, "kind": "portrait", "content_type": types[path]})
            try:
                await client.upload(job, path, line.sent)
            except Refused as exc:
                line.ends()
                with suppress(Refused):
                    await client.cancel(job.id)
                _tell(board, wishes, path.name, await client.job(job.id), (), problem=exc)
                return False
            return await _follow(client, board, line, job, wishes, name=path.name, stem=path.stem)

    with Board(json=wishes.json) as board:
        return all(await _all(*(one(path) for path in paths)))


async def imagine(client: Client, order: Mapping[str, object], wishes: Wishes) -> bool:
    """An image from words; answers whether it went well."""
    words = str(order["prompt"])
    with Board(json=wishes.json) as board:
        line = board.line(words)
        job = await client.create({**order, "kind": "image"})
        return await _follow(client, board, line, job, wishes, name=None, stem=_stem(words))


async def watch(client: Client, job_id: str, *, as_json: bool) -> bool:
    """Print each state until the end; answers whether the job completed."""
    job = await client.job(job_id)
    board = Board(json=as_json)
    async for state in client.watch(job):
        job = state
        if as_json:
            board.result(job.model_dump_json())
        else:
            moment = (job.changed_at or job.created_at).astimezone()
            board.result(f"{moment:%H:%M:%S}  {printable(ending(job) if job.done else state_of(job))}")
    if not as_json:
        for line in _links(job):
            board.result(line)
    return job.status is Status.COMPLETED


async def _follow(
    client: Client, board: Board, line: Line, job: JobView, wishes: Wishes, *, name: str | None, stem: str
) -> bool:
    if not wishes.follows:
        line.ends()
        _tell(board, wishes, name, await client.job(job.id), ())
        return True
    async for state in client.watch(job):
        job = state
        line.state(job)
    files = []
    for image in job.images:
        if wishes.out is not None and image.name is not None:
            body = await client.picture(job, image)
            save = (body, image.content_type, wishes.out, f"{stem}-{image.index + 1}", job.id)
            files.append(await asyncio.to_thread(photos.save, *save))
    line.ends()
    _tell(board, wishes, name, job, files)
    return job.status is Status.COMPLETED


def _tell(
    board: Board,
    wishes: Wishes,
    name: str | None,
    job: JobView,
    files: Sequence[Path],
    *,
    problem: Refused | None = None,
) -> None:
    if wishes.json:
        told: dict[str, Any] = {"photo": name} if name is not None else {}
        told |= {"job": job.model_dump(mode="json"), "files": [str(file) for file in files]}
        if problem is not None:
            told["error"] = {"code": problem.code, "detail": problem.detail, "advice": problem.advice}
        board.result(json.dumps(told))
        return
    title = "" if name is None else f"{printable(name)}: "
    if problem is not None:
        board.result(f"{title}{printable(str(problem))}")
    elif not wishes.follows:
        board.result(f"{title}job {job.id} is under way; follow it: darkroom watch {job.id}")
    else:
        board.result(f"{title}{printable(ending(job))}{' (stand-in)' if job.stand_in else ''}")
        for line in [f"  {file}" for file in files] or _links(job):
            board.result(line)


def _links(job: JobView) -> list[str]:
    return [f"  {link}" for image, link in zip(job.images, job.links.images, strict=False) if image.name is not None]


def _stem(words: str) -> str:
    kept = "".join(char if char.isalnum() else " " for char in words.lower()).split()
    stem = ""
    for word in kept:
        if len(stem) + len(word) >= stem_chars_max:
            break
        stem = f"{stem}-{word}" if stem else word
    return stem or "image"


async def _all(*works: Coroutine[Any, Any, bool]) -> list[bool]:
    """Run together; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as exc:
        raise exc.exceptions[0] from exc
    return [task.result() for task in tasks]
