"""Topics and push subscriptions on the Pub/Sub emulator, as Terraform makes them on Google Cloud."""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta

from common.messages import Topic
from local.engine.dispatcher import PushPolicy

_call_s_max = 10.0


async def subscribe(project: str, endpoints: Mapping[Topic, str], policy: PushPolicy) -> None:
    """A topic, its push subscription, and a dead-letter topic with a pull subscription, for each endpoint.

    Safe to repeat: a subscription that exists gets the new endpoint. Only on the emulator at PUBSUB_EMULATOR_HOST.
    """
    import grpc
    from google.api_core.exceptions import AlreadyExists
    from google.pubsub_v1.services.publisher import PublisherAsyncClient
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
    from google.pubsub_v1.services.subscriber import SubscriberAsyncClient
    from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
    from google.pubsub_v1.types import DeadLetterPolicy, PushConfig, RetryPolicy, Subscription

    async with grpc.aio.insecure_channel(os.environ["PUBSUB_EMULATOR_HOST"]) as channel:
        publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
        subscriber = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))

        async def make(topic: Topic, endpoint: str) -> None:
            name, letters = f"projects/{project}/topics/{topic}", f"projects/{project}/topics/{topic}-dead"
            with suppress(AlreadyExists):
                await publisher.create_topic(name=letters, timeout=_call_s_max)
            with suppress(AlreadyExists):
                await publisher.create_topic(name=name, timeout=_call_s_max)
            with suppress(AlreadyExists):
                kept = Subscription(name=dead_letters(project, topic), topic=letters)
                await subscriber.create_subscription(kept, timeout=_call_s_max)
            pushed = Subscription(
                name=f"projects/{project}/subscriptions/{topic}",
                topic=name,
                push_config=PushConfig(push_endpoint=endpoint),
                ack_deadline_seconds=int(policy.ack_deadline_s),
                retry_policy=RetryPolicy(
                    minimum_backoff=timedelta(seconds=policy.backoff_min_s),
                    maximum_backoff=timedelta(seconds=policy.backoff_max_s),
                ),
                dead_letter_policy=DeadLetterPolicy(
                    dead_letter_topic=letters, max_delivery_attempts=policy.attempts_max
                ),
            )
            try:
                await subscriber.create_subscription(pushed, timeout=_call_s_max)
            except AlreadyExists:
                await subscriber.modify_push_config(
                    subscription=pushed.name, push_config=pushed.push_config, timeout=_call_s_max
                )

        await asyncio.gather(*(make(topic, endpoint) for topic, endpoint in endpoints.items()))


def dead_letters(project: str, topic: Topic) -> str:
    """The subscription that keeps what the topic's route never took."""
    return f"projects/{project}/subscriptions/{topic}-dead"
