"""A storage front: buckets on an emulator behind everything that Cloud Storage enforces and the emulator ignores.

Signed requests meet the XML face of the embedded engine with the fakes' public key; requests of the JSON API need the
fakes' token, or none where anonymous ones may ask. `python -m tests.google.front PROJECT` serves one by itself, with
fakes of its own unless GCE_METADATA_HOST is set, and prints a line of JSON when it is ready.
"""

import argparse
import asyncio
import base64
import http.client
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from jwt.algorithms import RSAAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from common.clock import utc_now
from common.messages import Topic
from common.v4 import RSA_ALGORITHM
from local.engine import storage
from local.run import bind
from tests.bench import ALLOWED_ORIGIN
from tests.google.buckets import Answer, Buckets, Publish, refusal
from tests.google.fakes import fakes_running

BUCKETS = ("uploads", "inputs", "results")
_WAYS = ("storage", "upload/storage", "download/storage")
start_s_max = 10.0
_call_s_max = 10.0


class Broken(StrEnum):
    """How a request of the JSON API goes wrong."""

    NOT = "not at all, but the next one may"
    SPOILT = "a byte of what is sent is another when it arrives"
    REFUSED = "503, not applied"
    FORBIDDEN = "403, not applied"
    LOST = "applied, but answered by 503"
    CUT = "applied, but the connection breaks in the middle of the answer"
    DAMAGED = "applied, but a byte of the answer is another"


Faults = defaultdict[str, deque[Broken]]


@dataclass(frozen=True, slots=True)
class Front:
    """A front that answers at `url`; `app` is the same without the network.

    `faults` are met by the next requests of the JSON API, by their way: "storage", "upload" or "download".
    """

    url: str
    app: ASGIApp
    faults: Faults


@asynccontextmanager
async def storage_front(
    project: str,
    *,
    buckets: tuple[str, ...] = BUCKETS,
    announced: str = BUCKETS[0],
    cors_origins: tuple[str, ...] = (ALLOWED_ORIGIN,),
    anonymous: bool = True,
    now: Callable[[], datetime] = utc_now,
    publish: Publish | None = None,
) -> AsyncIterator[Front]:
    """A front with buckets of its own, in a thread. It asks the fakes at GCE_METADATA_HOST for keys and tokens.

    Without `publish` it tells the Pub/Sub emulator, topic `upload-finalized` of the project, before it answers.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkroom-front-")))
        held = Buckets(buckets, announced, folder, now, publish or PubSubTopic(project, Topic.UPLOAD_FINALIZED).publish)
        accounts = Accounts(os.environ["GCE_METADATA_HOST"])
        faults: Faults = defaultdict(deque)
        json_api = _JsonApi(held, accounts, anonymous, faults)
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        routes = [Route(f"/{way}/v1/{{rest:path}}", json_api.serve, methods=methods) for way in _WAYS]
        xml_api = storage.create_app(held, accounts.check, now, cors_origins=cors_origins)
        app = Starlette(routes=[*routes, Mount("/", xml_api)])
        yield Front(stack.enter_context(_served(app)), app, faults)


class Accounts:
    """What the fakes know: whose key signed, and which tokens they gave out."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._keys: dict[str, list[rsa.RSAPublicKey]] = {}

    def check(self, algorithm: str, credential: str, text: bytes, signature: str) -> bool:
        """A CheckSignature for URLs that a service account signed."""
        email = credential.split("/")[0]
        if algorithm != RSA_ALGORITHM:
            return False
        if email not in self._keys:
            status, found = _ask(self._host, "GET", f"/service_accounts/v1/jwk/{quote(email, safe='@')}")
            if status != 200:
                return False
            keys = [RSAAlgorithm.from_jwk(jwk) for jwk in found["keys"]]
            self._keys[email] = [key for key in keys if isinstance(key, rsa.RSAPublicKey)]
        return any(_genuine(key, text, signature) for key in self._keys[email])

    def knows(self, token: str) -> bool:
        """Whether it is an access token of theirs, and still good."""
        status, _ = _ask(self._host, "GET", f"/tokeninfo?access_token={quote(token, safe='')}")
        return status == 200


class PubSubTopic:
    """A topic on the Pub/Sub emulator (PUBSUB_EMULATOR_HOST if not named), made when it is not there."""

    def __init__(self, project: str, topic: Topic, host: str | None = None) -> None:
        self._host = host
        self._path = f"/v1/projects/{project}/topics/{topic}"

    async def publish(self, data: bytes, attributes: Mapping[str, str]) -> None:
        """A Publish for Buckets. Raises RuntimeError unless the emulator has taken it."""
        await asyncio.to_thread(self._tell, data, attributes)

    def _tell(self, data: bytes, attributes: Mapping[str, str]) -> None:
        host = self._host or os.environ["PUBSUB_EMULATOR_HOST"]
        messages = {"messages": [{"data": base64.b64encode(data).decode(), "attributes": dict(attributes)}]}
        status, answer = _ask(host, "POST", f"{self._path}:publish", messages)
        if status == 404:
            _ask(host, "PUT", self._path, {})
            status, answer = _ask(host, "POST", f"{self._path}:publish", messages)
        if status != 200:
            raise RuntimeError(f"the Pub/Sub emulator answered {status}: {answer}")


class _JsonApi:
    """Lets in whoever may ask, and breaks what shall break."""

    def __init__(self, held: Buckets, accounts: Accounts, anonymous: bool, faults: Faults) -> None:
        self._held = held
        self._accounts = accounts
        self._anonymous = anonymous
        self._faults = faults

    async def serve(self, request: Request) -> Response:
        """An endpoint for every request of the JSON API."""
        authorization = request.headers.get("authorization")
        if authorization is None and not self._anonymous:
            return _response(refusal(401, "there is no access token"))
        if authorization is not None and not self._accounts.knows(authorization.removeprefix("Bearer ")):
            return _response(refusal(401, "the access token is not one of ours"))
        path = request.scope["raw_path"].decode("latin-1")
        waiting = self._faults[path.split("/")[1]]
        fault = waiting.popleft() if waiting else None
        body = await request.body()
        if fault is Broken.REFUSED or fault is Broken.FORBIDDEN:
            return _response(refusal(503 if fault is Broken.REFUSED else 403, fault))
        if fault is Broken.SPOILT:
            half = len(body) // 2
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        query = request.scope["query_string"].decode("latin-1")
        headers = {name: value for name, value in request.headers.items() if name != "authorization"}
        answer = await self._held.answer(request.method, path, query, headers, body)
        match fault:
            case Broken.LOST:
                return _response(refusal(503, fault))
            case Broken.CUT:
                return _Cut(answer.body, answer.status, headers=dict(answer.headers))
            case Broken.DAMAGED:
                answer = replace(answer, body=answer.body[:-1] + bytes([answer.body[-1] ^ 1]))
        return _response(answer)


class _Cut(Response):
    """Half of the body that its head promises."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body)[: len(self.body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, headers=dict(answer.headers))


class _Server(uvicorn.Server):
    """Uvicorn without its pauses of a tenth of a second, which every test would wait for."""

    async def main_loop(self) -> None:
        # Another thread sets the flag.
        while not self.should_exit:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await asyncio.sleep(0)


@contextmanager
def _served(app: ASGIApp) -> Iterator[str]:
    """The app on a free loopback port, in a thread."""
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", loop="asyncio")
    server = _Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="front")
    thread.start()
    try:
        until = time.monotonic() + start_s_max
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise RuntimeError("the storage front did not start")
            time.sleep(0.001)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def _genuine(key: rsa.RSAPublicKey, text: bytes, signature: str) -> bool:
    try:
        key.verify(bytes.fromhex(signature), text, padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True


def _ask(host: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(host, timeout=_call_s_max)
    try:
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")
    finally:
        connection.close()


async def _serve(project: str, buckets: tuple[str, ...], origins: tuple[str, ...], more: Mapping[str, str]) -> None:
    async with storage_front(project, buckets=buckets, announced=buckets[0], cors_origins=origins) as front:
        environment = {**more, "STORAGE_EMULATOR_HOST": front.url, "STORAGE_URL": front.url}
        sys.stdout.write(json.dumps({"url": front.url, "environment": environment}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", help="whose topic upload-finalized hears of new uploads, on PUBSUB_EMULATOR_HOST")
    parser.add_argument("--bucket", action="append", help="a bucket's name; the first is the one that is announced")
    parser.add_argument("--cors-origin", action="append", help="a web origin that may upload and download")
    asked = parser.parse_args()
    with ExitStack() as stack:
        more: dict[str, str] = {}
        if "GCE_METADATA_HOST" not in os.environ:
            more = stack.enter_context(fakes_running()).environment
            os.environ.update(more)
        origins = tuple(asked.cors_origin or [ALLOWED_ORIGIN])
        asyncio.run(_serve(asked.project, tuple(asked.bucket or BUCKETS), origins, more))


if __name__ == "__main__":
    main()
