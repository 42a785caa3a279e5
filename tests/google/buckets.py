"""Buckets as Cloud Storage keeps them: gcp-storage-emulator reads, keeps and answers, and what it ignores is done here.

That is: preconditions, checked in one step with the write; generations that rise; names and times of objects by a clock
of our choice; sums on every answer. Requests reach the emulator's handlers one at a time, without a network.
"""

import json
import re
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPResponse
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from gcp_storage_emulator.handlers.buckets import create_bucket  # type: ignore[import-untyped]
from gcp_storage_emulator.server import RequestHandler  # type: ignore[import-untyped]
from gcp_storage_emulator.storage import Storage  # type: ignore[import-untyped]

from common.errors import Conflict, NotFound
from common.notifications import finalized
from common.ports import Blob
from local.engine.blobs import Draft

Publish = Callable[[bytes, Mapping[str, str]], Awaitable[None]]
Resource = dict[str, Any]

_OBJECT = re.compile(r"/(?:upload/|download/)?storage/v1/b/(?P<bucket>[^/]+)/o(?:/(?P<name>[^/]+))?")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Buckets:
    """The buckets in `names`, and no others. What appears in `announced` is told to `publish`, once it is there."""

    def __init__(
        self, names: tuple[str, ...], announced: str, folder: Path, now: Callable[[], datetime], publish: Publish
    ) -> None:
        self._emulator = _Emulator(names)
        self._announced = announced
        self._folder = folder
        self._now = now
        self._publish = publish
        # Of a thread, because tests may call the front from another event loop than its server's.
        self._lock = threading.Lock()
        self._generation = 0

    # What the XML face asks (local/engine/storage.py).

    def draft(self, content_type: str, metadata: Mapping[str, str]) -> Draft:
        """A file to write an object's bytes to."""
        return Draft(self._folder / secrets.token_hex(16), content_type, metadata)

    async def finalize(self, draft: Draft, bucket: str, name: str, *, size: int, only_if_absent: bool) -> Blob:
        """Make the draft the object. Raises Conflict if there is one, NotFound if there is no such bucket."""
        described = {"name": name, "contentType": draft.content_type, "metadata": dict(draft.metadata)}
        body, content_type = _multipart(described, _take(draft.path))
        path = f"/upload/storage/v1/b/{quote(bucket, safe='')}/o"
        headers = {"host": "front", "content-type": content_type}
        with self._lock:
            if only_if_absent and self._emulator.there(bucket, name) is not None:
                raise Conflict(f"{bucket}/{name} exists already")
            answer = self._emulator.ask("POST", f"{path}?uploadType=multipart", headers, body)
            if answer.status == 404:
                raise NotFound(f"there is no bucket {bucket}")
            assert answer.status == 200, answer
            assert int(json.loads(answer.body)["size"]) == size
            blob = self._stamp(bucket, name)
        await self.announce(blob)
        return blob

    async def discard(self, draft: Draft) -> None:
        """Forget a draft."""
        _take(draft.path)

    async def stat(self, bucket: str, name: str) -> Blob | None:
        """What is there, or None."""
        with self._lock:
            found = self._emulator.there(bucket, name)
            return None if found is None else _blob(found)

    async def locate(self, bucket: str, name: str) -> tuple[Blob, Path]:
        """The object and a file of it. Raises NotFound."""
        with self._lock:
            found = self._emulator.there(bucket, name)
            if found is None:
                raise NotFound(f"{bucket}/{name} does not exist")
            path: Path = self._folder / str(found["generation"])
            _fill(path, self._emulator.content(bucket, name))
            return _blob(found), path

    # What the JSON API is asked.

    async def answer(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """What Cloud Storage answers to a request whose sender is known; `path` is as sent, percent-encoded."""
        asked = _OBJECT.fullmatch(path)
        if asked is None:
            return refusal(403, "only objects may be looked at here, not buckets")
        bucket, parameters = unquote(asked["bucket"]), dict(parse_qsl(query, keep_blank_values=True))
        name = unquote(asked["name"]) if asked["name"] else self._uploaded(parameters, headers, body)
        target = f"{path}?{query}"
        with self._lock:
            if name is None:
                return self._emulator.ask(method, target, headers, body) if method == "GET" else refusal(400, "what?")
            answer, blob = self._exchange(method, target, headers, body, bucket, name, parameters)
        if blob is not None:
            await self.announce(blob)
        return answer

    async def announce(self, blob: Blob) -> None:
        """Tell of a new object, if its bucket does that."""
        if blob.bucket == self._announced:
            await self._publish(*finalized(blob))

    def _exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, bucket: str, name: str,
        parameters: Mapping[str, str],
    ) -> tuple[Answer, Blob | None]:  # fmt: skip
        before = self._emulator.there(bucket, name)
        refused = _refused(before, parameters)
        if refused is not None:
            return refused, None
        answer = self._emulator.ask(method, target, headers, body)
        after = self._emulator.there(bucket, name)
        if method in {"GET", "DELETE"} or after is None or after is before:
            media = method == "GET" and parameters.get("alt") == "media"
            return answer if after is None or not media else _with_sums(answer, after), None
        told = headers.get("x-goog-hash", "")
        if "crc32c=" in told and f"crc32c={after['crc32c']}" not in told:
            self._emulator.ask("DELETE", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}", headers, b"")
            return refusal(400, "the sum is not that of the bytes"), None
        blob = self._stamp(bucket, name)
        return Answer(200, {"content-type": "application/json"}, json.dumps(after).encode()), blob

    def _uploaded(self, parameters: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> str | None:
        """The name of the object that an upload makes; None if the request is no upload."""
        if "upload_id" in parameters:
            return self._emulator.resumed(parameters["upload_id"])
        match parameters.get("uploadType"):
            case "media":
                return parameters.get("name")
            case "multipart":
                described = body.split(b"\r\n\r\n", 1)[1].split(b"\r\n--", 1)[0]
            case "resumable":
                described = body
            case _:
                return None
        return str(parameters.get("name") or json.loads(described)["name"])

    def _stamp(self, bucket: str, name: str) -> Blob:
        """Give a new object its generation, which is a time in microseconds and rises, and its times by our clock."""
        found = self._emulator.there(bucket, name)
        assert found is not None
        now = self._now()
        self._generation = max(self._generation + 1, int(now.timestamp() * 1_000_000))
        moment = now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        place = f"b/{bucket}/o/{quote(name, safe='')}"
        found |= {
            "id": f"{bucket}/{name}/{self._generation}",
            "generation": str(self._generation),
            "metageneration": "1",
            "timeCreated": moment,
            "updated": moment,
            "selfLink": f"/storage/v1/{place}",
            "mediaLink": f"/download/storage/v1/{place}?generation={self._generation}&alt=media",
        }
        return _blob(found)


class _Emulator:
    """The emulator's handlers and what they keep."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._storage = _Memory(use_memory_fs=True)
        for name in names:
            # Without a copy of whatever is deleted.
            create_bucket(name, self._storage)["softDeletePolicy"] = {"retentionDurationSeconds": "0"}

    def there(self, bucket: str, name: str) -> Resource | None:
        """The object's resource itself, not a copy."""
        found: Resource | None = self._storage.objects.get(bucket, {}).get(name)
        return found

    def content(self, bucket: str, name: str) -> bytes:
        content: bytes = self._storage.get_file(bucket, name)
        return content

    def resumed(self, upload_id: str) -> str | None:
        """The name of the object that a resumable upload makes, or None if there is no such upload."""
        found = self._storage.resumable.get(upload_id)
        return None if found is None else str(found["name"])

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        sent = {**headers, "content-length": str(len(body))}
        sent.pop("transfer-encoding", None)
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
        handler = _Handler(self._storage, "\r\n".join(lines).encode("latin-1") + body)
        answer = HTTPResponse(_Wire(handler.wfile.getvalue()), method=method)  # type: ignore[arg-type]
        answer.begin()
        unwanted = {"server", "date", "content-length"}
        kept = {name.lower(): value for name, value in answer.getheaders() if name.lower() not in unwanted}
        return Answer(answer.status, kept, answer.read())


class _Memory(Storage):  # type: ignore[misc]
    def _write_config_to_file(self) -> None:
        """Nothing: with every change it would write down again all that there is."""


class _Handler(RequestHandler):  # type: ignore[misc]
    def __init__(self, storage: Storage, request: bytes) -> None:
        self.storage = storage
        self.server = SimpleNamespace(server_address=("front", 80))
        self.client_address = ("front", 0)
        self.rfile, self.wfile = BytesIO(request), BytesIO()
        self.close_connection = True
        self.handle_one_request()


class _Wire:
    """A socket that has already received everything."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self._data)


def refusal(status: int, message: str) -> Answer:
    """An error as the JSON API tells it."""
    error = {"error": {"code": status, "message": message, "errors": [{"message": message, "domain": "global"}]}}
    return Answer(status, {"content-type": "application/json"}, json.dumps(error).encode())


def _refused(there: Resource | None, parameters: Mapping[str, str]) -> Answer | None:
    generation = "0" if there is None else there["generation"]
    if parameters.get("generation", generation) != generation:
        return refusal(404, "No such object")
    if parameters.get("ifGenerationMatch", generation) != generation:
        return refusal(412, "At least one of the pre-conditions you specified did not hold.")
    return None


def _with_sums(answer: Answer, found: Resource) -> Answer:
    """What tells a reader which bytes these are, also where they are only a part of the object."""
    about = {
        "x-goog-generation": found["generation"],
        "x-goog-metageneration": found["metageneration"],
        "x-goog-hash": f"crc32c={found['crc32c']},md5={found['md5Hash']}",
        "x-goog-stored-content-length": found["size"],
        "x-goog-stored-content-encoding": found.get("contentEncoding", "identity"),
    }
    if "contentEncoding" in found:
        about["content-encoding"] = found["contentEncoding"]
    return Answer(answer.status, {**answer.headers, **about}, answer.body)


def _blob(found: Resource) -> Blob:
    created_at = datetime.fromisoformat(found["timeCreated"])
    metadata = found.get("metadata") or {}
    return Blob(
        found["bucket"], found["name"], int(found["generation"]), int(found["size"]), found["contentType"], created_at,
        metadata,
    )  # fmt: skip


def _multipart(described: Resource, content: bytes) -> tuple[bytes, str]:
    """https://cloud.google.com/storage/docs/uploading-objects#rest-upload-objects: the resource, then the bytes."""
    boundary = secrets.token_hex(16)
    kinds = ("application/json; charset=UTF-8", "application/octet-stream")
    parts = zip(kinds, (json.dumps(described).encode(), content), strict=True)
    body = b"".join(f"--{boundary}\r\ncontent-type: {kind}\r\n\r\n".encode() + data + b"\r\n" for kind, data in parts)
    return body + f"--{boundary}--".encode(), f"multipart/related; boundary={boundary}"


def _fill(path: Path, content: bytes) -> None:
    if not path.exists():
        path.write_bytes(content)


def _take(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    path.unlink()
    return content
