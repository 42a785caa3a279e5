"""The HTTP face of buckets as Cloud Storage's XML API has it, for signed requests alone; nothing is kept here."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from common.errors import Conflict, NotFound, Unavailable
from common.ports import Blob
from common.v4 import BadSignature, CheckSignature, verify
from local.engine.blobs import Draft, sync

_chunk_bytes = 1024 * 1024
_object_bytes_max = 5 * 1024**4
"""https://cloud.google.com/storage/quotas#objects, where nothing smaller is signed."""


class Objects(Protocol):
    """What lies behind the face: FileBlobs, or what a test puts there."""

    def draft(self, content_type: str, metadata: Mapping[str, str]) -> Draft:
        """A place to write an object's bytes to, before `finalize`."""
        ...

    async def finalize(self, draft: Draft, bucket: str, name: str, *, size: int, only_if_absent: bool) -> Blob:
        """Make a draft that is on the disk the object. Raises Conflict if there is one."""
        ...

    async def discard(self, draft: Draft) -> None:
        """Forget a draft."""
        ...

    async def stat(self, bucket: str, name: str) -> Blob | None:
        """What is there, or None."""
        ...

    async def locate(self, bucket: str, name: str) -> tuple[Blob, Path]:
        """The object and a file of it, for serving. Raises NotFound."""
        ...


def create_app(
    blobs: Objects, check: CheckSignature, now: Callable[[], datetime], *, cors_origins: tuple[str, ...]
) -> Starlette:
    """Routes `/{bucket}/{name}`: PUT, GET and HEAD with a V4 signature; errors are Cloud Storage's XML."""

    async def serve(request: Request) -> Response:
        try:
            _verify(request, check, now())
            bucket, name = request.path_params["bucket"], request.path_params["name"]
            if request.method == "PUT":
                return await _put(request, blobs, bucket, name)
            blob, path = await blobs.locate(bucket, name)
            headers = {"x-goog-generation": str(blob.generation), "cache-control": "private, max-age=3600"}
            return _Picture(path, media_type=blob.content_type, headers=headers)
        except BadSignature as exc:
            return _error(exc.status, exc.code, exc.message)
        except NotFound:
            return _error(404, "NoSuchKey", "The specified key does not exist.")
        except Conflict:
            return _error(412, "PreconditionFailed", "The object is already there; look at the job.")
        except Unavailable as exc:
            return _error(503, "ServiceUnavailable", exc.detail)

    cors = Middleware(
        CORSMiddleware,
        allow_origins=cors_origins,
        allow_methods=["GET", "PUT"],
        allow_headers=["content-type", "x-goog-content-length-range", "x-goog-if-generation-match"],
        expose_headers=["x-goog-generation"],
        max_age=3600,
    )
    return Starlette(routes=[Route("/{bucket}/{name:path}", serve, methods=["GET", "PUT"])], middleware=[cors])


class _Picture(FileResponse):
    # Each chunk is a thread hop, and most pictures are below 1 MB.
    chunk_size = _chunk_bytes


def _verify(request: Request, check: CheckSignature, now: datetime) -> None:
    raw_path: bytes = request.scope["raw_path"]
    query = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    verify(request.method, raw_path.decode("latin-1"), query, headers, check=check, now=now)


async def _put(request: Request, blobs: Objects, bucket: str, name: str) -> Response:
    low, high = _length_range(request)
    declared = request.headers.get("content-length")
    if declared is not None and not (declared.isascii() and declared.isdigit()):
        return _error(400, "InvalidArgument", "Content-Length is malformed.")
    if declared is not None and (len(declared) > 18 or int(declared) > high):
        return _error(400, "EntityTooLarge", f"The upload is larger than the {high} bytes that were signed.")
    only_if_absent = request.headers.get("x-goog-if-generation-match") == "0"
    if only_if_absent and await blobs.stat(bucket, name) is not None:
        raise Conflict(f"{bucket}/{name} exists already")
    prefix = "x-goog-meta-"
    metadata = {k.removeprefix(prefix): v for k, v in request.headers.items() if k.startswith(prefix)}
    draft = blobs.draft(request.headers.get("content-type", "application/octet-stream"), metadata)
    try:
        with draft.path.open("xb") as file:
            size = await _receive(request, file, high)
        if declared is not None and size <= high and size != int(declared):
            await blobs.discard(draft)
            return _error(400, "IncompleteBody", "The upload has not the length that Content-Length says.")
        if not low <= size <= high:
            await blobs.discard(draft)
            code = "EntityTooLarge" if size > high else "EntityTooSmall"
            return _error(400, code, f"The upload must have {low} to {high} bytes.")
        blob = await blobs.finalize(draft, bucket, name, size=size, only_if_absent=only_if_absent)
    except ClientDisconnect:
        await blobs.discard(draft)
        return _error(400, "IncompleteBody", "The upload broke off; send it again.")
    except OSError as exc:
        await blobs.discard(draft)
        raise Unavailable(f"the data folder does not take objects: {exc.strerror}") from exc
    return Response(status_code=200, headers={"x-goog-generation": str(blob.generation)})


async def _receive(request: Request, file: BinaryIO, bytes_max: int) -> int:
    """Write the body in large chunks off the event loop; stop reading just past the limit."""
    size, chunks, waiting = 0, list[bytes](), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > bytes_max:
            return size
        chunks.append(chunk)
        waiting += len(chunk)
        if waiting >= _chunk_bytes:
            await asyncio.to_thread(file.writelines, chunks)
            chunks, waiting = [], 0

    def finish() -> int:
        file.writelines(chunks)
        return sync(file)

    return await asyncio.to_thread(finish)


def _length_range(request: Request) -> tuple[int, int]:
    signed = request.headers.get("x-goog-content-length-range")
    if signed is None:
        return 0, _object_bytes_max
    low, _, high = signed.partition(",")
    return int(low), int(high)


def _error(status: int, code: str, message: str) -> Response:
    text = (
        f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    )
    return Response(text, status, media_type="application/xml; charset=UTF-8")
