"""A project's topics and subscriptions on the Pub/Sub emulator, and what the emulator says about their messages."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import grpc.aio
from google.pubsub_v1 import types
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

from common.messages import Topic

call_s_max = 10
ack_deadline_s = 600
# Pub/Sub's least, https://cloud.google.com/pubsub/docs/handling-failures
attempts_max = 5
_page = 1000

Q = TypeVar("Q")


class Subscriptions:
    """Each topic gets a push subscription, and a topic with a pull subscription for what is given up.

    There is no retry policy: with one, the emulator adds its backoff to the second it waits anyway.
    """

    def __init__(self, host: str, project: str) -> None:
        self._channel = grpc.aio.insecure_channel(host)
        # The bare transports, because the clients warn of `return_immediately`, and everything here is immediate.
        self._publisher = PublisherGrpcAsyncIOTransport(channel=self._channel)
        self._subscriber = SubscriberGrpcAsyncIOTransport(channel=self._channel)
        self._prefix = f"projects/{project}"
        self._made: list[str] = []
        self._dead: dict[Topic, list[bytes]] = {}

    async def aclose(self) -> None:
        """Remove the subscriptions, so that the emulator pushes no more, and close the connection."""
        await asyncio.gather(
            *(
                _call(self._subscriber.delete_subscription, types.DeleteSubscriptionRequest(subscription=name))
                for name in self._made
            )
        )
        await self._channel.close()

    async def create(self, topic: Topic, endpoint: str) -> None:
        """The topic, pushing to `endpoint`."""
        named, dead = self._topic(topic), self._topic(f"{topic}-dead")
        await asyncio.gather(*(_call(self._publisher.create_topic, types.Topic(name=name)) for name in (named, dead)))
        push = types.Subscription(
            topic=named,
            push_config=types.PushConfig(push_endpoint=endpoint),
            ack_deadline_seconds=ack_deadline_s,
            dead_letter_policy=types.DeadLetterPolicy(dead_letter_topic=dead, max_delivery_attempts=attempts_max),
        )
        await asyncio.gather(
            self._subscribe(topic, push),
            self._subscribe(f"{topic}-probe", types.Subscription(topic=named)),
            self._subscribe(f"{topic}-dead", types.Subscription(topic=dead)),
        )

    async def publish(self, topic: Topic, data: bytes, attributes: Mapping[str, str]) -> str:
        """Publish as another service of Google's does; answers the message's id."""
        message = types.PubsubMessage(data=data, attributes=attributes)
        request = types.PublishRequest(topic=self._topic(topic), messages=[message])
        answer: types.PublishResponse = await _call(self._publisher.publish, request)
        return answer.message_ids[0]

    async def unacknowledged(self, topic: Topic) -> set[str]:
        """The ids of all messages that the push subscription still has to deliver, whatever their state.

        A snapshot holds exactly these; a second subscription that is put back to it gives them out, and disturbs
        nothing. One call at a time.
        """
        snapshot = f"{self._prefix}/snapshots/{topic}"
        probe = self._subscription(f"{topic}-probe")
        taking = types.CreateSnapshotRequest(name=snapshot, subscription=self._subscription(topic))
        await _call(self._subscriber.create_snapshot, taking)
        await _call(self._subscriber.seek, types.SeekRequest(subscription=probe, snapshot=snapshot))
        found: set[str] = set()
        while messages := await self._pull(probe):
            found |= {message.message.message_id for message in messages}
        await _call(self._subscriber.delete_snapshot, types.DeleteSnapshotRequest(snapshot=snapshot))
        return found

    async def dead_letters(self, topic: Topic) -> list[bytes]:
        """The data of what was given up until now."""
        kept = self._dead.setdefault(topic, [])
        name = self._subscription(f"{topic}-dead")
        while messages := await self._pull(name):
            ack_ids = [message.ack_id for message in messages]
            await _call(self._subscriber.acknowledge, types.AcknowledgeRequest(subscription=name, ack_ids=ack_ids))
            kept += [message.message.data for message in messages]
        return list(kept)

    async def _pull(self, name: str) -> list[types.ReceivedMessage]:
        request = types.PullRequest(subscription=name, return_immediately=True, max_messages=_page)
        answer: types.PullResponse = await _call(self._subscriber.pull, request)
        return list(answer.received_messages)

    async def _subscribe(self, name: str, subscription: types.Subscription) -> None:
        subscription.name = self._subscription(name)
        await _call(self._subscriber.create_subscription, subscription)
        self._made.append(subscription.name)

    def _topic(self, name: str) -> str:
        return f"{self._prefix}/topics/{name}"

    def _subscription(self, name: str) -> str:
        return f"{self._prefix}/subscriptions/{name}"


async def _call(method: Callable[[Q], Any], request: Q) -> Any:
    async with asyncio.timeout(call_s_max):
        return await method(request)
