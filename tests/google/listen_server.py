"""A server that speaks Firestore's Listen word by word as a test tells it: for what the emulator never says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
from google.cloud.firestore_v1.types import (
    BatchGetDocumentsRequest,
    BatchGetDocumentsResponse,
    ListenRequest,
    ListenResponse,
    Target,
    TargetChange,
)

from common.google.documents import put, to_fields
from common.job import Job

_deadline_s = 10
_kinds = TargetChange.TargetChangeType


class Conversation:
    """One stream, from the server's side: hear what is asked, say anything."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[ListenRequest] = asyncio.Queue()
        self.to_say: asyncio.Queue[ListenResponse | bytes | grpc.StatusCode | None] = asyncio.Queue()

    async def added(self) -> Target:
        """The target of the next request. Raises TimeoutError after 10 s without one."""
        request = await self._request()
        assert "add_target" in request, request
        return request.add_target

    async def removed(self) -> int:
        """The id in the next request, which removes a target."""
        request = await self._request()
        assert "remove_target" in request, request
        return request.remove_target

    def current(self, target: int, token: bytes = b"", read_time: datetime | None = None) -> None:
        """Say that all is told about it, up to the token, and to that time."""
        self._change(_kinds.CURRENT, target, resume_token=token, read_time=read_time)

    def reset(self, target: int) -> None:
        """Say that it is told anew."""
        self._change(_kinds.RESET, target)

    def remove(self, target: int, code: grpc.StatusCode) -> None:
        """Say that it is not listened to any longer, and why."""
        self._change(_kinds.REMOVE, target, cause={"code": code.value[0]})

    def consistent(self, token: bytes, read_time: datetime | None = None) -> None:
        """Say that all targets are told about up to the token, and to that time."""
        self.to_say.put_nowait(ListenResponse(target_change=TargetChange(resume_token=token, read_time=read_time)))

    def tell(self, job: Job, *targets: int) -> None:
        """Say how the job's document looks."""
        document = {"name": _name(job), "update_time": datetime.now(UTC)}
        response = ListenResponse(document_change={"document": document, "target_ids": targets})
        for name, content in to_fields(job, "save").items():
            put(content, ListenResponse.pb(response).document_change.document.fields[name])
        self.to_say.put_nowait(response)

    def deleted(self, job: Job, *targets: int) -> None:
        """Say that the job's document is gone."""
        change = {"document": _name(job), "removed_target_ids": targets}
        self.to_say.put_nowait(ListenResponse(document_delete=change))

    def out_of_view(self, job: Job, *targets: int) -> None:
        """Say that the document is no business of the targets any more."""
        change = {"document": _name(job), "removed_target_ids": targets}
        self.to_say.put_nowait(ListenResponse(document_remove=change))

    def count(self, target: int, count: int) -> None:
        """Say how many documents the target has."""
        self.to_say.put_nowait(ListenResponse(filter={"target_id": target, "count": count}))

    def garble(self) -> None:
        """Say something that is no message."""
        self.to_say.put_nowait(b"\xff")

    def abort(self, code: grpc.StatusCode) -> None:
        """End the stream with an error."""
        self.to_say.put_nowait(code)

    async def hear(self, requests: AsyncIterator[ListenRequest]) -> None:
        """Take what is asked; when that ends, the stream does."""
        async for request in requests:
            self.asked.put_nowait(request)
        self.to_say.put_nowait(None)

    async def _request(self) -> ListenRequest:
        async with asyncio.timeout(_deadline_s):
            return await self.asked.get()

    def _change(self, kind: int, target: int, **more: Any) -> None:
        change = TargetChange(target_change_type=_kinds(kind), target_ids=[target], **more)
        self.to_say.put_nowait(ListenResponse(target_change=change))


class ListenServer:
    """Hands each stream to the test, in the order of their coming. Who looks for a document hears that there is none.

    `now` is the time of every look; none is answered while `answering` is not set.
    """

    def __init__(self) -> None:
        self.host = ""
        self.now = datetime.now(UTC)
        self.answering = asyncio.Event()
        self.answering.set()
        self._waiting: asyncio.Queue[Conversation] = asyncio.Queue()
        self._looks = asyncio.Semaphore(0)

    async def conversation(self) -> Conversation:
        """The next stream. Raises TimeoutError if none is opened within 10 s."""
        async with asyncio.timeout(_deadline_s):
            return await self._waiting.get()

    async def until_looks(self, number: int) -> None:
        """Wait for so many more to look for a document. Raises TimeoutError after 10 s."""
        async with asyncio.timeout(_deadline_s):
            for _ in range(number):
                await self._looks.acquire()

    async def listen(
        self, requests: AsyncIterator[ListenRequest], context: Any
    ) -> AsyncIterator[ListenResponse | bytes]:
        """Firestore.Listen; ends when its client has nothing more to ask."""
        conversation = Conversation()
        self._waiting.put_nowait(conversation)
        hearing = asyncio.create_task(conversation.hear(requests))
        try:
            while (said := await conversation.to_say.get()) is not None:
                if isinstance(said, grpc.StatusCode):
                    await context.abort(said, "as the test wishes")
                else:
                    yield said
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    async def look(self, request: BatchGetDocumentsRequest, context: Any) -> AsyncIterator[BatchGetDocumentsResponse]:
        """Firestore.BatchGetDocuments."""
        self._looks.release()
        await self.answering.wait()
        yield BatchGetDocumentsResponse(missing=request.documents[0], read_time=self.now)


@asynccontextmanager
async def listen_server() -> AsyncIterator[ListenServer]:
    """Such a server on a free port of loopback."""
    spoken = ListenServer()
    server = grpc.aio.server()
    handlers = {
        "Listen": grpc.stream_stream_rpc_method_handler(
            spoken.listen,
            request_deserializer=ListenRequest.deserialize,
            response_serializer=_written,
        ),
        "BatchGetDocuments": grpc.unary_stream_rpc_method_handler(
            spoken.look,
            request_deserializer=BatchGetDocumentsRequest.deserialize,
            response_serializer=BatchGetDocumentsResponse.serialize,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("google.firestore.v1.Firestore", handlers),))
    spoken.host = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield spoken
    finally:
        await server.stop(None)


def _written(said: ListenResponse | bytes) -> bytes:
    return said if isinstance(said, bytes) else ListenResponse.serialize(said)


def _name(job: Job) -> str:
    return f"projects/test/databases/(default)/documents/jobs/{job.id}"
