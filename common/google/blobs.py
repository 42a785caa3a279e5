"""The BlobStore port on Cloud Storage; twin of local/engine/blobs.py. The first call that needs the SDK loads it.

Signing needs no SDK, no thread and no key: common/v4.py says what is signed, Identity has it signed.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from common import v4
from common.errors import Conflict, NotFound, Unavailable
from common.google.calls import call_s_max, translated
from common.google.identity import Identity
from common.google.objects import Objects, bytes_a_second_min
from common.google.opening import Opening
from common.ports import Blob, SignedRequest
from common.settings import MIB, Settings
from common.telemetry import logger

log = logger(__name__)

T = TypeVar("T")

calls_max = 32
"""Calls under way at once: as many threads, and as many kept connections. Whoever comes later waits for a thread."""
end_s_max = 2.0
"""How long calls under way may hold up the end; a process has 10 s from SIGTERM."""
_bucket_known = timedelta(minutes=10)
_read_bytes_expected = 16 * MIB


class CloudBlobs:
    """Objects in Cloud Storage, by its synchronous client in threads; anonymous where STORAGE_EMULATOR_HOST leads.

    A call is given up after 5 s and one more for each MiB that travels, its wait for a token and a thread included.
    Every transfer is checked by its CRC32C. Where an object is absent, its bucket is looked for, once in ten minutes.
    """

    def __init__(self, settings: Settings, identity: Identity, now: Callable[[], datetime]) -> None:
        self._url = settings.storage_url.rstrip("/")
        self._identity = identity
        self._now = now
        self._threads = ThreadPoolExecutor(calls_max, thread_name_prefix="cloud-storage")
        self._under_way: set[Future[Any]] = set()
        self._opening = Opening("the blob store", self._prepare, lambda objects: objects, self._end)
        self._life = self._opening.life
        self._found_at: dict[str, datetime] = {}

    async def put(
        self, bucket: str, name: str, data: bytes | Path, *, content_type: str, metadata: Mapping[str, str]
    ) -> Blob:
        """See BlobStore.put. Conflict may also mean that an earlier try of this call was applied."""
        with translated("put"):
            size = _size(data)

        def write(objects: Objects) -> Blob:
            return objects.write(bucket, name, data, size, content_type, metadata)

        try:
            written = await self._call(f"put into {bucket}", write, size)
        except NotFound as exc:
            raise _no_bucket(bucket) from exc
        except Unavailable as exc:
            # Who may create but not delete is told 403, whatever the precondition, where it would replace an object.
            if _is_forbidden(exc.__cause__) and await self.stat(bucket, name) is not None:
                raise Conflict(f"{bucket}/{name} exists already") from exc
            raise
        self._found_at[bucket] = self._now()
        return written

    async def stat(self, bucket: str, name: str) -> Blob | None:
        """See BlobStore.stat."""
        try:
            return await self._find("stat in", bucket, lambda objects: objects.describe(bucket, name))
        except NotFound:
            return None

    async def download(self, bucket: str, name: str, target: Path, *, generation: int | None = None) -> Blob:
        """See BlobStore.download. Two calls: what it is, then the bytes of exactly that generation."""
        blob = await self._find("stat in", bucket, lambda objects: objects.describe(bucket, name, generation))

        def write(objects: Objects) -> None:
            with target.open("xb") as file:
                try:
                    objects.fetch(bucket, name, blob.generation, file)
                except BaseException:
                    target.unlink()
                    raise

        def forget() -> None:
            target.unlink(missing_ok=True)

        await self._call(f"download from {bucket}", write, blob.size, undo=forget)
        return blob

    async def read(self, bucket: str, name: str) -> bytes:
        """See BlobStore.read. Meant for what fits into memory: 16 MiB have their time."""

        def fetch(objects: Objects) -> bytes:
            with BytesIO() as file:
                objects.fetch(bucket, name, None, file)
                return file.getvalue()

        return await self._find("read from", bucket, fetch, _read_bytes_expected)

    async def delete(self, bucket: str, name: str) -> None:
        """See BlobStore.delete."""
        with suppress(NotFound):
            await self._find("delete in", bucket, lambda objects: objects.delete(bucket, name))

    async def sign_put(
        self, bucket: str, name: str, *, content_type: str, bytes_max: int, expires_s: int
    ) -> SignedRequest:
        """See BlobStore.sign_put."""
        return await self._sign("PUT", bucket, name, v4.upload_headers(content_type, bytes_max), expires_s)

    async def sign_get(self, bucket: str, name: str, *, expires_s: int) -> SignedRequest:
        """See BlobStore.sign_get. The signer must be allowed to read the object."""
        return await self._sign("GET", bucket, name, {}, expires_s)

    async def aclose(self) -> None:
        """Have calls under way end, a matter of 2 s, and close the connections; then all is Unavailable."""
        self._life.closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        # What a thread does cannot be broken off, only waited for. It makes no further try.
        ends = [asyncio.wrap_future(work) for work in list(self._under_way)]
        if ends:
            await asyncio.wait(ends, timeout=end_s_max)
            for end in ends:
                # Whoever called hears what became of it.
                end.cancelled() or end.cancel() or end.exception()
        await self._opening.aclose()

    async def _sign(
        self, method: str, bucket: str, name: str, headers: Mapping[str, str], expires_s: int
    ) -> SignedRequest:
        url = v4.object_url(self._url, bucket, name)
        with self._life.held(), translated("sign"):
            async with asyncio.timeout(call_s_max):
                email = await self._identity.email()
                draft = v4.unsigned(v4.RSA_ALGORITHM, email, method, url, headers, expires_s=expires_s, now=self._now())
                return draft.signed((await self._identity.sign_blob(draft.text)).hex())

    async def _find(self, what: str, bucket: str, call: Callable[[Objects], T], size: int = 0) -> T:
        """`_call` for what may be absent: NotFound is said of the object, never of a bucket that is misnamed."""
        try:
            found = await self._call(f"{what} {bucket}", call, size)
        except NotFound:
            await self._look_for(bucket)
            raise
        self._found_at[bucket] = self._now()
        return found

    async def _look_for(self, bucket: str) -> None:
        now, found_at = self._now(), self._found_at.get(bucket)
        if found_at is not None and found_at <= now < found_at + _bucket_known:
            return
        try:
            await self._call(f"look for {bucket}", lambda objects: objects.look(bucket))
        except NotFound as exc:
            raise _no_bucket(bucket) from exc
        self._found_at[bucket] = now

    async def _call(
        self, what: str, call: Callable[[Objects], T], size: int = 0, undo: Callable[[], None] | None = None
    ) -> T:
        """What `call` returns, in a thread. If nobody waits any more and it ends well after all, it is undone."""
        work: Future[T] | None = None
        # Taken by who is first, the thread that has ended well or the caller who leaves; the other one undoes.
        settled = threading.Lock()

        def run(objects: Objects) -> T:
            result = call(objects)
            if undo is not None and not settled.acquire(blocking=False):
                undo()
            return result

        with self._life.held(), translated(what):
            try:
                async with asyncio.timeout(call_s_max + size / bytes_a_second_min):
                    work = self._begin(partial(run, await self._ready()))
                    return await asyncio.wrap_future(work)
            except BaseException as exc:
                if work is not None and not work.cancel() and not settled.acquire(blocking=False):
                    assert undo is not None
                    undo()
                if _is_refused_token(exc):
                    self._identity.forget_token()
                raise

    async def _ready(self) -> Objects:
        objects = await self._opening.client()
        if objects.shows_token:
            objects.show(await self._identity.access_token())
        self._life.check()
        return objects

    def _begin(self, call: Callable[[], T]) -> "Future[T]":
        work = self._threads.submit(call)
        self._under_way.add(work)
        work.add_done_callback(self._under_way.discard)
        return work

    async def _prepare(self) -> Objects:
        emulated = bool(os.environ.get("STORAGE_EMULATOR_HOST"))
        make = partial(Objects, None if emulated else self._url, calls_max, lambda: self._life.closed)
        return await asyncio.wrap_future(self._threads.submit(make))

    async def _end(self, objects: Objects) -> None:
        objects.close()
        for work in list(self._under_way):
            # It gives its connection back when it ends.
            work.add_done_callback(lambda _: objects.close())


def _no_bucket(bucket: str) -> Unavailable:
    log.error("blobs.no_bucket", extra={"bucket": bucket, "advice": "check the settings *_BUCKET against Terraform's"})
    return Unavailable(f"there is no bucket {bucket}")


def _is_forbidden(exc: BaseException | None) -> bool:
    from google.api_core.exceptions import Forbidden

    return isinstance(exc, Forbidden)


def _is_refused_token(exc: BaseException) -> bool:
    from google.auth.exceptions import RefreshError

    # The session answers 401 by renewing its credentials, which ours leave to Identity.
    return isinstance(exc, RefreshError)


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size
