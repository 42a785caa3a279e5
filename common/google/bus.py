"""The EventBus port on Pub/Sub; twin of local/engine/bus.py. Its subscriptions push, and are Terraform's to make."""

import os
from importlib import import_module
from typing import TYPE_CHECKING

from common.google.calls import retry, try_s_max
from common.google.credentials import Loader
from common.google.opening import Opening
from common.messages import Message, Topic
from common.pubsub import message_attributes

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.pubsub_v1.services.publisher import PublisherAsyncClient


class PubSubBus:
    """Publishes each fact in a call of its own. Opens no connection before the first; heeds PUBSUB_EMULATOR_HOST.

    The batching client would wait 10 ms for company that a fact seldom has.
    """

    def __init__(self, project: str, loader: Loader | None = None) -> None:
        self._project = project
        self._loader = loader or Loader()
        self._opening = Opening("the bus", self._prepare, _client, _close)

    async def aclose(self) -> None:
        """Close the connection; what is called after that, or under way, raises Unavailable."""
        await self._opening.aclose()

    async def publish(self, topic: Topic, message: Message, *, event_id: str | None = None) -> str:
        """See EventBus.publish. A topic that is not there is Unavailable too: the fact must not be given up for it."""
        request = {
            "topic": f"projects/{self._project}/topics/{topic}",
            "messages": [{"data": message.encode(), "attributes": message_attributes(event_id)}],
        }
        async with self._opening.call("publish") as client:
            answer = await client.publish(request, retry=retry(), timeout=try_s_max)
        return answer.message_ids[0]

    async def _prepare(self) -> "Credentials | None":
        """Who we are, unless an emulator is there and does not care."""
        # 200 ms of modules.
        await self._loader.in_thread(lambda: import_module("google.pubsub_v1.services.publisher"))
        return None if os.environ.get("PUBSUB_EMULATOR_HOST") else await self._loader.credentials()


def _client(credentials: "Credentials | None") -> "PublisherAsyncClient":
    from google.pubsub_v1.services.publisher import PublisherAsyncClient

    if credentials is not None:
        return PublisherAsyncClient(credentials=credentials)
    import grpc.aio
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport

    # This client alone does not look for the emulator by itself.
    channel = grpc.aio.insecure_channel(os.environ["PUBSUB_EMULATOR_HOST"])
    return PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))


async def _close(client: "PublisherAsyncClient") -> None:
    await client.transport.close()  # type: ignore[no-untyped-call]
