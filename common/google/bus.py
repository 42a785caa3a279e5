"""The EventBus port on Pub/Sub; twin of local/engine/bus.py. Its subscriptions push, and are Terraform's to make."""

import asyncio
import os
from typing import TYPE_CHECKING

from common.errors import Unavailable
from common.google.calls import answered, retry, try_s_max
from common.messages import Message, Topic
from common.pubsub import message_attributes

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.pubsub_v1.services.publisher import PublisherAsyncClient


class PubSubBus:
    """Publishes each fact in a call of its own. Opens no connection before the first; heeds PUBSUB_EMULATOR_HOST.

    The batching client would wait 10 ms for company that a fact seldom has.
    """

    def __init__(self, project: str) -> None:
        self._project = project
        self._client: PublisherAsyncClient | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def aclose(self) -> None:
        """Close the connection; what is called after that raises Unavailable."""
        self._closed = True
        if self._client is not None:
            await self._client.transport.close()  # type: ignore[no-untyped-call]

    async def publish(self, topic: Topic, message: Message, *, event_id: str | None = None) -> str:
        """See EventBus.publish. A topic that is not there is Unavailable too: the fact must not be given up for it."""
        client = await self._open()
        request = {
            "topic": f"projects/{self._project}/topics/{topic}",
            "messages": [{"data": message.encode(), "attributes": message_attributes(event_id)}],
        }
        with answered("publish"):
            answer = await client.publish(request, retry=retry(), timeout=try_s_max)
        return answer.message_ids[0]

    async def _open(self) -> "PublisherAsyncClient":
        if self._closed:
            raise Unavailable("the bus is closed")
        async with self._opening:
            if self._client is None:
                with answered("open"):
                    emulator = os.environ.get("PUBSUB_EMULATOR_HOST")
                    # It loads 200 ms of modules and may ask the metadata server who we are.
                    credentials = await asyncio.to_thread(_prepare, emulator)
                    # The channel belongs to the event loop of the thread that makes it.
                    self._client = _client(credentials, emulator)
        return self._client


def _prepare(emulator: str | None) -> "Credentials | None":
    import google.pubsub_v1.services.publisher

    if emulator:
        return None
    import google.auth

    credentials: Credentials = google.auth.default()[0]
    return credentials


def _client(credentials: "Credentials | None", emulator: str | None) -> "PublisherAsyncClient":
    from google.pubsub_v1.services.publisher import PublisherAsyncClient

    if not emulator:
        return PublisherAsyncClient(credentials=credentials)
    import grpc.aio
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport

    # This client alone does not look for the emulator by itself.
    channel = grpc.aio.insecure_channel(emulator)
    return PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
