"""A proxy between Google's clients and the emulators that breaks chosen calls; it knows no message, only bytes."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from tests.faults import Fault, Plan


@dataclass
class FaultProxy:
    """One emulator with a plan of faults for each project; `slow_s` is longer than one try of any client of ours."""

    host: str = ""
    plans: dict[str, Plan] = field(default_factory=lambda: defaultdict(Plan))
    slow_s: float = 2.2


@asynccontextmanager
async def fault_proxy(target: str) -> AsyncIterator[FaultProxy]:
    """A proxy before the emulator at `target`, on a free loopback port."""
    proxy = FaultProxy()
    server = grpc.aio.server()
    async with grpc.aio.insecure_channel(target) as channel:
        server.add_generic_rpc_handlers((_Forwarder(proxy, channel),))
        proxy.host = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield proxy
        finally:
            await server.stop(None)


class _Forwarder(grpc.GenericRpcHandler):
    """Every method, of whatever kind, is a stream of bytes in each direction."""

    def __init__(self, proxy: FaultProxy, channel: grpc.aio.Channel) -> None:
        self._proxy = proxy
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method

        async def forward(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            first = await anext(requests)
            fault = self._proxy.plans[_project(first)].meets(path.rpartition("/")[2])
            if fault in _REFUSALS:
                await context.abort(_REFUSALS[fault], "a fault of the test")
            metadata = [(key, value) for key, value in context.invocation_metadata() if not key.startswith(":")]
            method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(path)
            call = method(_all(first, requests), metadata=_passed_on(metadata))
            try:
                async for answer in call:
                    if fault is Fault.SLOW:
                        await asyncio.sleep(self._proxy.slow_s)
                    if fault is not Fault.LOST_ANSWER:
                        yield answer
            except grpc.aio.AioRpcError as exc:
                await context.abort(exc.code(), exc.details() or "", tuple(exc.trailing_metadata() or ()))
            finally:
                call.cancel()
            if fault is Fault.LOST_ANSWER:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "a fault of the test")

        return grpc.stream_stream_rpc_method_handler(forward)


_REFUSALS = {
    Fault.ABORTED: grpc.StatusCode.ABORTED,
    Fault.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Fault.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}


async def _all(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for request in rest:
        yield request


def _passed_on(metadata: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    # gRPC sets these itself for each connection.
    return [(key, value) for key, value in metadata if key not in {"user-agent", "grpc-accept-encoding"}]


def _project(request: bytes) -> str:
    """The project that a request names first: all ids in our tests are lower-case letters, digits and dashes."""
    _, found, rest = request.partition(b"projects/")
    return rest.partition(b"/")[0].decode() if found else ""
