"""One connection to Firestore through the async client that Google generates: its stream of changes, and reads.

And how long to wait before a stream that broke is opened again.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import Unavailable
from common.google.calls import answered, retry, try_s_max
from common.google.credentials import Loader

if TYPE_CHECKING:
    from google.cloud.firestore_v1.services.firestore import FirestoreAsyncClient
    from google.cloud.firestore_v1.types import BatchGetDocumentsResponse, ListenRequest, ListenResponse
    from grpc.aio import StreamStreamCall

    StreamOfChanges = StreamStreamCall[ListenRequest, ListenResponse | None]

M = TypeVar("M")

stream_s_max = 1800.0
"""After so long a stream is replaced by a fresh one. Google ends them too, some time within the hour."""
steady_s = 30.0
"""A stream that held so long is not held responsible for the breaks before it."""
first_pause_s = 0.5
pause_s_max = 4.0
"""The pause before a reconnection is random, up to a bound that doubles: instances cut off together come back apart."""
quota_pause_s = 60.0
"""After a quota ran out it is between half of this and all of it, as in Google's library for Node."""


class Connection:
    """One TCP connection of its own, shared with no other client; FIRESTORE_EMULATOR_HOST leads it to an emulator."""

    def __init__(self, project: str, database: str, loader: Loader) -> None:
        self.database = f"projects/{project}/databases/{database}"
        self._emulator = os.environ.get("FIRESTORE_EMULATOR_HOST")
        # Firestore routes by this. The emulator lets whoever owns the database past its rules.
        self._metadata = [("google-cloud-resource-prefix", self.database)]
        if self._emulator is not None:
            self._metadata.append(("authorization", "Bearer owner"))
        self._loader = loader
        self._client: FirestoreAsyncClient | None = None

    async def open(self) -> None:
        """Get ready; connects with the first call. Raises Unavailable if nobody says in time who we are."""
        # 200 ms of modules, if nobody has used the store before.
        await self._loader.in_thread(lambda: import_module("google.cloud.firestore_v1.services.firestore"))
        import grpc.aio
        from google.cloud.firestore_v1.services.firestore import FirestoreAsyncClient
        from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcAsyncIOTransport

        # Left to itself, gRPC waits up to two minutes before it tries a broken connection again.
        options = [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.min_reconnect_backoff_ms", 5000),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self._emulator is not None:
            channel = grpc.aio.insecure_channel(self._emulator, options=options)
        else:
            # As the library does: pings find a connection that died without a word. The emulator forbids them.
            options.append(("grpc.keepalive_time_ms", 30_000))
            credentials = await self._loader.credentials()
            channel = FirestoreGrpcAsyncIOTransport.create_channel(credentials=credentials, options=options)
        self._client = FirestoreAsyncClient(transport=FirestoreGrpcAsyncIOTransport(channel=channel))

    async def aclose(self) -> None:
        """Close it; every call that is under way fails. Safe to repeat."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.transport.close()  # type: ignore[no-untyped-call]

    def listen(self, requests: "asyncio.Queue[ListenRequest | None]") -> "StreamOfChanges":
        """A stream of changes, ended by cancelling it. Raises gRPC's errors; yields None for what cannot be parsed.

        It sends requests until the queue gives None.
        """
        call: StreamOfChanges = self._bare.listen(_until_none(requests), timeout=stream_s_max, metadata=self._metadata)
        return call

    async def look(self, document: str) -> "BatchGetDocumentsResponse":
        """The document of that full name as it is now, if it is there, and the store's time. Raises Unavailable."""
        with answered("feed.look"):
            # Around the whole answer: the client's own retry ends where a stream of results begins.
            return await retry()(self._look)(document)

    async def _look(self, document: str) -> "BatchGetDocumentsResponse":
        from google.api_core.exceptions import from_grpc_error
        from google.cloud.firestore_v1.types import BatchGetDocumentsRequest
        from grpc.aio import AioRpcError

        request = BatchGetDocumentsRequest(database=self.database, documents=[document])
        call = self._bare.batch_get_documents(request, timeout=try_s_max, metadata=self._metadata)
        answers: list[BatchGetDocumentsResponse] = []
        try:
            answers = [answer async for answer in call]
        except AioRpcError as exc:
            raise from_grpc_error(exc) from exc  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            # gRPC says it like this, too, when the connection was closed, and nobody has cancelled the caller.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        finally:
            call.cancel()
            # An exception that is kept would keep this frame, and the call its connection.
            del call
        if not answers:
            raise Unavailable("Firestore did not say whether the document is there")
        return answers[0]

    @property
    def _bare(self) -> Any:
        """The calls without the library's wrapper, which hands a call over only when it is connected.

        Who is cancelled before would leave behind a call that nobody can end, and that keeps the connection open.
        """
        if self._client is None:
            raise Unavailable("the connection to Firestore is closed")
        return self._client.transport


class Pauses:
    """How long to wait after each break of one feed's stream."""

    def __init__(self) -> None:
        self._breaks = 0

    def after(self, held_s: float, code: str) -> float:
        """In seconds, for a stream that held so long and ended with that code, a name from grpc.StatusCode."""
        if held_s > steady_s:
            self._breaks = 0
        bound_s = min(pause_s_max, first_pause_s * 2**self._breaks)
        self._breaks = min(self._breaks + 1, 10)
        if code == "RESOURCE_EXHAUSTED":
            return random.uniform(quota_pause_s / 2, quota_pause_s)
        return random.uniform(0, bound_s)


async def _until_none(queue: "asyncio.Queue[M | None]") -> AsyncIterator[M]:
    while (item := await queue.get()) is not None:
        yield item
