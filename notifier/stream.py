"""Server-sent events of one job: the present state first, then each change. HTTP framing is sse-starlette's."""

import asyncio
from collections.abc import AsyncIterator

from sse_starlette import ServerSentEvent

from common.errors import NotFound
from common.job import Job
from common.ports import Engine
from common.settings import Settings
from common.views import signed_view


async def job_events(engine: Engine, settings: Settings, job: Job) -> AsyncIterator[ServerSentEvent]:
    """Events named `job`, id `{job}.{revision}`, data as `GET /v1/jobs/{id}`; ends with the job or after `stream_s`.

    A client that comes back needs no memory of ours: it gets the present state. `retry` asks it to wait 2 s.
    """
    try:
        async with asyncio.timeout(settings.stream_s), engine.feed.watch_job(job.id) as states:
            async for state in states:
                view = await signed_view(state, settings, engine.blobs)
                data = view.__pydantic_serializer__.to_json(view, warnings=False).decode()
                yield ServerSentEvent(data, event="job", id=f"{state.id}.{state.revision}", retry=2000)
                if state.done:
                    return
    except TimeoutError:
        yield ServerSentEvent("", event="reconnect", retry=0)


async def find(engine: Engine, owner: str, job_id: str) -> Job:
    """The owner's job. Raises NotFound, for foreign jobs as for unknown ones."""
    stored = await engine.store.get(Job, job_id)
    if stored is None or stored.record.owner != owner:
        raise NotFound(f"there is no job {job_id}")
    return stored.record
