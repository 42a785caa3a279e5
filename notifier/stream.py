"""Server-sent events of one job: the present state first, then each change. HTTP framing is sse-starlette's."""

import asyncio
from collections.abc import AsyncIterator

import anyio
from sse_starlette import ServerSentEvent

from common.errors import Unavailable
from common.job import Job
from common.links import ResultLinks
from common.ports import Engine
from common.settings import Settings
from common.telemetry import logger
from common.views import signed_view

log = logger(__name__)


async def job_events(
    engine: Engine, settings: Settings, links: ResultLinks, job: Job, closing: anyio.Event
) -> AsyncIterator[ServerSentEvent]:
    """Events named `job`, id `{job}.{revision}`, data as `GET /v1/jobs/{id}`; ends with the job or after `stream_s`.

    A client that comes back needs no memory of ours: it gets the present state. `retry` asks it to wait 2 s. Before
    the end of a stream whose job goes on, also when `closing` is set or the feed breaks, the event `reconnect` says so.
    """
    until = asyncio.get_running_loop().time() + settings.stream_s
    told = False
    try:
        async with engine.feed.watch_job(job.id) as states:
            while (state := await _next(states, until, closing)) is not None:
                yield await _event(state, settings, links)
                told = True
                if state.done:
                    return
    except TimeoutError:
        # A server that stops needs a moment until it, or another one, answers again.
        yield ServerSentEvent("", event="reconnect", retry=2000 if closing.is_set() else 0)
    except Unavailable as exc:
        log.warning("stream.broken", extra={"job_id": job.id, "detail": exc.detail})
        if not told:
            # As it was read when the client asked; who comes back every two seconds follows the job even so.
            yield await _event(job, settings, links)
            if job.done:
                return
        yield ServerSentEvent("", event="reconnect", retry=2000)


async def _event(job: Job, settings: Settings, links: ResultLinks) -> ServerSentEvent:
    view = await signed_view(job, settings, links)
    data = view.__pydantic_serializer__.to_json(view, warnings=False).decode()
    return ServerSentEvent(data, event="job", id=f"{job.id}.{job.revision}", retry=2000)


async def _next(states: AsyncIterator[Job], until: float, closing: anyio.Event) -> Job | None:
    """The next state, or None after the last. Raises TimeoutError when the loop's time is `until` or `closing` is set.

    No deadline is ever open while the caller yields: it would strike in whatever the reader of the stream does then.
    """
    coming, closed = asyncio.ensure_future(anext(states, None)), asyncio.create_task(closing.wait())
    try:
        left_s = max(0.0, until - asyncio.get_running_loop().time())
        await asyncio.wait([coming, closed], timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            raise TimeoutError
        return coming.result()
    finally:
        coming.cancel()
        closed.cancel()
        await asyncio.gather(coming, closed, return_exceptions=True)
