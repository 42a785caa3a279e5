"""One request to an app in this process, without a network: how the bus and the scheduler reach the private apps.

httpx2's ASGITransport does the same for 0.4 ms a request, five of them a job (docs/decisions/0007).
"""

from collections.abc import Mapping

from starlette.types import ASGIApp, Message

answer_bytes_max = 4096


async def post(app: ASGIApp, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """POST `body` and wait for the whole answer: its status and its first 4 KB.

    Raises what the app raises, and EOFError if it ends without a whole answer.
    """
    asked, ended, status, answer = False, False, 500, b""

    async def receive() -> Message:
        nonlocal asked
        if asked:
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, answer, ended
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            answer += message.get("body", b"")[: answer_bytes_max - len(answer)]
            ended = not message.get("more_body", False)

    sent = {"host": "push.local", "content-type": "application/json", "content-length": str(len(body)), **headers}
    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "https",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
            "client": ("127.0.0.1", 0),
            "server": ("push.local", 443),
        },
        receive,
        send,
    )
    if not ended:
        raise EOFError("the app ended without a whole answer")
    return status, answer
